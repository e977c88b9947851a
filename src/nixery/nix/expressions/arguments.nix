# The arguments that a package set declares, as names; a set that is no function declares none.
{
  packageSet, # absolute path
}:
let
  inherit (builtins) attrNames functionArgs isFunction;
  imported = import packageSet;
in
attrNames (if isFunction imported then functionArgs imported else imported.__functionArgs or { })
