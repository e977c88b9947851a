# Attributes whose names an image name cannot have as they are: for the rule of spellings, and for builds with them.
{ system }:
let
  program =
    name: text:
    derivation {
      inherit name;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [
        "-e"
        "-c"
        ''
          mkdir -p $out/bin
          echo '#!/bin/sh' > $out/bin/${name}
          echo 'echo ${text}' >> $out/bin/${name}
          chmod +x $out/bin/${name}
        ''
      ];
      PATH = "/usr/bin:/bin";
    }
    // { pname = name; };

  # One derivation for each name: what it is called at the top, or inside a set, says which one was selected.
  hostile = [
    # ---- characters
    "libstdc++6" "g++" "g++-12" "g++.old" "@angular" "@angular/cli" "x@angular" "a@b" "a/b" "a~b" "a,b" "!" "~" "x~" "+" "x+" "a b"
    "café" "\"quoted\"" "\\" "$" "#" "%"
    # ---- case
    "ShellCheck" "Exact" "exact" "eXact" "FOO" "FoO" "Foo+" "fOO+" "libX11" "R" "r+" "R+"
    # ---- separators
    "_leading" "__leading" "trailing_" "trailing-" "-leading" ".leading" "trailing." "a_b" "a__b" "a___b" "a-_b" "a--b"
    "a--b+" "a_+" "a+_b" "a+-b" "a..b" "_" "__" "-"
    # ---- digits
    "_1password" "1password" "_7zip" "_7Zip+" "7" "_7" "_8" "9" "0ad+"
    # ---- dots
    "python3.11" "Python3.12" "python3" "a.b.c"
    # ---- names that look like escapes
    "a__2b" "a+" "b__2b" "c__2B" "c+" "x__40literal" "@literal" "__2b" "x__2b" "d__7f" "d__20" "e__1f" "f__20" "f " "e__zz" "x+marked" "+marked"
    # ---- meta-packages
    "shell" "amd64" "arm64" "library" "x"
  ];
  named = prefix: builtins.listToAttrs (
    map (name: { inherit name; value = program "selected" "${prefix}${builtins.hashString "sha256" name}"; }) hostile
  );
in
named "top-"
// {
  nested = named "nested-" // { deeper = named "deeper-"; };
  "Nested+" = named "escaped-";
  hello = program "hello" "hello";
}
