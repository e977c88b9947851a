# All of Debian's packages as Nix derivations, evaluated from the lock that lock.py writes beside this file.
#
#   (import ./packagesets/debian { system = "aarch64-linux"; }).hello
#
# No target code runs in a build, so every derivation is built by the machine that evaluates, whatever `system` is.
{ system ? builtins.currentSystem }:

let
  indexFile = ./lock + "/${system}.json";

  index =
    if builtins.pathExists indexFile then
      builtins.fromJSON (builtins.readFile indexFile)
    else
      throw "packagesets/debian: there is no lock for ${system}; make it with: python3 packagesets/debian/lock.py --system ${system}";

  # A record is in the shard that its name hashes to (locking/names.py); each shard is read at most once.
  shardNames =
    let digits = [ "0" "1" "2" "3" "4" "5" "6" "7" "8" "9" "a" "b" "c" "d" "e" "f" ];
    in builtins.concatMap (high: map (low: high + low) digits) digits;

  shards = builtins.listToAttrs (map
    (name: {
      inherit name;
      value = builtins.fromJSON (builtins.readFile (./lock + "/${index.generation}/${name}.json"));
    })
    shardNames);

  shardOf = name: shards.${builtins.substring 0 2 (builtins.hashString "sha256" name)};

  common = {
    system = builtins.currentSystem;
    builder = "/usr/bin/python3";
    PATH = "/usr/bin:/bin:/usr/sbin:/sbin";
    LC_ALL = "C.UTF-8";
  };

  fetch = member: derivation (common // {
    name = member.name;
    args = [ "-BsE" ./fetch.py ];
    file = member.file;
    outputHash = member.sha256;
    outputHashAlgo = "sha256";
    outputHashMode = "flat";
    preferLocalBuild = true;
    impureEnvVars = [ "http_proxy" "https_proxy" "ftp_proxy" "all_proxy" "no_proxy" ];
  });

  # Only the builder's own files, so that nothing else in this directory makes packages build again.
  builder = builtins.path {
    name = "debian-builder";
    path = ./.;
    filter = path: type:
      let name = baseNameOf path;
      in name == "build.py" || name == "building" || (baseNameOf (dirOf path) == "building" && builtins.match ".*\\.py" name != null);
  };

  buildGroup = group:
    let record = (shardOf group).groups.${group};
    in derivation (common // {
      name = record.name;
      args = [ "-BsE" "${builder}/build.py" ];
      inherit group;
      debs = map fetch record.members;
      dependencies = map (dependency: groups.${dependency}) record.dependencies;
      essential = map (dependency: groups.${dependency}) (record.essential or index.essential);
    });

  groups = builtins.listToAttrs (map (name: { inherit name; value = buildGroup name; }) index.names);

  package = pname:
    let record = (shardOf pname).packages.${pname};
    in groups.${record.group} // {
      inherit pname;
      inherit (record) name version;
      meta = {
        inherit (record) description;
        platforms = [ system ];
        # Debian's programs look for files of other packages at their places in the file system hierarchy.
        fhs = true;
        priority = record.priority or 5;
        # Names of files in bin/, for search. A lock from before lock.py read Contents indexes has none.
        programs = record.programs or [ ];
      }
      // builtins.intersectAttrs { homepage = null; mainProgram = null; unfree = null; } record;
    };

  packages = builtins.listToAttrs (map (name: { inherit name; value = package name; }) index.names);
in
packages // builtins.mapAttrs (_: name: packages.${name}) index.aliases // {
  # What nixery asks a set of itself; no package of Debian has this name.
  nixery.osRelease = index.osRelease or { };
}
