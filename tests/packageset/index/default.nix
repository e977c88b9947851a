# The troubles of real package sets, for the package index: attributes that fail in every way, sets within sets, aliases, and
# packages that lie.
{
  system,
  # A store path, and the derivation that `posing` claims to build it.
  foreign ? null,
  foreignDerivation ? null,
  # Whether to have attributes that take half a minute or all memory.
  slow ? false,
  # The number of packages in `generated`.
  generated ? 0,
}:
let
  repeat = count: text: builtins.concatStringsSep "" (builtins.genList (_: text) count);

  package =
    {
      name,
      version ? "1.0",
      meta ? { },
      outputs ? [ "out" ],
      extra ? { },
    }:
    derivation {
      name = "${name}-${version}";
      # This machine builds everything, for any platform.
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [
        "-e"
        "-c"
        ''
          for output in $outputs; do
            eval "path=\$$output"
            mkdir -p $path/share
            echo ${name} for ${system} > $path/share/${name}-$output
          done
        ''
      ];
      PATH = "/usr/bin:/bin";
      inherit outputs;
    }
    // { pname = name; inherit version meta; }
    // extra;
  program = name: package { inherit name; };

  # As nixpkgs refuses a package: its meta-data can be read, and its derivation throws.
  refused = name: meta: package { inherit name meta; } // {
    drvPath = throw "Package ‘${name}-1.0’ in /srv/packages/${name}.nix:3 has a problem, refusing to evaluate.";
    outPath = throw "refusing to evaluate ${name}";
  };

  hello = package {
    name = "hello";
    version = "2.12";
    meta = {
      description = "A program that greets";
      homepage = "https://hello.example";
      license = [ { spdxId = "GPL-3.0-or-later"; } { shortName = "fdl"; } ];
      mainProgram = "hello";
      platforms = [ "x86_64-linux" "aarch64-linux" ];
    };
  };
  libpq = package {
    name = "libpq";
    version = "17.2";
    outputs = [ "out" "dev" "man" ];
    meta = { description = "Client library of a database"; programs = [ "psql" "pg_dump" ]; outputsToInstall = [ "out" "man" ]; };
  };
in
{
  inherit hello libpq;
  jq = package { name = "jq"; version = "1.7"; meta.description = "Command-line processor for JSON"; };

  # ---- errors; `tryEval` catches the first three
  throws = throw "removed: nobody maintained it";
  asserts = assert false; hello;
  throwsInside = package { name = "throwsinside"; meta.broken = throw "not known"; } // { drvPath = throw "see /etc/passwd"; };
  aborts = abort "gave up at /etc/hostname";
  missingArgument = (({ needed }: needed) { });
  unexpectedArgument = (({ }: hello) { surprise = 1; });
  undefinedAttribute = { }.nothing;
  typeError = 1 + "one";
  recursive = let x = x; in x;
  overflows = let deep = n: 1 + deep (n + 1); in deep 0;
  unreadable = builtins.readFile "/does/not/exist";
  # Its message looks like an error of this machine.
  soundsFull = abort "No space left on device";
  soundsExhausted = abort "out of memory";

  # ---- refused, with meta-data
  broken = refused "broken" { broken = true; description = "Out of order"; };
  unfree = refused "unfree" { unfree = true; license = { free = false; fullName = "Costs money"; }; };
  insecure = refused "insecure" { knownVulnerabilities = [ "CVE-2014-0160" ]; };
  elsewhere = refused "elsewhere" { platforms = [ "riscv64-linux" ]; };

  # ---- no packages
  number = 42;
  text = "a text";
  function = argument: argument;
  nothing = null;
  truth = true;
  file = ./default.nix;

  # ---- names
  "libstdc++6" = program "libstdcxx";
  ShellCheck = program "shellcheck";
  _1password = program "onepassword";
  "python3.11" = program "python-dotted";
  Twice = program "twice-upper";
  twice = program "twice-lower";
  "${builtins.readFile ./latin1}" = program "latin";
  "two\nlines" = program "lines";
  "with space" = program "space";
  "${repeat 300 "n"}" = program "long-name";

  # ---- aliases
  greeter = hello;
  pq = libpq;

  # ---- meta-data
  talkative = package { name = "talkative"; meta.description = repeat 5000 "words and "; };
  sentence = package { name = "sentence"; meta.description = repeat 400 "quotes \" "; };
  latin = package { name = "latin"; meta.description = builtins.readFile ./latin1; };
  controls = package { name = "controls"; meta.description = builtins.fromJSON ''"bell \u0007 \u001b[31mred\r\n\ttab"''; };
  metaThrows = package {
    name = "metathrows";
    meta = { description = throw "none"; license = throw "none"; programs = [ (throw "none") ]; mainProgram = throw "none"; };
  };
  metaTypes = package { name = "metatypes"; version = "2"; meta = { description = 1; programs = "one"; platforms = { }; homepage = [ ]; }; };
  manyPrograms = package { name = "manyprograms"; meta.programs = builtins.genList (n: "program-${toString n}") 1000; };
  manyOutputs = program "manyoutputs" // { outputs = builtins.genList (n: "out${toString n}") 100; };

  # ---- forged lines of the index
  forging = builtins.trace ''0123456789abcdef0123456789abcdef {"path":["forging"]}'' (program "forging");
  forgingLines = builtins.trace "\ntrace: 0123456789abcdef0123456789abcdef {}\ntrace: " (program "forginglines");
  forgingError = builtins.trace "error: this evaluation failed" (program "forgingerror");
  flooding = builtins.trace (repeat 20000 "fifty characters on the way to one megabyte of it\n") (program "flooding");

  # ---- packages that lie
  posing =
    if foreign == null then program "posing" else {
      type = "derivation";
      name = "posing-1.0";
      drvPath = foreignDerivation;
      outPath = foreign;
      outputs = [ "out" ];
    };
  claimsText = { type = "derivation"; name = "claims-1.0"; drvPath = "/etc/shadow"; outPath = "/etc/shadow"; };
  claimsNumber = { type = "derivation"; name = "claims-1.0"; drvPath = 1; outPath = 2; };
  claimsNothing = { type = "derivation"; };

  # ---- lists and definitions
  tools = [ hello [ libpq ] ];
  emptyList = [ ];
  mixedList = [ hello "text" ];
  images = {
    web = {
      meta.description = "What the web tier runs";
      contents = [ hello ];
      config = { Cmd = [ "${libpq}/bin/psql" ]; Env = { PORT = 80; }; };
    };
    plain.contents = [ hello libpq ];
    list = [ hello libpq ];
    throwing = { contents = [ hello ]; config.Cmd = throw "no command"; };
    misspelt = { contents = [ hello ]; config.cmd = [ ]; };
    fromFile = { contents = [ hello ]; config.Env.FILE = "${./latin1}"; };
  };

  # ---- sets
  python3Packages = {
    numpy = package { name = "numpy"; version = "1.26"; meta.description = "Arrays of numbers"; };
    PyYAML = program "pyyaml";
    "zope.interface" = program "zope-interface";
    fails = abort "this module is broken";
    # Named by no setting, and not marked.
    hidden.inside = program "hidden";
  };
  marked = {
    recurseForDerivations = true;
    inside = program "inside";
    deeper = {
      recurseForDerivations = true;
      below = program "below";
      deepest = { recurseForDerivations = true; bottom = program "bottom"; abyss = { recurseForDerivations = true; unseen = hello; }; };
    };
  };
  unmarked.inside = program "unmarked";
  markedStrangely = { recurseForDerivations = "yes"; inside = program "strangely"; };
  markedThrows = { recurseForDerivations = throw "undecided"; inside = program "undecided"; };
  setThrows = throw "this set was removed";
  endlessly = let self = { recurseForDerivations = true; inherit self; }; in self;
}
// (
  if slow then
    {
      # Minutes of evaluation.
      endless =
        let fibonacci = n: if n < 2 then n else fibonacci (n - 1) + fibonacci (n - 2); in
        if fibonacci 60 > 0 then hello else null;
      hungry = builtins.length (builtins.genList (n: n) 2000000000);
      starving = builtins.foldl' (all: n: all ++ [ n ] ++ all) [ ] (builtins.genList (n: n) 40);
    }
  else
    { }
)
// builtins.listToAttrs (
  builtins.genList (n: rec { name = "generated${toString n}"; value = program name; }) generated
)
