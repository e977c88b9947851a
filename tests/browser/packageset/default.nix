# The package set of the browser tests: a few packages with text to show, one that takes its time and one that fails.
{ system, salt ? "none" }:
let
  package =
    name: version: description: licence: script:
    derivation {
      system = builtins.currentSystem;
      name = "${name}-${version}";
      builder = "/bin/sh";
      args = [ "-e" "-c" script ];
      PATH = "/usr/bin:/bin";
      nixeryTestSalt = salt;
    }
    // { pname = name; inherit version; meta = { inherit description; license.spdxId = licence; }; };

  # Large enough to stand out on a map, and incompressible.
  sized = count: "mkdir -p $out/share; head -c ${toString count} /dev/urandom > $out/share/$name; echo built $name";
in
rec {
  # For the completion.
  alphatools =
    let tools = package "alphatools" "1.0" "Tools for the first letter" "MIT" (sized 1000); in
    tools // { meta = tools.meta // { mainProgram = "alphactl"; homepage = "https://alpha.example/"; platforms = [ "x86_64-linux" "aarch64-linux" ]; }; };
  aliasofalphabet = alphabet;
  alphaunfree = package "alphaunfree" "6" "All letters, for a fee" "Unfree" (sized 1000) // {
    drvPath = throw "unfree";
    meta = { description = "All letters, for a fee"; unfree = true; };
  };
  "alpha++" = package "alpha++" "17" "The first letter, incremented" "MIT" (sized 1000);
  images.web = { contents = [ beta gamma ]; config.Cmd = [ "web" ]; meta.description = "Serves letters"; };
  letters = [ alpha [ beta ] ];
  failing = builtins.abort "no value today";

  alpha = package "alpha" "1.2.3" "The first letter" "MIT" (sized 600000);
  alphabet = package "alphabet" "2.0" "All letters, in their order" "BSD-3-Clause" (sized 350000);
  beta = package "beta" "0.9" "The second letter" "Apache-2.0" (sized 220000);
  gamma = package "gamma" "3.1" "The third letter" "GPL-3.0-only" (sized 90000);
  delta = package "delta" "4.0" "The fourth letter" "MIT" (sized 40000);
  slow = package "slow" "1.0" "Takes a few seconds and says so" "MIT" ''
    for step in 1 2 3 4 5 6 7 8; do echo "step $step of 8"; sleep 0.5; done
    mkdir $out; echo slow > $out/slow
  '';
  gradual = package "gradual" "1.0" "Takes as long" "MIT" ''
    for step in 1 2 3 4 5 6 7 8; do echo "step $step of 8"; sleep 0.5; done
    mkdir $out; echo gradual > $out/gradual
  '';
  # Runs until the server ends.
  endless = package "endless" "1.0" "Never ends" "MIT" "echo compiling; sleep 3600";
  verbose = package "verbose" "1.0" "Fails after many lines" "MIT" "for line in $(seq 30); do echo part $line; done; echo 'error: no semicolon'; exit 1";
  hostile = package "hostile" "1.0" "<img src=x onerror=alert(1)>" "MIT" ''
    echo "compiling <b>everything</b>"
    echo "<script>document.title = 'owned'; document.body.dataset.owned = 1</script>"
    sleep 1
    echo "</pre><script>document.title = 'owned'</script>"
    exit 1
  '';
}
