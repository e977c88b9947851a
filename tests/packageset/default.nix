# The package set of the integration tests: raw derivations, one for each case.
#
# They build within milliseconds with the programs that every Linux has in /bin and /usr/bin, by Nix 2.8 and by later versions, without
# a sandbox or with /bin, /lib, /lib64 and /usr as sandbox paths.
{
  system,
  # Packages that fail, sleep or are counted take part in it: what one test builds is not there for another one, and
  # processes can be distinguished by their environment.
  salt ? "none",
}:
let
  package =
    {
      name,
      version ? "1.0",
      script,
      meta ? { },
      extra ? { },
      ...
    }@arguments:
    derivation (
      {
        # This machine builds everything, for any platform.
        system = builtins.currentSystem;
        name = "${name}-${version}";
        builder = "/bin/sh";
        args = [ "-e" "-c" script ];
        PATH = "/usr/bin:/bin";
      }
      // removeAttrs arguments [ "name" "version" "script" "meta" "extra" ]
    )
    // { pname = name; inherit version meta; }
    // extra;

  program =
    name:
    package {
      inherit name;
      script = ''
        mkdir -p $out/bin
        echo "#!/bin/sh" > $out/bin/${name}
        echo "echo ${name} for ${system}" >> $out/bin/${name}
        chmod +x $out/bin/${name}
      '';
    };

  salted = arguments: package (arguments // { nixeryTestSalt = salt; });

  # Like nixpkgs: the meta-data can be read, the derivation itself throws.
  refused =
    name: meta:
    {
      type = "derivation";
      name = "${name}-1.0";
      outputs = [ "out" ];
      outputName = "out";
      drvPath = throw "package ${name}-1.0 is refused";
      outPath = throw "package ${name}-1.0 is refused";
      inherit meta;
    };

  repeat = count: text: builtins.concatStringsSep "" (builtins.genList (_: text) count);

  hello = program "hello";
  greeting = program "greeting";
  left = package {
    name = "left";
    inherit bottom;
    script = "mkdir $out; ln -s $bottom $out/left-to-bottom";
  };
  right = package {
    name = "right";
    inherit bottom;
    script = "mkdir $out; ln -s $bottom $out/right-to-bottom";
  };
  bottom = package {
    name = "bottom";
    script = "mkdir $out; echo bottom > $out/bottom";
  };
in
{
  # ---- ordinary packages, some with names that could be confused
  inherit hello greeting;
  a = program "a";
  ab = program "ab";
  bc = program "bc";
  c = program "c";

  # ---- packages of every image, and the packages of `shell`
  cacert = package {
    name = "nss-cacert";
    script = ''
      mkdir -p $out/etc/ssl/certs
      echo "certificates" > $out/etc/ssl/certs/ca-bundle.crt
    '';
  };
  iana-etc = package {
    name = "iana-etc";
    script = ''
      mkdir -p $out/etc
      echo "tcp 6 TCP" > $out/etc/protocols
      echo "http 80/tcp" > $out/etc/services
    '';
  };
  bashInteractive = package {
    name = "bash-interactive";
    script = ''
      mkdir -p $out/bin
      echo "a shell for ${system}" > $out/bin/bash
      chmod +x $out/bin/bash
      ln -s bash $out/bin/sh
    '';
  };
  coreutils = package {
    name = "coreutils";
    script = ''
      mkdir -p $out/bin
      echo "coreutils for ${system}" > $out/bin/coreutils
      chmod +x $out/bin/coreutils
      ln -s coreutils $out/bin/env
      ln -s coreutils $out/bin/ls
    '';
  };
  moreutils = program "moreutils";
  nano = program "nano";

  # ---- files
  emptydirectory = package {
    name = "emptydirectory";
    script = "mkdir -p $out/empty/within $out/share/emptydirectory";
  };
  hardlinks = package {
    name = "hardlinks";
    script = ''
      mkdir -p $out/share/deeper
      echo "one file, three names" > $out/share/zz-first
      ln $out/share/zz-first $out/share/second
      ln $out/share/zz-first $out/share/deeper/third
      echo "one file, three names" > $out/share/equal-but-not-linked
    '';
  };
  symlinks = package {
    name = "symlinks";
    inherit bottom;
    long = "nowhere/${repeat 15 "twenty-characters-aa"}";
    script = ''
      mkdir -p $out/share/symlinks
      echo target > $out/share/symlinks/target
      cd $out/share/symlinks
      ln -s target relative
      ln -s ../../share/symlinks upwards
      ln -s $bottom/bottom absolute
      ln -s /does/not/exist dangling
      ln -s $long long
    '';
  };
  executables = package {
    name = "executables";
    script = ''
      mkdir -p $out/bin $out/share
      echo one > $out/bin/executable
      echo two > $out/bin/owner-only
      echo three > $out/share/plain
      echo four > $out/share/writable
      chmod 0755 $out/bin/executable
      chmod 0700 $out/bin/owner-only
      chmod 0600 $out/share/plain
      chmod 0666 $out/share/writable
    '';
  };
  longnames = package {
    name = "longnames";
    component = repeat 10 "twenty-characters-aa";
    script = ''
      mkdir -p $out/share/longnames/$component/$component
      echo shallow > $out/share/longnames/$component/$component-not-a-directory
      echo deep > $out/share/longnames/$component/$component/$component
      ln -s $component $out/share/longnames/link
    '';
  };
  bytenames = package {
    name = "bytenames";
    script = ''
      mkdir -p "$out/share/bytenames/$(printf 'caf\303\251')"
      echo latin > "$out/share/bytenames/$(printf 'caf\351')"
      echo all-ones > "$out/share/bytenames/$(printf '\377\376')"
      echo utf-8 > "$out/share/bytenames/$(printf 'caf\303\251')/inside"
      echo newline > "$out/share/bytenames/$(printf 'a\nb')"
      echo blank > "$out/share/bytenames/ blank "
      echo long > "$out/share/bytenames/$(printf '\377%0150d' 0)"
      ln -s "$(printf '\377\376')" "$out/share/bytenames/$(printf 'link\377')"
    '';
  };
  big = package {
    # More than the buffers of a connection hold. Random, so that compression does not help; built once per store.
    name = "big";
    script = "mkdir $out; head -c 16000000 /dev/urandom > $out/random";
  };
  emptyfile = package {
    name = "emptyfile";
    script = "mkdir -p $out/share; : > $out/share/empty";
  };
  anotherfile = package {
    name = "anotherfile";
    script = "echo other content > $out";
  };
  singlefile = package {
    # A store path that is no directory.
    name = "singlefile";
    script = "echo content > $out";
  };

  # ---- names
  error = program "error";
  haserror = package {
    name = "haserror";
    script = "mkdir -p $out/share; echo fine > $out/share/haserror";
    extra = { error = "not_found"; };
  };
  haskellPackages = {
    pandoc = program "pandoc";
    ShellCheck = program "shellcheck";
    deeper.lens = program "lens";
  };
  camelCase = program "camelcase";
  Ambiguous = program "ambiguous-upper";
  aMBiguous = program "ambiguous-mixed";
  exact = program "exact-lower";
  Exact = program "exact-upper";
  _1password = program "_1password";
  "python3.11" = program "python-dotted";
  python3 = { "11" = program "python-nested"; };

  # ---- unavailable packages
  throwing = throw "throwing was removed because nobody maintained it";
  asserting = assert false; program "asserting";
  broken = refused "broken" { broken = true; };
  unfree = refused "unfree" { unfree = true; license = { free = false; shortName = "unfree"; }; };
  insecure = refused "insecure" { insecure = true; knownVulnerabilities = [ "CVE-2014-0160" ]; };
  wrongplatform = refused "wrongplatform" { platforms = [ "riscv64-linux" ]; };
  typeerror = 1 + "one";
  aborting = abort "aborting gave up";
  function = argument: argument;
  attributes = { };
  string = "a string";
  number = 42;
  nothing = null;

  # ---- packages for one platform only
  onlyamd64 =
    if system == "x86_64-linux" then hello else refused "onlyamd64" { platforms = [ "x86_64-linux" ]; };
  failsonarm64 =
    if system == "x86_64-linux" then hello else salted { name = "failsonarm64"; script = "echo no arms >&2; exit 1"; };
  # The same store path on every platform.
  data = bottom;

  # ---- lists of packages, and images by definition
  tools = [ hello [ left [ right ] ] ];
  nopackages = [ ];
  listwithstring = [ hello [ "a string" ] ];
  listwithfunction = [ (argument: argument) ];
  listwithset = [ { a = 1; } ];
  listwithbroken = [ hello (refused "brokeninside" { broken = true; }) ];
  images.web = {
    contents = [ hello greeting ];
    config = {
      Cmd = [ "${bottom}/bottom" "--port" "80" ];
      Entrypoint = [ "/bin/hello" ];
      Env = { PORT = 80; MESSAGE = "from ${./empty}"; };
      User = "65534:65534";
      WorkingDir = "/srv";
      ExposedPorts = [ 80 ];
      Volumes = [ "/data" ];
      Labels.team = "platform";
      StopSignal = "SIGQUIT";
      Healthcheck = { Test = [ "CMD" "/bin/hello" ]; Interval = "30s"; };
    };
    layers = 3;
  };
  images.other = { contents = [ left ]; config.User = "1"; };
  images.plain.contents = [ hello ];
  images.named = { contents = [ hello ]; config = { User = "web"; WorkingDir = "/var/lib/web"; }; };
  images.sentence = {
    contents = [ hello ];
    config.Labels = {
      started = "This is ${bottom}.";
      before = "It was ${builtins.unsafeDiscardStringContext "/nix/store/00000000000000000000000000000000-before"}";
    };
  };
  images.nouser = { contents = [ hello ]; config.User = "web user"; };
  images.misspelt = { contents = [ hello ]; config = { cmd = [ "hello" ]; WorkingDir = "srv"; }; };
  images.functional = { contents = [ hello ]; config.Cmd = [ (argument: argument) ]; };
  images.throwing = { contents = [ hello ]; config.Cmd = throw "no command yet"; };
  images.contentsthrow = { contents = [ hello (throw "not packaged yet") ]; };
  images.stringcontents.contents = "hello";

  # ---- evaluations
  noisyevaluation = builtins.trace (repeat 20000 "fifty characters on the way to one megabyte of it\n") (program "noisyevaluation");
  metathrows = package {
    name = "metathrows";
    script = "mkdir -p $out/share; echo fine > $out/share/metathrows";
    meta = {
      description = throw "no description";
      license = throw "no licence";
      maintainers = [ (throw "nobody") ];
      platforms = throw "no platforms";
    };
  };

  # Minutes of evaluation.
  endless = let fibonacci = n: if n < 2 then n else fibonacci (n - 1) + fibonacci (n - 2); in
    if fibonacci 60 > 0 then program "endless" else null;

  # ---- builders
  fails = salted {
    name = "fails";
    script = "echo only line of the log >&2; exit 3";
  };
  failsloudly = salted {
    name = "failsloudly";
    script = ''
      yes "a line on stdout" | head -n 30000
      yes "a line of the megabyte on stderr" | head -n 30000 >&2
      echo "the last line" >&2
      exit 1
    '';
  };
  failsinoneline = salted {
    name = "failsinoneline";
    script = "head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1";
  };
  failsdeep = package {
    name = "failsdeep";
    culprit = salted { name = "culprit"; script = "echo the culprit speaks >&2; exit 1"; };
    script = "mkdir $out; echo $culprit > $out/file";
  };
  loud = salted {
    name = "loud";
    script = ''
      yes "a line of the megabyte on stderr" | head -n 30000 >&2
      yes "a line on stdout" | head -n 60000
      mkdir -p $out/share
      echo fine > $out/share/loud
    '';
  };
  bytelog = salted {
    # Not every log is UTF-8.
    name = "bytelog";
    script = "printf 'caf\\351 \\377\\376\n' >&2; mkdir -p $out/share; echo fine > $out/share/bytelog";
  };
  failsinbytes = salted {
    name = "failsinbytes";
    script = "printf 'caf\\351 \\033[31mred\\033[0m <script>\n' >&2; echo 'the last line' >&2; exit 1";
  };
  sleeps = salted {
    name = "sleeps";
    script = ''
      echo "falling asleep" >&2
      (sleep 40; echo "the child woke up") &
      sleep 40
    '';
  };
  ignoresterm = salted {
    name = "ignoresterm";
    script = ''
      trap "" TERM INT HUP
      (trap "" TERM INT HUP; sleep 40) &
      sleep 40
    '';
  };
  slow = salted {
    name = "slow";
    script = "sleep 2; mkdir -p $out/share; echo slow > $out/share/slow";
  };
  slower = salted {
    name = "slower";
    script = "sleep 2; mkdir -p $out/share; echo slower > $out/share/slower";
  };

  slowest = salted {
    name = "slowest";
    script = "sleep 2; mkdir -p $out/share; echo slowest > $out/share/slowest";
  };
  leisurely = salted {
    name = "leisurely";
    script = "sleep 2; mkdir -p $out/share; echo leisurely > $out/share/leisurely";
  };

  # ---- outputs and references
  outputs = package {
    name = "outputs";
    outputs = [ "out" "bin" "dev" "man" ];
    meta.outputsToInstall = [ "bin" "man" ];
    script = ''
      mkdir -p $out/lib $bin/bin $dev/include $man/share/man
      echo library > $out/lib/library
      echo program > $bin/bin/program
      echo $out/lib/library >> $bin/bin/program
      chmod +x $bin/bin/program
      echo header > $dev/include/header.h
      echo manual > $man/share/man/manual
    '';
  };
  firstoutput = package {
    name = "firstoutput";
    outputs = [ "out" "doc" ];
    script = ''
      mkdir -p $out/share $doc/share
      echo out > $out/share/firstoutput
      echo doc > $doc/share/documentation
    '';
  };
  selfreference = package {
    name = "selfreference";
    script = "mkdir -p $out/share; echo $out > $out/share/self; ln -s $out $out/share/myself";
  };
  diamond = package {
    name = "diamond";
    inherit left right;
    script = "mkdir -p $out/share; echo $left $right > $out/share/diamond";
  };
  inherit left right bottom;
  many = package {
    # More store paths than an image may have layers.
    name = "many";
    parts = builtins.genList (
      number: package { name = "part${toString number}"; script = "echo ${toString number} > $out"; }
    ) 100;
    script = "mkdir $out; echo $parts > $out/parts";
  };

  # ---- the root filesystem
  clasha = package {
    name = "clasha";
    script = "mkdir -p $out/bin; echo a > $out/bin/clash; echo a > $out/bin/only-a; chmod +x $out/bin/*";
  };
  clashb = package {
    name = "clashb";
    script = "mkdir -p $out/bin; echo b > $out/bin/clash; echo b > $out/bin/only-b; chmod +x $out/bin/*";
  };
  clashpriority = package {
    name = "clashpriority";
    script = "mkdir -p $out/bin; echo priority > $out/bin/clash; chmod +x $out/bin/clash";
    meta.priority = 1;
  };
  clashfile = package {
    # A file where others have a directory.
    name = "clashfile";
    script = "mkdir -p $out; echo file > $out/share";
  };
  users = package {
    name = "users";
    script = "mkdir -p $out/etc; echo 'somebody:x:1:1::/:/bin/sh' > $out/etc/passwd";
  };
  mainprogram = package {
    name = "mainprogram";
    script = "mkdir -p $out/bin; echo main > $out/bin/the-program; chmod +x $out/bin/the-program";
    meta = {
      mainProgram = "the-program";
      description = "A package that says what it is for";
      license = [ { spdxId = "MIT"; } { shortName = "bsd3"; } ];
    };
  };
}
