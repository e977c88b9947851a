"""The allowed inputs of a flake; tests/integration/test_flake_source.py checks the same with Nix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nixery.sources.flake_lock import FlakeRefused, check_inputs, locked_inputs

HASH = {"narHash": "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}
GITHUB = {"type": "github", "owner": "NixOS", "repo": "nixpkgs"}


def lock(directory: Path, *nodes: tuple[dict[str, Any], dict[str, Any]], **inputs: Any) -> frozenset[str]:  # noqa: ANN401 -- JSON
    made = {f"n{number}": {"locked": a, "original": b} for number, (a, b) in enumerate(nodes)}
    root = {"inputs": inputs or {name: name for name in made}}
    (directory / "flake.nix").touch()
    (directory / "flake.lock").write_text(
        json.dumps({"nodes": {"root": root, **made}, "root": "root", "version": 7})
    )
    return locked_inputs(directory, "")


@pytest.mark.parametrize(
    ("locked", "original"),
    [
        ({**GITHUB, "rev": "1" * 40, **HASH, "lastModified": 1}, {**GITHUB, "ref": "nixos-24.05"}),
        ({**GITHUB, "rev": "1" * 40}, {"type": "indirect", "id": "nixpkgs"}),
        ({"type": "gitlab", "owner": "group%2Fteam", "repo": "x", "rev": "1" * 40}, GITHUB),
        ({"type": "sourcehut", "owner": "~a", "repo": "x", "rev": "1" * 40}, GITHUB),
        (
            {"type": "git", "url": "https://example.org/x", "rev": "1" * 40, "ref": "refs/heads/main"},
            {"type": "git", "url": "ssh://git@example.org/x"},
        ),
        (
            {"type": "tarball", "url": "https://api.example.org/f/x.tar.gz?rev=1", **HASH},
            {"type": "tarball", "url": "https://x.example.org/x.tar.gz"},
        ),
        (
            {"type": "file", "url": "https://example.org/x", **HASH},
            {"type": "file", "url": "https://example.org/x"},
        ),
    ],
)
def test_inputs_on_networks_are_accepted(
    tmp_path: Path, locked: dict[str, Any], original: dict[str, Any]
) -> None:
    assert lock(tmp_path, (locked, original)) == {"n0"}


@pytest.mark.parametrize(
    "tree",
    [
        {"type": "path", "path": "/etc"},
        {"type": "path", "path": "./sub"},
        {"type": "git", "url": "file:///srv/x"},
        {"type": "git", "url": "/srv/x"},
        {"type": "git", "url": "FILE:///srv/x"},
        {"type": "git", "url": "ext::sh -c id"},
        {"type": "git", "url": "https:///srv/x"},
        {"type": "git", "url": "ssh://-oProxyCommand=id/x"},
        {"type": "git", "url": "https://example.org\\@/srv/x"},
        {"type": "git", "url": "git@example.org:x"},
        {"type": "tarball", "url": "file:///etc/x.tar"},
        {"type": "file", "url": "file:///etc/passwd"},
        {"type": "hg", "url": "file:///srv/x"},
        {"type": "hg", "url": "/srv/x"},
        {"type": "mercurial", "url": "https://example.org/x"},
        {"type": "indirect", "id": "nixpkgs"},
        {"type": "github", "owner": "a"},
        {"type": "github", "owner": "a/../..", "repo": "x?y"},
        {"type": "github", "owner": "a", "repo": "b", "host": "h/x?"},
        {"type": ["path"], "path": "/etc"},
        {"type": "github", "owner": {"a": 1}, "repo": "x"},
        {"path": "/etc"},
        {},
    ],
)
def test_inputs_of_this_machine_are_refused(tmp_path: Path, tree: dict[str, Any]) -> None:
    with pytest.raises(FlakeRefused):
        lock(tmp_path, ({**HASH, **tree}, GITHUB))
    # A node without a visible reference may be referred to in another way.
    with pytest.raises(FlakeRefused):
        lock(tmp_path, ({**HASH, **GITHUB}, GITHUB), ({**HASH, **tree}, GITHUB), x="n0")
    if tree.get("type") != "indirect":
        with pytest.raises(FlakeRefused):
            lock(tmp_path, ({**HASH, **GITHUB}, tree))


def test_an_input_without_a_commit_or_a_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlakeRefused, match="neither a commit nor a hash"):
        lock(tmp_path, (GITHUB, GITHUB))


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"{}",
        b'{"version": 7, "root": "root", "nodes": {}}',
        b'{"version": 99, "root": "root", "nodes": {"root": {}}}',
        b'{"version": 7, "root": ["root"], "nodes": {"root": {}}}',
        b'{"version": 7, "root": "root", "nodes": {"root": {"locked": {"type": "path"}}}}',
        '{"version": 7, "root": "root", "nodes": {"root": {}}}'.encode("utf-16"),
        b" " * (5 * 1024 * 1024),
        json.dumps({"version": 7, "root": "r", "nodes": {str(n): {} for n in range(3000)}}).encode(),
    ],
    ids=["deep", "empty", "no root", "version", "root", "root is a tree", "encoding", "large", "many"],
)
def test_malformed_locks_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "flake.nix").touch()
    (tmp_path / "flake.lock").write_bytes(content)
    with pytest.raises(FlakeRefused):
        locked_inputs(tmp_path, "")


@pytest.mark.parametrize("directory", ["..", "link", "a/../.."])
def test_the_flakes_directory_must_be_in_its_tree(tmp_path: Path, directory: str) -> None:
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "link").symlink_to(tmp_path)
    (tmp_path / "flake.nix").touch()
    with pytest.raises(FlakeRefused):
        locked_inputs(tree, directory)


def test_a_missing_tree_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        locked_inputs(tmp_path / "gone", "")


@pytest.mark.parametrize(
    "declared",
    [
        {"url": "github:a/b"},
        {"url": "github:a/b/main?dir=x"},
        {"url": "gitlab:group%2Fteam/x"},
        {"url": "sourcehut:~a/x"},
        {"url": "git+https://example.org/x?ref=main"},
        {"url": "git+ssh://git@example.org/x"},
        {"url": "https://example.org/x.tar.gz"},
        {"url": "tarball+https://example.org/x"},
        {"url": "nixpkgs/nixos-24.05"},
        {"url": "flake:nixpkgs"},
        {"type": "github", "owner": "a", "repo": "b"},
        {"follows": "y"},
        {"url": "github:a/b", "flake": False, "inputs": {"y": {"follows": "z"}}},
        {},
    ],
)
def test_declared_inputs_are_checked(declared: dict[str, Any]) -> None:
    check_inputs({"x": declared}, ["self", "x"], frozenset({"x"}))


@pytest.mark.parametrize(
    "declared",
    [
        {"url": url}
        for url in (
            "path:/etc",
            "path:./sub",
            "/etc",
            "./sub",
            "../x",
            ".",
            "~/x",
            "file:///etc/passwd",
            "git+file:///srv/x",
            "git+file:/srv/x",
            "tarball+file:///etc/x",
            "file+file:///etc/x",
            "hg+file:///srv/x",
            "git+https:///srv/x",
            "git+https:/srv/x",
            "git+ext://x/y",
            "git@example.org:x",
            "git+ssh://-oProxyCommand=id/x",
            "?dir=x",
            "",
        )
    ]
    + [{"type": "path", "path": "/etc"}, {"url": {"unusable": True}}, {"url": "github:a/b", "narHash": "x"}],
)
def test_a_tag_that_is_not_allowed_is_refused(declared: dict[str, Any]) -> None:
    with pytest.raises(FlakeRefused):
        check_inputs({"x": declared}, [], frozenset({"x"}))
    with pytest.raises(FlakeRefused):
        check_inputs({"x": {"url": "github:a/b", "inputs": {"y": declared}}}, [], frozenset({"x"}))
