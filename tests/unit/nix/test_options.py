from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nixery.nix.configuration import PackageConfiguration
from nixery.nix.options import NixOptions
from nixery.nix.packages import Flake, NixFiles, PackageSet

VARIABLES = {"NIX_PATH": "nixpkgs=/one", "HOME": "/root"}
OPTIONS = NixOptions(environment=VARIABLES, fetching={**VARIABLES, "SSH_AUTH_SOCK": "/agent"})
SET = Path("/set")


def test_options_with_an_effect_on_results_change_the_identity() -> None:
    others = [
        replace(OPTIONS, every_command=("--option", "nix-path", "nixpkgs=/two")),
        replace(OPTIONS, import_from_derivation=True),
        replace(OPTIONS, environment={"NIX_PATH": "nixpkgs=/two"}),
        replace(OPTIONS, environment={}),
        replace(OPTIONS, configuration=PackageConfiguration("{ }")),
        replace(OPTIONS, configuration=PackageConfiguration("{ allowUnfree = true; }")),
    ]
    assert len({options.identity for options in (OPTIONS, *others)}) == len(others) + 1


def test_options_without_effect_on_results_do_not_change_the_identity() -> None:
    others = [
        replace(OPTIONS, sandbox=True),
        replace(OPTIONS, memory=1),
        replace(OPTIONS, environment={"NIX_PATH": "nixpkgs=/one", "HOME": "/home/b"}),
    ]
    assert {options.identity for options in others} == {OPTIONS.identity}


def test_a_self_contained_set_gets_no_search_path() -> None:
    found = {
        kind: OPTIONS.context(kind, 1).environment
        for kind in (NixFiles(SET, self_contained=True), NixFiles(SET, self_contained=False), Flake("x"))
    }
    assert [environment.get("NIX_PATH") for environment in found.values()] == [
        None,
        "nixpkgs=/one",
        "nixpkgs=/one",  # a pure evaluation searches nothing
    ]


def test_only_a_contained_evaluation_that_builds_nothing_gets_logins() -> None:
    kinds: dict[str, PackageSet] = {
        "restricted": NixFiles(SET, self_contained=True),
        "pure": Flake("x"),
        "directory": NixFiles(SET, self_contained=False),
        "impure": Flake("x", pure=False),
    }
    building = replace(OPTIONS, import_from_derivation=True)
    given = {
        name: tuple(
            "SSH_AUTH_SOCK" in options.context(kind, 1).environment for options in (OPTIONS, building)
        )
        for name, kind in kinds.items()
    }
    assert given == {
        "restricted": (True, False),
        "pure": (True, False),
        "directory": (False, False),
        "impure": (False, False),
    }


def test_an_evaluation_that_builds_uses_the_sandbox() -> None:
    sandboxed = replace(OPTIONS, sandbox=True, import_from_derivation=True)
    for kind in (NixFiles(SET, self_contained=True), NixFiles(SET, self_contained=False), Flake("x")):
        options = " ".join(sandboxed.for_evaluation(kind, "/expressions"))
        assert "--option sandbox true --option sandbox-fallback false" in options
        others = replace(sandboxed, import_from_derivation=False)
        assert "sandbox" not in " ".join(others.for_evaluation(kind, "/expressions"))


def test_the_configuration_is_an_argument_of_evaluations_of_files_alone() -> None:
    configured = replace(OPTIONS, configuration=PackageConfiguration("{ a = 1; }"))
    for kind in (NixFiles(SET, self_contained=True), NixFiles(SET, self_contained=False)):
        options = list(configured.for_evaluation(kind, "/expressions"))
        assert options[options.index("--arg") :][:3] == ["--arg", "packageConfiguration", "{ a = 1; }"]
        assert "--arg" not in OPTIONS.for_evaluation(kind, "/expressions")
    assert "--arg" not in configured.for_evaluation(Flake("x"), "/expressions")
