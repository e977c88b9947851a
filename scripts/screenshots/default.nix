# The Debian package set, with one package that logs while it is built and one whose build fails.
{ system, salt ? "none" }:
let
  pkgs = import ../../packagesets/debian { inherit system; };

  # Debian's git, repacked: the builder lists the files as it unpacks them, slowly enough for a picture.
  git = derivation (pkgs.git.drvAttrs // {
    builder = "/bin/sh";
    args = [ "-e" "-c" ''
      for deb in $debs; do
        dpkg-deb --contents $deb | sed -n 's|.* \./usr/|unpacking /usr/|p' | grep '[^/]$' | head -n 400 |
          while read line; do echo "$line"; sleep 0.02; done
      done
      exec /usr/bin/python3 ${builtins.toString (builtins.elemAt pkgs.git.drvAttrs.args 0)} ${builtins.elemAt pkgs.git.drvAttrs.args 1}
    '' ];
    inherit salt;
  });

  patched = derivation {
    inherit system salt;
    name = "jq-1.6-color";
    builder = "/bin/sh";
    PATH = "/usr/bin:/bin";
    args = [ "-c" ''
      echo "unpacking source archive jq-1.6.tar.gz"
      echo "applying patch color-keys.patch"
      echo "patching file src/jv_print.c"
      echo "Hunk #1 succeeded at 22 (offset 3 lines)."
      echo "Hunk #2 FAILED at 201."
      echo "1 out of 2 hunks FAILED -- saving rejects to file src/jv_print.c.rej"
      exit 1
    '' ];
  };
in
pkgs // {
  git = git // { inherit (pkgs.git) pname version meta; };
  jq-color = patched // { pname = "jq-color"; version = "1.6"; meta.description = "jq that prints keys in colour"; };
}
