# Packages and definitions that try to read files of the build machine, each in a different way.
{
  system,
  # A directory of the test: `secret`, `pipe` and `directory/`. Builders only write its name.
  outside ? "/nonexistent",
}:
let
  package =
    name: script:
    derivation {
      inherit name outside;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-e" "-c" "mkdir $out; cd $out; ${script}" ];
      PATH = "/usr/bin:/bin";
    };

  # A file of accounts that is a symlink; the image's definition makes the server read it.
  account = file: target: {
    contents = [ (package "account" "mkdir etc bin; ln -s ${target} etc/${file}") ];
    config = { User = "web"; WorkingDir = "/srv"; };
  };
  accounts = target: { passwd = account "passwd" target; group = account "group" target; };

  written = name: script: {
    contents = [ (package name "mkdir etc; ${script}") ];
    config.User = "web";
  };

  # A path in the Nix store to which only a package outside of the image refers.
  unrelated = package "unrelated" "mkdir etc bin; echo 'store-secret:x:0:0::/:' > etc/passwd; echo > bin/unrelated";
  ofUnrelated = builtins.unsafeDiscardStringContext "${unrelated}";
in
{
  inherit unrelated;
  environment = accounts "/proc/self/environ";
  zero = accounts "/dev/zero";
  pipe = accounts "$outside/pipe";
  secret = accounts "$outside/secret";
  upwards = accounts "../../../../$outside/secret";
  otherpath = accounts "${ofUnrelated}/etc/passwd";
  directory = accounts "$outside/directory";
  nofile = accounts "../bin";
  loop = accounts "$out/etc/passwd";

  # Directories that are links.
  directories = package "directories" "for name in bin etc lib opt share usr; do ln -s $outside/directory $name; done";
  root = package "root" "for name in bin etc opt; do ln -s / $name; done";
  process = package "process" "ln -s /proc/self/fd bin; ln -s /proc/self/root etc; ln -s /proc/self/cwd opt";
  neighbours = package "neighbours" "ln -s ${ofUnrelated}/bin bin; ln -s ../${baseNameOf ofUnrelated} opt; ln -s .. share";
  inetc = package "inetc" "mkdir etc; ln -s $outside/directory etc/ssl; ln -s /proc etc/x";
  whole = derivation {
    name = "whole";
    inherit outside;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" "ln -s $outside/directory $out" ];
    PATH = "/usr/bin:/bin";
  };

  # Names that are commands to programs that unpack layers.
  whiteout = package "whiteout" "touch .wh.nix";
  opaque = package "opaque" "mkdir -p share/x; touch share/x/.wh..wh..opq";
  whiteoutdirectory = package "whiteoutdirectory" "mkdir -p bin/.wh.sh";
  whiteoutlink = package "whiteoutlink" "mkdir -p etc; ln -s x etc/.wh.passwd";
  whiteoutbelow = package "user" "ln -s ${package "below" "mkdir lib; touch lib/.wh.libc"} lib";
  whiteoutdefined = { contents = [ unrelated ]; config.WorkingDir = "/srv/.wh.data"; };

  # Contents beyond the limits.
  digits = written "digits" "{ printf 'a:x:'; head -c 1000000 /dev/zero | tr '\\0' 9; echo ':1::/:'; } > etc/passwd";
  numbers = package "numbers" "mkdir -p etc lib/sysusers.d; for i in $(seq 0 999) $(seq 60000 65000); do echo a$i:x:$i:0::/:; done > etc/passwd; echo 'u web -' > lib/sysusers.d/web.conf";
  comments = package "comments" "mkdir -p lib/sysusers.d; cd lib/sysusers.d; head -c 60000 /dev/zero | tr '\\0' '\\n' > a.conf; for i in $(seq 20); do cp a.conf $i.conf; done";
  largestid = written "largestid" "echo 'a:x:4294967295:1::/:' > etc/passwd";
  largefile = written "largefile" "head -c 2000000 /dev/zero | tr '\\0' x > etc/group";
  lines = written "lines" "yes '' | head -n 100000 > etc/group";
  deep = package "deep" "mkdir -p etc/$(yes d/ | head -n 600 | tr -d '\\n')";
  multiplied = package "multiplied" ''
    mkdir share; cd share
    for number in $(seq 3000); do : > $number; done
    cd ..
    for number in $(seq 100); do ln -s share link$number; done
  '';
  longuser = { contents = [ unrelated ]; config.User = builtins.concatStringsSep "" (builtins.genList (_: "9") 5000); };
  deeplydefined = {
    contents = [ unrelated ];
    config.WorkingDir = builtins.concatStringsSep "" (builtins.genList (_: "/d") 1500);
  };
  toolongdefined = {
    contents = [ unrelated ];
    config.WorkingDir = builtins.concatStringsSep "" (builtins.genList (_: "/d") 5000);
  };
  manyvolumes = { contents = [ unrelated ]; config.Volumes = builtins.genList (number: "/${toString number}") 1000; };
}
