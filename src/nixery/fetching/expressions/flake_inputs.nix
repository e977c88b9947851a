# What a flake says that it is made from. It is evaluated before anybody has looked at it, in an evaluation that reads its tree and
# nothing else. Nix itself demands that inputs are written out, so that no more than this is needed of them.
{ file }:
let
  inherit (builtins) attrNames functionArgs isAttrs isBool isFunction isInt isString mapAttrs unsafeDiscardStringContext;
  flake = import file; # absolute, a string
  value =
    depth: value:
    if depth == 0 then
      throw "inputs of a flake are nested too deeply"
    else if isAttrs value then
      mapAttrs (_: inner depth) value
    else if isString value then
      unsafeDiscardStringContext value
    else if isBool value || isInt value then
      value
    else
      # A path, for example, which newer versions of Nix take for one in the flake's own tree.
      { unusable = true; };
  inner = depth: value (depth - 1);
in
{
  inputs = value 16 (flake.inputs or { });
  arguments = if isFunction (flake.outputs or null) then attrNames (functionArgs flake.outputs) else [ ];
}
