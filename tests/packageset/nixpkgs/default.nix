# Like nixpkgs: a function of `config` and `overlays` that refuses packages by their meta-data, in the words of its
# check-meta.nix, and with the path of the package set in them.
{
  system,
  config ? { },
  overlays ? [ ],
}:
let
  inherit (builtins) concatStringsSep elem foldl' isList;

  package =
    {
      name,
      version ? "1.0",
      meta ? { },
      dependency ? "",
    }:
    let
      fullName = "${name}-${version}";
      found = {
        pname = name;
        inherit version meta;
        name = fullName;
      };
      built = derivation {
        system = builtins.currentSystem;
        name = fullName;
        builder = "/bin/sh";
        args = [ "-e" "-c" "mkdir -p $out/share; echo ${name} for ${system} $dependency > $out/share/${name}" ];
        PATH = "/usr/bin:/bin";
        inherit dependency;
      };
      licences = if isList (meta.license or [ ]) then meta.license or [ ] else [ meta.license ];
      problem =
        if
          builtins.any (licence: !(licence.free or true)) licences
          && !(config.allowUnfree or false)
          && !((config.allowUnfreePredicate or (_: false)) found)
        then
          "has an unfree license (‘${(builtins.head licences).shortName}’)"
        else if (meta.broken or false) && !(config.allowBroken or false) then
          "is marked as broken"
        else if !(elem system (meta.platforms or [ system ])) && !(config.allowUnsupportedSystem or false) then
          "is not available on the requested hostPlatform"
        else if (meta.knownVulnerabilities or [ ]) != [ ] && !(elem fullName (config.permittedInsecurePackages or [ ])) then
          "is marked as insecure"
        else
          null;
      issues = concatStringsSep "\n" (map (issue: " - ${issue}") (meta.knownVulnerabilities or [ ]));
      message = ''
        Package ‘${fullName}’ in ${toString ./default.nix}:12 ${problem}, refusing to evaluate.


        Known issues:
        ${issues}

        a) To temporarily allow it, you can use an environment variable
        ${concatStringsSep "\n" (builtins.genList (n: "   line ${toString n} of advice") 40)}
      '';
      checked = value: if problem == null then value else throw message;
    in
    built
    // found
    // {
      drvPath = checked built.drvPath;
      outPath = checked built.outPath;
    };

  unfree = {
    shortName = "unfreeRedistributable";
    free = false;
  };

  base = self: {
    hello = package { name = "hello"; };
    unrar = package {
      name = "unrar";
      version = "5.5.8";
      meta.license = unfree;
    };
    archiver = package {
      name = "archiver";
      dependency = self.unrar;
    };
    slack = package {
      name = "slack";
      meta.license = [ { shortName = "unfree"; free = false; } ];
    };
    openssl = package {
      name = "openssl";
      version = "1.0.2u";
      meta.knownVulnerabilities = [ "CVE-2022-0778" "it is no longer maintained" ];
    };
    bad = package {
      name = "bad";
      meta.broken = true;
    };
    cctools = package {
      name = "cctools";
      meta.platforms = [ "x86_64-darwin" "aarch64-darwin" ];
    };
    # Its name would be a command if a user copied the advice into a shell.
    hostile = package { name = "hostile"; meta.license = unfree; } // { pname = "x' ; touch /tmp/gone ; '"; };

    # ---- errors of Nix
    throwing = throw "throwing was removed in ${toString ./default.nix}, see https://example.org/removed and /etc/passwd";
    aborting = abort "aborting gave up";
    missing-argument = ({ needed, other }: needed) { needed = 1; };
    recursive = (let loop = { one = loop.two; two = loop.one; }; in loop).one;
    overflowing = let deep = n: 1 + deep (n + 1); in deep 0;
    near = (base self).helo;
    undefined = import ./undefined.nix;
    unreadable = builtins.readFile (toString ./. + "/../secret-directory/key");
    forging = throw "fine\n\nerror: forged\r\n       at /etc/passwd:1:2:\n end";
  };

  extended = foldl' (
    set: overlay: self:
    let
      previous = set self;
    in
    previous // overlay self previous
  ) base overlays;
  self = extended self;
in
self
