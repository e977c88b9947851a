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
  # JSON: { packages : [ name ], optional : [ name ], diagnose : { name, position } or null, metaPackages : table }
  request,
  # From the command line alone: one more attribute, `name`. The server has none.
  name ? null,
  expression ? null,
}:
let
  inherit (builtins)
    all attrNames concatLists concatStringsSep deepSeq elem elemAt filter foldl' fromJSON functionArgs genList
    getContext hasAttr head isAttrs isBool isFunction isInt isList isString length listToAttrs map mapAttrs match
    parseDrvName replaceStrings seq split stringLength substring toJSON trace tryEval typeOf
    unsafeDiscardStringContext;

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
    attribute = 255; # of a suggested or listed name, or of a spelling: clients cannot request longer ones
    metaPackages = 64; # of the set's own table
    metaName = 64; # of one of them
    metaContents = 200; # names that it stands for, each with the length of a name
    command = 16; # words of its command, likewise
    facts = 32; # of the set about itself
    fact = 1000; # one of them
    # The index leaves out longer values.
    homepage = 1024;
    programs = 200;
    program = 64; # also the name of a platform
    platforms = 100;
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

  # The spelling of attributes in image names. `image/spelling.py` has the same rule, and explains it.
  prefixes = [ "amd64" "arm64" "shell" ];
  component = "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*";
  escape = "__([2-6][0-9a-f]|7[0-9a-e])";
  charactersOf = text: genList (i: substring i 1 text) (stringLength text);
  # 0x20 to 0x7e
  escapable = charactersOf (
    " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"
  );
  digit = value: substring value 1 "0123456789abcdef";
  hexadecimal = code: digit (code / 16) + digit (code - code / 16 * 16);
  codes = genList (i: { code = hexadecimal (32 + i); character = elemAt escapable i; }) (length escapable);
  characterOf = listToAttrs (map (entry: { name = entry.code; value = entry.character; }) codes);
  escapeOf = listToAttrs (map (entry: { name = entry.character; value = "__${entry.code}"; }) codes);
  literal = listToAttrs (map (name: { inherit name; value = null; }) (charactersOf "0123456789abcdefghijklmnopqrstuvwxyz"));
  isSeparator = character: character == "_" || character == "-";

  decoded =
    part:
    concatStringsSep "" (map (piece: if isString piece then piece else characterOf.${head piece}) (split escape part));
  hasEscape = part: decoded part != part;
  escapedCharacter = character: escapeOf.${character} or character;
  marked = attribute: "x" + concatStringsSep "" (map escapedCharacter (charactersOf attribute));
  encoded =
    attribute:
    let
      characters = charactersOf attribute;
      isLiteral = i: i < length characters && hasAttr (elemAt characters i) literal;
      # A separator between two characters, of which the first is no separator, and the second is not escaped.
      stands =
        i: isSeparator (elemAt characters i) && i > 0 && !isSeparator (elemAt characters (i - 1)) && isLiteral (i + 1);
      part = concatStringsSep "" (
        genList (
          i: let character = elemAt characters i; in if isLiteral i || stands i then character else escapedCharacter character
        ) (length characters)
      );
    in
    if substring 0 1 part == "_" then "x${part}" else part;

  # `attrNames` is sorted by bytes, so an ambiguous folding has one answer. The dictionary is made at most once. Of
  # several attributes that fold to one name, `listToAttrs` takes the first.
  foldedNames = listToAttrs (map (attribute: { name = toLower attribute; value = attribute; }) (attrNames set));
  topNames = { attributes = set; isTop = true; ofFolded = folded: foldedNames.${folded} or null; };
  # A name of 255 characters may lead into 127 sets, so there is no dictionary for each: comparing lengths first takes
  # a tenth of the time.
  nestedNames =
    attributes:
    let
      sorted = attrNames attributes;
    in
    {
      inherit attributes;
      isTop = false;
      ofFolded =
        folded:
        let
          size = stringLength folded;
        in
        firstOf null (filter (attribute: stringLength attribute == size && toLower attribute == folded) sorted);
    };

  firstOf =
    default: values:
    let
      found = filter (value: value != null) values;
    in
    if found == [ ] then default else head found;

  # The attribute that is selected by a part without escapes, or null.
  direct =
    names: part:
    let
      forms = [ part ] ++ (if match "[0-9].*" part != null then [ "_${part}" ] else [ ]);
      exact = filter (form: hasAttr form names.attributes) forms;
    in
    if exact != [ ] then head exact else firstOf null (map (form: names.ofFolded (toLower form)) forms);

  # The attribute that an escaped spelling stands for, or null.
  escaped =
    names: part:
    let
      isMarked = substring 0 1 part == "x" && hasEscape (substring 1 4 part);
      unmarked = decoded (if isMarked then substring 1 (stringLength part) part else part);
      selected =
        candidate:
        if encoded candidate != part then
          null
        else if hasAttr candidate names.attributes then
          candidate
        else if toLower candidate == candidate then
          names.ofFolded candidate
        else
          null;
      inFull = if hasAttr unmarked names.attributes && marked unmarked == part then unmarked else null;
    in
    if hasEscape part then firstOf inFull (map selected [ unmarked (decoded part) ]) else null;

  # The part that selects an attribute of printable ASCII, or null.
  spell =
    names: attribute:
    let
      folded = toLower attribute;
      short = if match "_[0-9].*" folded != null then substring 1 (stringLength folded) folded else folded;
      # A dot leads into a set, except in a whole name of the package set.
      hasDot = match ".*\\..*" short != null;
      canBePlain =
        stringLength short <= limits.attribute
        && match component short != null
        && (if hasDot then names.isTop && short == attribute else !(names.isTop && elem short prefixes));
      chosen = part: let found = direct names part; in if found == null then escaped names part else found;
      selects = part: stringLength part <= limits.attribute && hasEscape part && chosen part == attribute;
    in
    if canBePlain && direct names short == attribute then
      short
    else
      firstOf null (filter selects [ (encoded folded) (encoded attribute) (marked attribute) ]);

  # The attribute that a component without dots selects, or null. An attribute has one spelling, so that a client
  # cannot make an image for each of many.
  select =
    names: part:
    let
      found = direct names part;
      written = escaped names part;
    in
    if found != null then
      found
    else if written != null && spell names written == part then
      written
    else
      null;

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
        isOutput = isDerivation outer.value && elem attribute (safely isList [ ] (outer.value.outputs or [ "out" ]));
        attribute = if isAttrs outer.value then select (nestedNames outer.value) component else null;
      in
      if !outer.success then
        { kind = "throws"; inherit (state) path; }
      else if attribute != null && !(state.isOutput or false) then
        { kind = "found"; value = outer.value.${attribute}; path = state.path ++ [ attribute ]; inherit isOutput; }
      else
        { kind = "missing"; within = state.path; value = outer.value; };

  # ---- What the set says of itself, in its attribute `nixery`; and meta-packages

  # A name in requests and paths that begins with a dot is nixery's own: clients cannot write one.
  factsName = ".facts";
  shellName = ".shell";
  reservedSet = ".nixery"; # in paths of the index: the facts and the meta-packages

  attributesOf = value: let tried = tryEval value; in if tried.success && isAttrs tried.value && !(isDerivation tried.value) then tried.value else { };

  # nixpkgs may have a package of this name.
  said = attributesOf (set.nixery or { });

  # What os-release(5) gets. Of nixpkgs, only what is the same for each commit of a release: the file is in the last
  # layer of every image.
  facts =
    let
      release = safely isString "" (set.lib.trivial.release or "");
      codeName = safely isString "" (set.lib.trivial.codeName or "");
      version = release + (if codeName == "" then "" else " (${codeName})");
      ofNixpkgs = {
        ID = "nixpkgs";
        ID_LIKE = "nixos";
        NAME = "nixpkgs";
        VERSION = version;
        VERSION_ID = release;
      }
      // (if codeName == "" then { } else { VERSION_CODENAME = toLower codeName; });
      given = if said ? osRelease then attributesOf said.osRelease else if release == "" then { } else ofNixpkgs;
      # One character more than a value may have: the error comes from the check of the values (image/os_release.py).
      textOf = key: unsafeDiscardStringContext (substring 0 (limits.fact + 1) (safely isString "" given.${key}));
      keys = filter (key: stringLength key <= limits.name) (attrNames given);
    in
    listToAttrs (map (name: { inherit name; value = textOf name; }) (few limits.facts keys));

  # Those of every set, in full; and those of this set, as it wrote them.
  defaultMetaPackages = arguments.metaPackages or { };
  ownMetaPackages =
    let
      own = attributesOf (said.metaPackages or { });
      isName = name: match "[a-z0-9]+((_|__|-+)[a-z0-9]+)*" name != null && stringLength name <= limits.metaName && name != "amd64" && name != "arm64";
      names = few limits.metaPackages (filter isName (attrNames own));
    in
    listToAttrs (map (name: { inherit name; value = own.${name}; }) names);

  # Those that a component of an image name can select; `shell` has its meaning at the beginning alone.
  metaNames = filter (name: name != "shell") (attrNames (defaultMetaPackages // ownMetaPackages));

  # The attribute at a path, exactly as written: { exists, value }.
  exactly =
    path:
    let
      step =
        found: part:
        let
          outer = tryEval (if found.exists then found.value else null);
        in
        # One that throws exists: an evaluation of it says why.
        if !outer.success then
          found
        else if isAttrs outer.value && hasAttr part outer.value then
          { exists = true; value = outer.value.${part}; }
        else
          { exists = false; value = null; };
      start = { exists = true; value = set; };
    in
    if hasAttr path set then { exists = true; value = set.${path}; } else foldl' step start (filter isString (split "\\." path));

  # { wrong : field or null, lacking : [ path ], paths : [ path ], command, description }. Fields that the set leaves
  # out are those of nixery's own meta-package of that name.
  metaPackage =
    name:
    let
      tried = tryEval (ownMetaPackages.${name} or { });
      own = if isList tried.value then { packages = tried.value; optional = [ ]; } else tried.value;
      given = (defaultMetaPackages.${name} or { }) // own;
      areTexts = most: list: isList list && length list <= most && all (text: isString text && stringLength text <= limits.name) list;
      texts = most: field: safely (areTexts most) null (given.${field} or [ ]);
      required = texts limits.metaContents "packages";
      optional = texts limits.metaContents "optional";
      command = texts limits.command "command";
      description = safely isString null (given.description or "");
      unknown = filter (field: !(elem field [ "packages" "optional" "command" "description" ])) (attrNames own);
      wrong =
        if !tried.success || !(isAttrs own) || isDerivation own then
          ""
        else if unknown != [ ] then
          substring 0 limits.metaName (head unknown)
        else
          firstOf null [
            (if required == null then "packages" else null)
            (if optional == null then "optional" else null)
            (if command == null then "command" else null)
            (if description == null || stringLength description > limits.description then "description" else null)
          ];
      isAvailable =
        path:
        let
          found = exactly path;
          made = items [ ] found.value;
        in
        found.exists && made != [ ] && all (item: item.status == "available") made;
    in
    if wrong != null then
      { inherit wrong; paths = [ ]; lacking = [ ]; command = [ ]; description = ""; }
    else
      {
        inherit wrong command description;
        lacking = filter (path: !(exactly path).exists) required;
        # An optional package that the set refuses is left out like one that it lacks.
        paths = required ++ filter isAvailable optional;
      };

  ofMetaPackage =
    name:
    let
      found = metaPackage name;
    in
    { kind = "meta-package"; path = [ name ]; value = map (path: (exactly path).value) found.paths; inherit found; };

  ofFacts = { kind = "facts"; path = [ factsName ]; value = null; };

  lookUp =
    name:
    let
      components = filter isString (split "\\." name);
      top = select topNames (head components);
      rest = genList (i: elemAt components (i + 1)) (length components - 1);
      found = attribute: { kind = "found"; value = set.${attribute}; path = [ attribute ]; };
    in
    if name == factsName then
      ofFacts
    else if name == shellName then
      ofMetaPackage "shell"
    # A set may have attributes with dots in their names (`python3.11`); those win over a way into a set.
    else if hasAttr name set then
      found name
    else if top == null && elem name metaNames then
      ofMetaPackage name
    else if top == null then
      { kind = "missing"; within = [ ]; value = set; }
    else
      foldl' enter (found top) rest;

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
          fhs = safely isBool false (meta.fhs or false);
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
        "badPlatforms" "broken" "description" "fhs" "insecure" "knownVulnerabilities" "license" "mainProgram"
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
      json = toJSON (plain (removeAttrs value [ "contents" "meta" ]));
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

  report = name: reportFound name (lookUp name);

  reportFound =
    name: found:
    let
      tried = tryEval found.value;
      path = joinPath found.path;
    in
    if found.kind == "facts" then
      [ { inherit name; status = "facts"; osRelease = facts; } ]
    else if found.kind == "meta-package" then
      reportMetaPackage name path found.found
    else if found.kind == "missing" then
      [ { inherit name; status = "missing"; within = toJSON found.within; depth = length found.within; } ]
    else if found.kind == "throws" || !tried.success then
      [ { inherit name; attribute = path; status = "throws"; position = [ ]; } ]
    else
      if isDefinition tried.value then
        named name path [ (definition tried.value) ]
        ++ named name "${path}.contents" (items [ ] tried.value.contents)
      else
        named name path (items [ ] tried.value);

  # Items of one attribute; if some of them are not available, the first of those.
  named =
    name: attribute: found:
    let
      wrong = tooLarge [ (sized "number of contents" (length found) limits.contents) ];
      flaws = filter (item: item.status != "available" && item.status != "definition") found;
    in
    map (item: item // { inherit name attribute; }) (
      if wrong != null then
        [ ({ status = "too large"; } // wrong) ]
      else if flaws == [ ] then
        found
      else
        few limits.flaws flaws
    );

  # Positions of its items begin with the number of the path; `entry` is the path itself.
  reportMetaPackage =
    name: attribute: found:
    let
      of = index: let entry = elemAt found.paths index; in map (item: item // { inherit entry; }) (items [ index ] (exactly entry).value);
    in
    if found.wrong != null then
      [ { inherit name attribute; status = "invalid meta-package"; field = found.wrong; } ]
    else if found.lacking != [ ] then
      [ { inherit name attribute; status = "incomplete"; lacking = few limits.flaws found.lacking; } ]
    else
      [ { inherit name attribute; status = "meta-package"; inherit (found) command; } ]
      ++ named name attribute (concatLists (genList of (length found.paths)));

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
      deepSeq (plain (removeAttrs value [ "contents" "meta" ])) true
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
      { name = package.within; value = if isAttrs within && !isDerivation within then filter (name: stringLength name <= limits.attribute) (attrNames within) ++ (if package.depth == 0 then metaNames else [ ]) else [ ]; }
    ) missing
  );

  # ---- The package index (nixery.nix.indexing)

  # The attribute at a path, as `reportFound` expects it.
  at =
    path:
    let
      value = foldl' (outer: name: outer.${name}) set path;
    in
    if isReserved path then
      let name = elemAt path 1; in
      if name == factsName then ofFacts else ofMetaPackage (if name == shellName then "shell" else name)
    else
      { kind = "found"; inherit value path; };
  isReserved = path: length path == 2 && head path == reservedSet;

  # The names in a set; null if it is none. One that throws is none.
  namesOf =
    path:
    let
      tried = tryEval (foldl' (outer: name: if isAttrs outer then outer.${name} or null else null) set path);
    in
    if path == [ reservedSet ] then
      [ factsName shellName ] ++ metaNames
    else if tried.success && isAttrs tried.value && !isDerivation tried.value then
      filter (name: stringLength name <= limits.attribute) (attrNames tried.value)
    else
      null;

  shorter = limit: text: if stringLength text > limit then "" else text;
  few = limit: list: genList (elemAt list) (if length list < limit then length list else limit);
  strings = limit: longest: list: few limit (filter (text: isString text && stringLength text <= longest) list);

  # What people read about a package, whether it is available or not.
  about =
    value:
    let
      meta = safely isAttrs { } (value.meta or { });
      read = isWanted: fallback: field: safely isWanted fallback (meta.${field} or fallback);
      fullName = parseDrvName (safely isString "" (value.name or ""));
      homepage = safe "" (let found = meta.homepage or ""; in if isList found && found != [ ] then head found else found);
      outputs = strings limits.outputs limits.name (safely isList [ "out" ] (value.outputs or [ "out" ]));
      pathOf = output: safely isString "" (unsafeDiscardStringContext "${(value.${output} or value).outPath}");
    in
    {
      pname = shorter limits.name (safely isString fullName.name (value.pname or fullName.name));
      version = shorter limits.name (safely isString fullName.version (value.version or fullName.version));
      description = shorter limits.description (read isString "" "description");
      homepage = if isString homepage then shorter limits.homepage homepage else "";
      licences = let found = safe [ ] (licence (meta.license or [ ])); in if sum found > limits.licences then [ ] else found;
      mainProgram = shorter limits.name (read isString "" "mainProgram");
      programs = strings limits.programs limits.program (read isList [ ] "programs");
      platforms = strings limits.platforms limits.program (read isList [ ] "platforms");
      outputs = filter (output: output.path != "") (
        map (name: { inherit name; path = shorter limits.path (pathOf name); }) (if isDerivation value then outputs else [ ])
      );
    };

  # An attribute: what a request for it would get, what people read about it, and whether it is a set of packages,
  # as nixpkgs marks them.
  entry =
    path:
    let
      found = at path;
      tried = tryEval found.value;
      value = if tried.success then tried.value else null;
      isSet = isAttrs value && !isDerivation value && !isDefinition value;
    in
    if isReserved path then
      {
        inherit path;
        inherit (found) kind;
        items = reportFound "" found;
        about = if found.kind == "facts" then null else about { meta = { inherit (found.found) description; }; };
        recurse = false;
      }
    else
    {
      inherit path;
      items = if isSet then [ ] else reportFound "" found;
      kind = if isSet then "set" else if isDefinition value then "definition" else if isList value then "list" else "package";
      about = if isSet || !isAttrs value then null else about value;
      recurse = isSet && safely isBool false (value.recurseForDerivations or false);
    };
in
if arguments.diagnose or null != null then
  diagnose arguments.diagnose
else if arguments ? sets then
  map namesOf arguments.sets
else if arguments ? index then
  foldl' (done: path: trace "${arguments.mark} ${toJSON (entry path)}" done) true arguments.index
else
  seq (attrNames set) { packages = wanted ++ optional; inherit names; }
