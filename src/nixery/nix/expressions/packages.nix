# Looks up the packages of an image request: one evaluation for all of them.
#
# Client input comes in as data (`request` is JSON), never as part of an expression. A package set provides only the
# requested attributes, so this file uses only builtins.
#
# The result has only strings, numbers and lists: no derivation is ever forced to be printed.
{
  packageSet ? null, # absolute path
  flake ? null, # or a locked reference
  system, # e.g. "x86_64-linux"
  packageConfiguration ? null, # of the operator: nixpkgs' `config`, and `overlays`
  request, # JSON: { packages : [ name ], optional : [ name ], diagnose : { name, position } or null }
  # From the command line alone: one more attribute, `name`. The server has none.
  name ? null,
  expression ? null,
}:
let
  inherit (builtins)
    all attrNames concatLists deepSeq elem elemAt filter foldl' fromJSON functionArgs genList getContext hasAttr head isAttrs isBool
    isFunction isInt isList isString length listToAttrs map mapAttrs match parseDrvName replaceStrings seq split
    stringLength substring toJSON tryEval typeOf unsafeDiscardStringContext;

  # The largest values that this server accepts from a package set, in bytes and in numbers. For a larger
  # value, the answer has its size, for the error message; the value itself never leaves the evaluation. With
  # these, a config stays far below the 4 MiB that containerd and Docker accept for a config or a manifest,
  # and a variable below the 128 KiB of Linux (MAX_ARG_STRLEN).
  limits = {
    name = 256; # of a package, its version, its program, an output, a key
    path = 256; # a store path has 255 at most
    description = 4096; # optional, so a longer one is left out
    licences = 16384; # of a package, in total
    text = 65536; # a string of a config
    config = 262144; # as JSON
    outputs = 32;
    contents = 2000; # derivations of a list, or of a definition
    grounds = 20; # licences, vulnerabilities or platforms of a package that the set refuses
    ground = 128; # one of them, which is cut
    flaws = 10; # reported for a name; one is enough to refuse it
    nesting = 32; # of lists within each other: the position of an item is in the answer
    references = 2000; # of a definition to derivations
    nearNames = 5; # missing names that get suggestions
    attribute = 255; # of a suggested name: clients cannot request longer ones
  };

  arguments = fromJSON request;
  imported = import packageSet;
  # The arguments that the set declares; a functor may declare them as well. A set gets no others.
  declared = if isFunction imported then functionArgs imported else imported.__functionArgs or { };
  configuration =
    (if packageConfiguration == null || !(declared ? config) then { } else { config = removeAttrs packageConfiguration [ "overlays" ]; })
    // (if packageConfiguration ? overlays && declared ? overlays then { inherit (packageConfiguration) overlays; } else { });
  called =
    if isFunction imported || imported ? __functor then imported ({ inherit system; } // configuration) else imported;
  ofFlake = outputs: (outputs.legacyPackages.${system} or { }) // (outputs.packages.${system} or { });
  packages = if flake == null then called else ofFlake (builtins.getFlake flake);
  set =
    if name == null then
      packages
    else
      packages // { ${name} = if isFunction expression then expression { pkgs = packages; } else expression; };

  # `tryEval` catches `throw` and failed assertions. Any other error ends the whole evaluation; the caller then
  # isolates the packages that cause it.
  safe = fallback: value: let tried = tryEval (deepSeq value value); in if tried.success then tried.value else fallback;
  safely = isWanted: fallback: value: let v = safe null value; in if isWanted v then v else fallback;
  isDerivation = value: isAttrs value && safely isString "" (value.type or "") == "derivation";

  upper = filter (c: isString c && c != "") (split "" "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
  lower = filter (c: isString c && c != "") (split "" "abcdefghijklmnopqrstuvwxyz");
  toLower = replaceStrings upper lower;

  # Registry names are lower case and may start with a digit, attribute names are neither.
  # `attrNames` is sorted by bytes, so an ambiguous folding has one answer.
  spellings = name: [ name ] ++ (if match "[0-9].*" name != null then [ "_${name}" ] else [ ]);
  # Made at most once. Of several attributes that fold to one name, `listToAttrs` takes the first.
  foldedNames = listToAttrs (map (attribute: { name = toLower attribute; value = attribute; }) (attrNames set));
  topLevel =
    name:
    let
      exact = filter (spelling: hasAttr spelling set) (spellings name);
      folded = map (key: foldedNames.${key}) (
        filter (key: hasAttr key foldedNames) (map toLower (spellings name))
      );
    in
    if exact != [ ] then exact else folded;

  # found { value, path } | missing { within } | throws { }
  enter =
    state: component:
    if state.kind != "found" then
      state
    else
      let
        outer = tryEval state.value;
        # An output has all outputs again (`hello.out.out.out`): endless names for one package, and an image
        # for each.
        isOutput = isDerivation outer.value && elem component (safely isList [ ] (outer.value.outputs or [ "out" ]));
      in
      if !outer.success then
        { kind = "throws"; inherit (state) path; }
      else if isAttrs outer.value && hasAttr component outer.value && !(state.isOutput or false) then
        { kind = "found"; value = outer.value.${component}; path = state.path ++ [ component ]; inherit isOutput; }
      else
        { kind = "missing"; within = state.path; value = outer.value; };

  lookUp =
    name:
    let
      components = filter isString (split "\\." name);
      top = topLevel (head components);
      rest = genList (i: elemAt components (i + 1)) (length components - 1);
      found = attribute: { kind = "found"; value = set.${attribute}; path = [ attribute ]; };
    in
    # A set may have attributes with dots in their names (`python3.11`); those win over a way into a set.
    if hasAttr name set then
      found name
    else if top == [ ] then
      { kind = "missing"; within = [ ]; value = set; }
    else
      foldl' enter (found (head top)) rest;

  # { field, size, limit } of the first value that is too large, or null.
  tooLarge =
    sizes:
    let
      found = filter (entry: entry.size > entry.limit) sizes;
    in
    if found == [ ] then null else head found;
  sized = field: size: limit: { inherit field size limit; };
  sum = foldl' (total: text: total + stringLength text) 0;

  joinPath = path: foldl' (all: part: if all == "" then part else "${all}.${part}") "" path;

  licence =
    value:
    if isList value then
      concatLists (map licence value)
    else if isString value then
      [ value ]
    else if isAttrs value then
      [ (safely isString "unknown" (value.spdxId or value.shortName or value.fullName or "unknown")) ]
    else
      [ ];

  # Why an existing attribute does not evaluate, according to its meta-data.
  flaw =
    meta:
    if safely isBool false (meta.broken or false) && !(allows "allowBroken") then
      "broken"
    else if safely isBool false (meta.unsupported or false) && !(allows "allowUnsupportedSystem") then
      "wrong platform"
    else if (safely isBool false (meta.unfree or false) || freeOf meta == false) && !(allows "allowUnfree") then
      "unfree"
    else if safely isBool false (meta.insecure or false) || safely isList [ ] (meta.knownVulnerabilities or [ ]) != [ ] then
      "insecure"
    else if !(elem system (safely (v: isList v && all isString v) [ system ] (meta.platforms or [ system ]))) then
      "wrong platform"
    else if elem system (safely isList [ ] (meta.badPlatforms or [ ])) then
      "wrong platform"
    else
      "throws";
  freeOf =
    meta:
    safely isBool true (
      let
        given = meta.license or [ ];
        licences = if isList given then given else [ given ];
      in
      all (l: if isAttrs l then l.free or true else true) licences
    );
  allows = key: safely isBool false (configuration.config.${key} or false);

  # Older states of nixpkgs describe platforms by patterns of parsed names.
  platformName = platform: if isAttrs platform then platform.kernel.name or platform.cpu.name or null else platform;

  # What an explanation of a flaw needs, with bounds; each text is optional.
  grounds =
    meta: derivation:
    let
      texts =
        values:
        let
          strings = filter isString (safely isList [ ] values);
          few = genList (elemAt strings) (if length strings < limits.grounds then length strings else limits.grounds);
        in
        map (substring 0 limits.ground) few;
      bounded = text: if stringLength text <= limits.name then text else "";
      fullName = bounded (safely isString "" (derivation.name or ""));
    in
    {
      inherit fullName;
      pname = bounded (safely isString "" (derivation.pname or (parseDrvName fullName).name));
      licences = texts (licence (meta.license or [ ]));
      vulnerabilities = texts (meta.knownVulnerabilities or [ ]);
      platforms = texts (map platformName (safely isList [ ] (meta.platforms or [ ])));
      configurable = declared ? config;
    };

  describe =
    derivation:
    let
      meta = safely isAttrs { } (removeUnprintable (derivation.meta or { }));
      derivationPath = tryEval derivation.drvPath;
      existing = safely isList [ "out" ] (derivation.outputs or [ "out" ]);
      own = safely isString "out" (derivation.outputName or "out");
      toInstall =
        if derivation.outputSpecified or false then [ own ] else safely isList [ own ] (meta.outputsToInstall or [ own ]);
      outputs = let wanted = filter (output: elem output existing) toInstall; in if wanted == [ ] then [ own ] else wanted;
      fullName = parseDrvName (safely isString "package" (derivation.name or "package"));
    in
    if !derivationPath.success then
      { status = flaw meta; grounds = grounds meta derivation; }
    else
      let
        found = {
          derivation = if isString derivationPath.value then derivationPath.value else "";
          outputs = listToAttrs (
            map (output: { name = output; value = "${(derivation.${output} or derivation).outPath}"; }) outputs
          );
          pname = safely isString fullName.name (derivation.pname or fullName.name);
          version = safely isString fullName.version (derivation.version or fullName.version);
          description = if stringLength description > limits.description then "" else description;
          licences = safe [ ] (licence (meta.license or [ ]));
          mainProgram = safely isString null (meta.mainProgram or null);
          priority = safely isInt null (meta.priority or null);
        };
        description = safely isString "" (meta.description or "");
        paths = [ found.derivation ] ++ map (output: found.outputs.${output}) outputs;
        wrong = tooLarge (
          [
            (sized "number of outputs" (length outputs) limits.outputs)
            (sized "pname" (stringLength found.pname) limits.name)
            (sized "version" (stringLength found.version) limits.name)
            (sized "meta.license" (sum found.licences + length found.licences) limits.licences)
            (sized "meta.mainProgram" (if found.mainProgram == null then 0 else stringLength found.mainProgram) limits.name)
          ]
          ++ map (output: sized "name of an output" (stringLength output) limits.name) outputs
          ++ map (path: sized "store path" (stringLength path) limits.path) paths
        );
      in
      if wrong != null then { status = "too large"; } // wrong else { status = "available"; } // found;

  # Only the fields that are read below: a whole `meta` may hold functions, derivations and values that throw.
  removeUnprintable =
    meta:
    let
      read = [
        "badPlatforms" "broken" "description" "insecure" "knownVulnerabilities" "license" "mainProgram"
        "outputsToInstall" "platforms" "priority" "unfree" "unsupported"
      ];
      kept = filter (key: hasAttr key meta && (tryEval (deepSeq meta.${key} true)).success) read;
    in
    if isAttrs meta then listToAttrs (map (key: { name = key; value = meta.${key}; }) kept) else { };

  # An image definition rather than a package: { contents = [ ... ]; config = { ... }; }
  isDefinition = value: isAttrs value && !(isDerivation value) && value ? contents;

  # One item for each derivation in nested lists. A position is its path: [ 2 0 ] is the first one of the third list.
  items =
    position: value:
    let
      tried = tryEval value;
    in
    if length position > limits.nesting then
      [ ({ status = "too large"; } // sized "number of lists within each other" (length position) limits.nesting) ]
    else if !tried.success then
      [ { status = "throws"; inherit position; } ]
    else if isList tried.value then
      concatLists (genList (i: items (position ++ [ i ]) (elemAt tried.value i)) (length tried.value))
    else if isDerivation tried.value then
      [ (describe tried.value // { inherit position; }) ]
    else
      [ { status = "not a package"; inherit position; type = typeOf tried.value; } ];

  # As data. A value that JSON cannot express is replaced by its type, so that an error can name its place.
  plain =
    value:
    if isDerivation value || typeOf value == "path" then
      plain "${value}"
    else if isString value && stringLength value > limits.text then
      oversized "string" (stringLength value) limits.text
    else if isFunction value then
      { "nixery:type" = "function"; }
    else if isAttrs value then
      let
        long = filter (key: stringLength key > limits.name) (attrNames value);
      in
      if long == [ ] then
        mapAttrs (_: plain) value
      else
        oversized "set with a name" (stringLength (head long)) limits.name
    else if isList value then
      map plain value
    else
      value;

  oversized = type: size: limit: {
    "nixery:type" = "${type} of ${toString size} bytes, and ${toString limit} is the limit";
  };

  definition =
    value:
    let
      json = toJSON (plain (removeAttrs value [ "contents" ]));
      tried = tryEval (deepSeq json json);
      context = getContext tried.value;
      # Strings know what they refer to: `Cmd = [ "${pkgs.nginx}/bin/nginx" ]` needs nginx in the image.
      installable = path: if context.${path} ? outputs then map (o: "${path}!${o}") context.${path}.outputs else [ path ];
      installables = concatLists (map installable (attrNames context));
      wrong = tooLarge [
        (sized "config" (stringLength tried.value) limits.config)
        (sized "number of references to packages" (length installables) limits.references)
        (sized "references to packages" (sum installables) (limits.references * limits.path))
      ];
    in
    if !tried.success then
      { status = "throws"; position = null; }
    else if wrong != null then
      { status = "too large"; } // wrong
    else
      {
        status = "definition";
        definition = unsafeDiscardStringContext tried.value;
        inherit installables;
      };

  report =
    name:
    let
      found = lookUp name;
      tried = tryEval found.value;
      path = joinPath found.path;
    in
    if found.kind == "missing" then
      [ { inherit name; status = "missing"; within = joinPath found.within; } ]
    else if found.kind == "throws" || !tried.success then
      [ { inherit name; attribute = path; status = "throws"; position = [ ]; } ]
    else
      let
        is =
          attribute: found:
          let
            wrong = tooLarge [ (sized "number of contents" (length found) limits.contents) ];
            flaws = filter (item: item.status != "available" && item.status != "definition") found;
            few = genList (elemAt flaws) (if length flaws < limits.flaws then length flaws else limits.flaws);
          in
          map (item: item // { inherit name attribute; }) (
            if wrong != null then
              [ ({ status = "too large"; } // wrong) ]
            else if flaws == [ ] then
              found
            else
              few
          );
      in
      if isDefinition tried.value then
        is path [ (definition tried.value) ] ++ is "${path}.contents" (items [ ] tried.value.contents)
      else
        is path (items [ ] tried.value);

  wanted = concatLists (map report arguments.packages);
  optional = filter (package: package.status != "missing") (concatLists (map report arguments.optional));

  # Not guarded, so that Nix prints the error.
  diagnose =
    { name, position }:
    let
      value = (lookUp name).value;
      contents = if isDefinition value then value.contents else value;
    in
    if position == null then
      deepSeq (plain (removeAttrs value [ "contents" ])) true
    else
      (foldl' elemAt contents position).drvPath;

  # The names in the set, for "did you mean"; evaluated only when needed.
  allMissing = filter (package: package.status == "missing") wanted;
  missing = genList (elemAt allMissing) (
    if length allMissing < limits.nearNames then length allMissing else limits.nearNames
  );
  names = listToAttrs (
    map (
      package:
      let
        within = (lookUp package.name).value;
      in
      { name = package.within; value = if isAttrs within && !isDerivation within then filter (name: stringLength name <= limits.attribute) (attrNames within) else [ ]; }
    ) missing
  );
in
if arguments.diagnose or null != null then
  diagnose arguments.diagnose
else
  seq (attrNames set) { packages = wanted ++ optional; inherit names; }
