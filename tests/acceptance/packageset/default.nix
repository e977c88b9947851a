# The package set of the acceptance tests: all of Debian's packages, and some for tests.
{ system }:
let
  package =
    name: script:
    derivation {
      inherit name;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-e" "-c" script ];
      PATH = "/usr/bin:/bin";
    };
  debian = import ../../../packagesets/debian { inherit system; };
in
debian
// {
  # Its builder fails, and says why in its last line.
  failing = package "failing-1.0" ''
    echo "checking for the philosopher's stone... no"
    echo "configure: error: the philosopher's stone is needed to build failing"
    exit 1
  '';

  # One large, incompressible layer: 32 MiB from a deterministic generator.
  ballast = package "ballast-1.0" ''
    mkdir -p $out/share
    /usr/bin/python3 -c 'import random, sys; sys.stdout.buffer.write(random.Random(1).randbytes(32 << 20))' > $out/share/ballast
  '';

  # Image names have neither `@` nor `+`, and no capital letters.
  "@Hello/c++" = debian.hello;
  nested."Hello++" = debian.hello;
}
