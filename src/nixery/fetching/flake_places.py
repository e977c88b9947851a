"""Locations that are allowed for a flake's inputs: on a network, with an explicit scheme."""

from __future__ import annotations

import re
from collections.abc import Mapping
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

NETWORKS = "only repositories and archives on a network can be inputs (github, gitlab, sourcehut, https, ssh)"


class FlakeRefused(Exception):
    """A flake has an input that is not allowed; the message says which one, and why."""


def check_url(name: str, url: str) -> None:
    """Check the URL of an input in ``flake.nix``.

    Raises:
        FlakeRefused: it refers to this machine, or has an unknown form.
    """
    if _FORGE_URL.fullmatch(url):
        return
    scheme, separator, _ = url.partition("://")
    if not separator:
        # The lock says what a registry's name means; a directory may look like one, but not with an explicit
        # scheme.
        if not _REGISTERED.fullmatch(url):
            raise FlakeRefused(f"input {shown(name)} is of this machine, or not understood; {NETWORKS}")
        return
    kind, plus, transport = scheme.rpartition("+")
    if not plus:
        kind = "git" if transport in {"git", "ssh"} else "tarball"
    _check_address(name, kind, f"{transport}://{url.partition('://')[2]}")
    if "submodules" in parse_qs(urlsplit(url).query, keep_blank_values=True):
        raise _has_submodules(name)


def check_tree(name: str, tree: Mapping[str, Any], *, locked: bool) -> None:
    """Check the attributes of an input, in ``flake.nix`` or in a lock.

    Raises:
        FlakeRefused: it refers to this machine, has an unknown form, or has to be locked and is not.
    """
    kind = tree.get("type")
    if tree.get("submodules"):
        raise _has_submodules(name)
    if any(isinstance(value, dict | list) for value in tree.values()):
        raise FlakeRefused(f"input {shown(name)} is not understood")
    if locked and not any(isinstance(tree.get(key), str) and tree[key] for key in ("rev", "narHash")):
        raise FlakeRefused(f"input {shown(name)} has neither a commit nor a hash in flake.lock")
    if isinstance(kind, str) and kind in _FORGES:
        words = [tree.get("owner"), tree.get("repo"), tree.get("host", "host")]
        if not all(isinstance(word, str) and all(map(_WORD.fullmatch, word.split("/"))) for word in words):
            raise FlakeRefused(f"input {shown(name)} is not understood")
    elif isinstance(kind, str) and kind in _SCHEMES and isinstance(tree.get("url"), str):
        _check_address(name, kind, tree["url"])
    elif not (kind == "indirect" and not locked and isinstance(tree.get("id"), str)):
        raise FlakeRefused(f"input {shown(name)} is of this machine, or not understood; {NETWORKS}")


def _has_submodules(name: str) -> FlakeRefused:
    return FlakeRefused(
        f"input {shown(name)} has submodules, which are fetched from wherever it says, files of this machine included"
    )


def _check_address(name: str, kind: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in _SCHEMES.get(kind, ()) or not host or not _HOST.fullmatch(host):
        raise FlakeRefused(f"input {shown(name)} is of this machine, or not understood; {NETWORKS}")
    # Programs parse such URLs differently.
    if re.search(r"[\s\\\x00-\x1f\x7f]", url):
        raise FlakeRefused(f"input {shown(name)} has a URL that is not understood")


def shown(name: str) -> str:
    """Return the name of an input, which is untrusted text, in a form that is safe to show."""
    return "".join(character if character.isprintable() else "?" for character in name[:80])
