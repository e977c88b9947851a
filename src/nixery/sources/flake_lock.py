"""Check that a flake depends only on its lock, and not on files of this machine.

Nix fetches the inputs of a flake before it checks whether it may, and copies directories into its store,
where every user can read them. So this check comes first: Nix fetches nothing for a flake with an input that
is not locked, or that is no repository or archive on a network with an explicit scheme.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_FORGES = frozenset({"github", "gitlab", "sourcehut"})
_SCHEMES = {
    "git": frozenset({"https", "http", "ssh", "git"}),
    "hg": frozenset({"https", "http", "ssh"}),
    "tarball": frozenset({"https", "http"}),
    "file": frozenset({"https", "http"}),
}
_HOST = re.compile(r"[a-zA-Z0-9\[][\w.:\[\]-]*", re.ASCII)
_REGISTERED = re.compile(r"(?:flake:)?[a-zA-Z][\w-]*(?:/[\w./-]*)?(?:\?.*)?", re.ASCII)
_FORGE_URL = re.compile(r"(?:github|gitlab|sourcehut):[^/?#]+/[^?#]+(?:\?.*)?", re.ASCII)
_WORD = re.compile(r"[\w.+~%-]+", re.ASCII)

# Limits for flake.lock. The largest ones in use have some hundred inputs, and 100 kB.
_LARGEST_LOCK = 4 * 1024 * 1024
_MOST_NODES = 2000
_VERSIONS = (5, 6, 7)

_NETWORKS = (
    "only repositories and archives on a network can be inputs (github, gitlab, sourcehut, https, ssh)"
)


class FlakeRefused(Exception):
    """A flake has an input that is not allowed; the message names it and the reason."""


def locked_inputs(tree: Path, directory: str) -> frozenset[str]:
    """Check each node of a flake's lock, even if nothing refers to it.

    Args:
        tree: the fetched tree of a commit.
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
            raise FlakeRefused(
                f"input {_shown(name)} is not in flake.lock; run nix flake lock, and commit it"
            )
    for name, value in declared.items():
        _check_declared(name, value)


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
            raise FlakeRefused(f"{what} is not a regular file of at most {_LARGEST_LOCK // 1024**2} MiB")
        return opened.read(_LARGEST_LOCK)


def _check_lock(content: bytes) -> frozenset[str]:
    document: Any = None
    with suppress(ValueError, RecursionError):
        document = json.loads(content.decode(), object_pairs_hook=_reject_duplicate_keys)
    nodes = document.get("nodes") if isinstance(document, dict) else None
    if not isinstance(nodes, dict) or document.get("version") not in _VERSIONS:
        raise FlakeRefused(
            f"its flake.lock has an unknown form (supported versions: {_VERSIONS[0]} to {_VERSIONS[-1]})"
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
            f"input {_shown(dangling[0])} is not in flake.lock; run nix flake lock, and commit it"
        )
    return frozenset(inputs)


def _check_declared(name: str, value: Any) -> None:  # noqa: ANN401 -- any value of the flake
    if not isinstance(value, dict):
        raise FlakeRefused(f"input {_shown(name)} has an unknown form")
    inner = value.get("inputs", {})
    if not isinstance(inner, dict):
        raise FlakeRefused(f"the inputs of input {_shown(name)} have an unknown form")
    for inner_name, inner_value in inner.items():
        _check_declared(f"{name}/{inner_name}", inner_value)
    reference = {key: part for key, part in value.items() if key not in ("inputs", "follows", "flake")}
    if not reference:
        return
    if "type" in reference:
        _check_tree(name, reference, locked=False)
    elif set(reference) == {"url"} and isinstance(reference["url"], str):
        _check_url(name, reference["url"])
    else:
        raise FlakeRefused(f"input {_shown(name)} has an unknown form; {_NETWORKS}")


def _check_node(name: str, node: Any) -> None:  # noqa: ANN401 -- any value of the lock
    locked, original = (node.get("locked"), node.get("original")) if isinstance(node, dict) else (None, None)
    if not isinstance(locked, dict) or not isinstance(original, dict):
        raise FlakeRefused(f"input {_shown(name)} is not locked in flake.lock")
    _check_tree(name, locked, locked=True)
    if original.get("type") == "indirect":
        if not isinstance(original.get("id"), str):
            raise FlakeRefused(f"input {_shown(name)} has an unknown form")
    else:
        _check_tree(name, original, locked=False)


def _check_url(name: str, url: str) -> None:
    """Check the URL of an input in ``flake.nix``.

    Raises:
        FlakeRefused: it refers to this machine, or has an unknown form.
    """
    if _FORGE_URL.fullmatch(url):
        return
    scheme, separator, _ = url.partition("://")
    if not separator:
        # The lock resolves the name in a registry. A directory may look like one, but not with an explicit
        # scheme.
        if not _REGISTERED.fullmatch(url):
            raise FlakeRefused(
                f"input {_shown(name)} refers to this machine, or has an unknown form; {_NETWORKS}"
            )
        return
    kind, plus, transport = scheme.rpartition("+")
    if not plus:
        kind = "git" if transport in {"git", "ssh"} else "tarball"
    _check_address(name, kind, f"{transport}://{url.partition('://')[2]}")
    if "submodules" in parse_qs(urlsplit(url).query, keep_blank_values=True):
        raise _has_submodules(name)


def _check_tree(name: str, tree: Mapping[str, Any], *, locked: bool) -> None:
    """Check the attributes of an input, in ``flake.nix`` or in a lock.

    Raises:
        FlakeRefused: it refers to this machine, has an unknown form, or has to be locked and is not.
    """
    kind = tree.get("type")
    if tree.get("submodules"):
        raise _has_submodules(name)
    if any(isinstance(value, dict | list) for value in tree.values()):
        raise FlakeRefused(f"input {_shown(name)} has an unknown form")
    if locked and not any(isinstance(tree.get(key), str) and tree[key] for key in ("rev", "narHash")):
        raise FlakeRefused(f"input {_shown(name)} has neither a commit nor a hash in flake.lock")
    if isinstance(kind, str) and kind in _FORGES:
        words = [tree.get("owner"), tree.get("repo"), tree.get("host", "host")]
        if not all(isinstance(word, str) and all(map(_WORD.fullmatch, word.split("/"))) for word in words):
            raise FlakeRefused(f"input {_shown(name)} has an unknown form")
    elif isinstance(kind, str) and kind in _SCHEMES and isinstance(tree.get("url"), str):
        _check_address(name, kind, tree["url"])
    elif not (kind == "indirect" and not locked and isinstance(tree.get("id"), str)):
        raise FlakeRefused(
            f"input {_shown(name)} refers to this machine, or has an unknown form; {_NETWORKS}"
        )


def _has_submodules(name: str) -> FlakeRefused:
    return FlakeRefused(
        f"input {_shown(name)} has submodules, which may be fetched from anywhere, including this machine"
    )


def _check_address(name: str, kind: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in _SCHEMES.get(kind, ()) or not host or not _HOST.fullmatch(host):
        raise FlakeRefused(
            f"input {_shown(name)} refers to this machine, or has an unknown form; {_NETWORKS}"
        )
    # Programs parse such URLs differently.
    if re.search(r"[\s\\\x00-\x1f\x7f]", url):
        raise FlakeRefused(f"input {_shown(name)} has a URL of an unknown form")


def _shown(name: str) -> str:
    """Make the name of an input, which is untrusted text, safe to show."""
    return "".join(character if character.isprintable() else "?" for character in name[:80])


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a duplicate key, of which Nix may use the other value")
    return found
