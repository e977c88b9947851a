# A set that says something of itself, in its attribute `nixery`.
{ system }:
let
  set = import ../. { inherit system; };
in
set
// {
  # An attribute of the set wins over a meta-package.
  debug = set.greeting;

  nixery = {
    osRelease = {
      ID = "acme";
      NAME = "Acme \"Tools\"";
      VERSION_ID = "7";
    };
    metaPackages = {
      # Fewer packages than in other sets; the command stays.
      shell = [ "bashInteractive" "coreutils" ];
      ci = {
        packages = [ "hello" "haskellPackages.pandoc" ];
        optional = [ "greeting" "nothere" "stdenv.cc" "broken" "throwing" "haskellPackages" "string" ];
        command = [ "hello" "--verbose" ];
        description = "programs of our pipelines";
      };
      quiet = [ "hello" ];
      incomplete = [ "hello" "nothere" "moreutils.nothere" ];
      misspelt = { package = [ "hello" ]; };
      text = "hello";
      thrown = throw "nothing here";
      words = { packages = [ 5 ]; };
      throwing = [ "hello" "throwing" ];
      broken-one = [ "hello" "broken" ];
      notapackage = [ "string" ];
      arm64 = [ "hello" ];
      "Not a name" = [ "hello" ];
    };
  };
}
