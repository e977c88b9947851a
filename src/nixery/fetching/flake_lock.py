"""Check that a flake depends only on its lock, and on nothing of this machine.

Nix fetches the inputs of a flake before it checks whether it may, and copies directories into its store,
where every user can read them. So this check comes first: Nix fetches nothing for a flake with an input that
is not locked, or that is no repository or archive on a network.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nixery.fetching.flake_places import NETWORKS, FlakeRefused, check_tree, check_url, shown

# Limits for flake.lock. The largest ones in use have some hundred inputs, and 100 kB.
_LARGEST_LOCK = 4 * 1024 * 1024
_MOST_NODES = 2000
_VERSIONS = (5, 6, 7)


def locked_inputs(tree: Path, directory: str) -> frozenset[str]:
    """Check each node of a flake's lock, even if nothing refers to it.

    Args:
        tree: of a commit, as fetched.
        directory: of the flake in it; relative.

    Returns:
        The names of the flake's own inputs that are locked.

    Raises:
        FlakeRefused: a node is not locked, refers to this machine, or has an unknown form.
        FileNotFoundError: the tree no longer exists.
    """
    inside = [part for part in directory.split("/") if part]
    if ".." in inside:
        raise FlakeRefused("its directory is not in its tree")
    if _read_beneath(tree, *inside, "flake.nix") is None:
        raise FlakeRefused("it has no flake.nix")
    lock = _read_beneath(tree, *inside, "flake.lock")
    return frozenset() if lock is None else _check_lock(lock)


def _read_beneath(root: Path, *names: str) -> bytes | None:
    """Read a regular file in an untrusted tree, without following any symlink; ``None`` if there is none."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    what = "/".join(names)
    directory = os.open(root, flags | os.O_DIRECTORY)
    try:
        for name in names[:-1]:
            inner = os.open(name, flags | os.O_DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = inner
        file = os.open(names[-1], flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FlakeRefused(f"{what} is a symlink, or cannot be read: {error.strerror}") from error
    finally:
        os.close(directory)
    with os.fdopen(file, "rb") as opened:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_LOCK:
            raise FlakeRefused(f"{what} is no regular file of at most {_LARGEST_LOCK // 1024**2} MiB")
        return opened.read(_LARGEST_LOCK)


def _check_lock(content: bytes) -> frozenset[str]:
    document: Any = None
    with suppress(ValueError, RecursionError):
        document = json.loads(content.decode(), object_pairs_hook=_once)
    nodes = document.get("nodes") if isinstance(document, dict) else None
    if not isinstance(nodes, dict) or document.get("version") not in _VERSIONS:
        raise FlakeRefused(
            f"its flake.lock is not understood (versions {_VERSIONS[0]} to {_VERSIONS[-1]} are)"
        )
    if len(nodes) > _MOST_NODES:
        raise FlakeRefused(f"its flake.lock has more than {_MOST_NODES} inputs")
    root = document.get("root")
    own = nodes.get(root) if isinstance(root, str) else None
    inputs = own.get("inputs", {}) if isinstance(own, dict) else None
    if not isinstance(inputs, dict) or (isinstance(own, dict) and own.keys() & {"locked", "original"}):
        raise FlakeRefused("its flake.lock has no root")
    for name, node in nodes.items():
        if name != root:
            _check_node(name, node)
    dangling = [name for name, target in inputs.items() if isinstance(target, str) and target not in nodes]
    if dangling:
        raise FlakeRefused(
            f"input {shown(dangling[0])} is not in flake.lock; run nix flake lock, and commit it"
        )
    return frozenset(inputs)


def check_inputs(declared: Mapping[str, Any], arguments: list[str], locked: frozenset[str]) -> None:
    """Check the inputs that a flake declares.

    Args:
        declared: ``inputs`` of ``flake.nix``.
        arguments: of its outputs; each of them is an input, declared or not.
        locked: the inputs in its lock.

    Raises:
        FlakeRefused: an input is not locked, or refers to this machine.
    """
    for name in sorted({*declared, *arguments} - {"self"}):
        if name not in locked:
            _check_declared(name, declared.get(name, {}))  # may raise with a more exact reason
            raise FlakeRefused(f"input {shown(name)} is not in flake.lock; run nix flake lock, and commit it")
    for name, value in declared.items():
        _check_declared(name, value)


def _check_declared(name: str, value: Any) -> None:  # noqa: ANN401 -- any value of the flake
    if not isinstance(value, dict):
        raise FlakeRefused(f"input {shown(name)} is not understood")
    inner = value.get("inputs", {})
    if not isinstance(inner, dict):
        raise FlakeRefused(f"the inputs of input {shown(name)} are not understood")
    for inner_name, inner_value in inner.items():
        _check_declared(f"{name}/{inner_name}", inner_value)
    reference = {key: part for key, part in value.items() if key not in ("inputs", "follows", "flake")}
    if not reference:
        return
    if "type" in reference:
        check_tree(name, reference, locked=False)
    elif set(reference) == {"url"} and isinstance(reference["url"], str):
        check_url(name, reference["url"])
    else:
        raise FlakeRefused(f"input {shown(name)} is not understood; {NETWORKS}")


def _check_node(name: str, node: Any) -> None:  # noqa: ANN401 -- any value of the lock
    locked, original = (node.get("locked"), node.get("original")) if isinstance(node, dict) else (None, None)
    if not isinstance(locked, dict) or not isinstance(original, dict):
        raise FlakeRefused(f"input {shown(name)} is not locked in flake.lock")
    check_tree(name, locked, locked=True)
    if original.get("type") == "indirect":
        if not isinstance(original.get("id"), str):
            raise FlakeRefused(f"input {shown(name)} is not understood")
    else:
        check_tree(name, original, locked=False)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice, and Nix may take the other one")
    return found
