# The inputs that a flake declares. Nix evaluates this before the flake was checked, in an evaluation that can
# read its tree and nothing else. Nix itself demands literal inputs, so little of the flake is evaluated.
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
      # A path, for example, which newer versions of Nix resolve in the flake's own tree.
      { unusable = true; };
  inner = depth: value (depth - 1);
in
{
  inputs = value 16 (flake.inputs or { });
  arguments = if isFunction (flake.outputs or null) then attrNames (functionArgs flake.outputs) else [ ];
}
