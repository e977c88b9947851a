# Fetches the tree of a flake, without its inputs. The reference is JSON: a string, or attributes.
let
  tree = builtins.fetchTree (builtins.fromJSON (builtins.getEnv "NIXERY_TREE"));
in
{
  path = "${tree}";
  inherit (tree) narHash;
  rev = tree.rev or null;
  lastModified = tree.lastModified or null;
}
