from pathlib import Path

import pytest

from nixery.errors import TagUnknown
from nixery.sources.flake import flake_reference
from nixery.sources.source import Reference

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("configured", "tag", "expected"),
    [
        ("github:NixOS/nixpkgs", "latest", "github:NixOS/nixpkgs"),
        ("github:NixOS/nixpkgs", "nixos-24.05", "github:NixOS/nixpkgs/nixos-24.05"),
        ("github:NixOS/nixpkgs/nixos-23.11", "nixos-24.05", "github:NixOS/nixpkgs/nixos-24.05"),
        ("github:NixOS/nixpkgs?dir=lib&ref=x", "v1", "github:NixOS/nixpkgs/v1?dir=lib"),
        ("nixpkgs", "v1", "nixpkgs/v1"),
        ("git+https://example.org/set", "v1", "git+https://example.org/set?ref=v1"),
        ("git+https://example.org/set?ref=main&dir=x", "v1", "git+https://example.org/set?dir=x&ref=v1"),
    ],
)
def test_branches_and_tags(configured: str, tag: str, expected: str) -> None:
    assert flake_reference(tag, configured) == Reference(expected, moving=True)


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        ("github:NixOS/nixpkgs", f"github:NixOS/nixpkgs/{COMMIT}"),
        ("git+file:///set?ref=main", f"git+file:///set?allRefs=1&rev={COMMIT}"),
    ],
)
def test_commits(configured: str, expected: str) -> None:
    assert flake_reference(COMMIT, configured) == Reference(expected, moving=False)
    assert flake_reference("latest", expected).moving is False


def test_a_directory_that_is_a_repository(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert flake_reference("v1", str(tmp_path)).name == f"git+file://{tmp_path}?ref=v1"


@pytest.mark.parametrize("configured", ["path:/set", "/nowhere", "https://example.org/set.tar.gz"])
def test_flakes_without_versions(configured: str) -> None:
    assert flake_reference("latest", configured) == Reference(configured, moving=True)
    with pytest.raises(TagUnknown, match="without versions"):
        flake_reference("v1", configured)
