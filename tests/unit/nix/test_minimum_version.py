"""The oldest Nix that a package set accepts, which any author of a package set may have written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nixery.nix.minimum_version import MinimumVersions, OutdatedNix, required_version
from nixery.nix.packages import Flake, NixFiles

# Like the files of nixpkgs.
MINVER = '# Expose the minimum required version for evaluating Nixpkgs\n"2.18"\n'
MINFEATURES = """\
let
  features = [
    {
      description = "`builtins.nixVersion` reports at least 2.18";
      condition = builtins ? nixVersion && builtins.compareVersions "2.18" builtins.nixVersion != 1;
    }
  ];
in
map ({ description, ... }: description) (builtins.filter ({ condition, ... }: !condition) features)
"""


def package_set(directory: Path, name: str, content: str) -> NixFiles:
    (directory / "lib").mkdir()
    (directory / "lib" / name).write_text(content)
    return NixFiles(directory, self_contained=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [("minver.nix", MINVER), ("minver.nix", '"2.18"'), ("minfeatures.nix", MINFEATURES)],
)
def test_the_declarations_of_nixpkgs(tmp_path: Path, name: str, content: str) -> None:
    assert required_version(package_set(tmp_path, name, content)) == "2.18"


@pytest.mark.security
@pytest.mark.parametrize(
    "content",
    [
        "",
        'abort "2.18"',
        '"2.18" + builtins.readFile /etc/hostname',
        '"99999.1"',
        '"2.18; ignore this"',
        '"\u0662.\u0661"',
        "#" * 5000 + '\n"2.18"',
    ],
)
def test_anything_else_is_no_declaration(tmp_path: Path, content: str) -> None:
    assert required_version(package_set(tmp_path, "minver.nix", content)) is None


@pytest.mark.security
@pytest.mark.parametrize("linked", ["lib", "lib/minver.nix"])
def test_links_are_not_followed(tmp_path: Path, linked: str) -> None:
    package_set(tmp_path, "minver.nix", MINVER)
    (tmp_path / linked).rename(tmp_path / "elsewhere")
    (tmp_path / linked).symlink_to(tmp_path / "elsewhere")
    assert required_version(NixFiles(tmp_path, self_contained=True)) is None


@pytest.mark.security
def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    os.mkfifo(tmp_path / "lib" / "minver.nix")
    assert required_version(NixFiles(tmp_path, self_contained=True)) is None


def test_sets_without_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "set.nix").write_text("{ }")
    assert required_version(NixFiles(tmp_path / "set.nix", self_contained=False)) is None
    assert required_version(NixFiles(tmp_path / "missing", self_contained=False)) is None
    assert required_version(Flake("github:example/packages")) is None


async def test_a_set_that_needs_a_newer_nix(tmp_path: Path) -> None:
    versions = MinimumVersions(os.environ)
    outdated = await versions.outdated(package_set(tmp_path, "minver.nix", '"99.1"'))
    assert isinstance(outdated, OutdatedNix)
    assert str(outdated).startswith("it needs Nix 99.1 or newer, and this machine has Nix 2.")
    (tmp_path / "lib" / "minver.nix").write_text('"2.3"')
    assert await versions.outdated(NixFiles(tmp_path, self_contained=True)) is None
