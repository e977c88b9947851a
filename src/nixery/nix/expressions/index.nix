# Lists a package set: { attribute = { version, description }; } for everything at its top.
#
# Without details nothing is evaluated, so that any set can be listed by name. With details, an error that cannot be
# caught ends the evaluation; the caller then asks without.
{
  packageSet ? null, # absolute path
  flake ? null, # or a locked reference
  system, # e.g. "x86_64-linux"
  packageConfiguration ? null, # of the operator: nixpkgs' `config`, and `overlays`
  request, # JSON: { details : whether to evaluate each attribute }
}:
let
  inherit (builtins) deepSeq fromJSON functionArgs isAttrs isFunction isString mapAttrs stringLength tryEval;

  imported = import packageSet;
  # The arguments that the set declares; a functor may declare them as well. A set gets no others.
  declared = if isFunction imported then functionArgs imported else imported.__functionArgs or { };
  configuration =
    (if packageConfiguration == null || !(declared ? config) then { } else { config = removeAttrs packageConfiguration [ "overlays" ]; })
    // (if packageConfiguration ? overlays && declared ? overlays then { inherit (packageConfiguration) overlays; } else { });
  called =
    if isFunction imported || imported ? __functor then imported ({ inherit system; } // configuration) else imported;
  ofFlake = outputs: (outputs.legacyPackages.${system} or { }) // (outputs.packages.${system} or { });
  set = if flake == null then called else ofFlake (builtins.getFlake flake);

  # Leaves out a text that is too long to read in a list; see packages.nix.
  text =
    longest: value:
    let
      tried = tryEval (deepSeq value value);
    in
    if tried.success && isString tried.value && stringLength tried.value <= longest then tried.value else "";
  look =
    value:
    let
      tried = tryEval value;
      package = if tried.success && isAttrs tried.value then tried.value else { };
    in
    {
      version = text 256 (package.version or "");
      description = text 4096 (package.meta.description or "");
    };
in
mapAttrs (_: value: if (fromJSON request).details then look value else { version = ""; description = ""; }) set
