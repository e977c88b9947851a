"""What a tag means where packages come from a flake (Nix manual, "Flake references").

Locations that are allowed for a flake's inputs: on a network, with an explicit scheme.

Check that a flake depends only on its lock, and on nothing of this machine.

Nix fetches the inputs of a flake before it checks whether it may, and copies directories into its store,
where every user can read them. So this check comes first: Nix fetches nothing for a flake with an input that
is not locked, or that is no repository or archive on a network.
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
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlencode, urlsplit

from nixery.closure import StorePath
from nixery.errors import TagUnknown
from nixery.source_location import COMMIT
from nixery.sources.commits import CommitRule
from nixery.sources.source import Reference

# Forges, where the revision is a part of the path: github:owner/repository/revision.
_FORGE = re.compile(
    r"(?P<forge>github|gitlab|sourcehut):(?P<owner>[^/?#]+)/(?P<repository>[^/?#]+)(?:[/?#].*)?", re.ASCII
)
_FORGES = {
    "github": ("github.com", "https://{host}/{owner}/{repository}"),
    "gitlab": ("gitlab.com", "https://{host}/{owner}/{repository}.git"),
    "sourcehut": ("git.sr.ht", "https://{host}/{owner}/{repository}"),
}
_HOST = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]+)?", re.ASCII)

# A registry name: name, or name/revision.
_REGISTERED = re.compile(r"(?:flake:)?[a-zA-Z][\w-]*(?:[/?#].*)?", re.ASCII)

# Parameters of a locked reference that give its state, not its location.
_STATE = frozenset({"ref", "rev", "allRefs", "narHash", "lastModified", "revCount"})

_NETWORK = re.compile(
    r"(?:github|gitlab|sourcehut):[^/]|(?:(?:git|hg|tarball|file)\+)?(?:https?|ssh|git)://", re.ASCII
)

_WITHOUT_VERSIONS = "the packages come from a flake without versions; use latest"


class FlakeReference:
    """The operator's reference, and its form at one commit.

    Args:
        text: absolute, if it is a directory.

    Attributes:
        text: as given.
        repository: where branches and tags are looked up, for git; ``None`` without a known git repository.
        is_direct: whether it has a meaning without a registry.
        is_of_a_forge: whether a forge serves its commits by their digits alone.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        location, _, query = text.partition("?")
        parameters = dict(parse_qsl(query))
        self._parameters = {
            key: value for key, value in parameters.items() if key not in ("ref", "rev", "allRefs")
        }
        self._forge = _FORGE.fullmatch(location)
        if self._forge is None and _is_repository(location):
            location = f"git+file://{quote(str(Path(location).absolute()))}"
        self._location = location
        self.is_of_a_forge = self._forge is not None
        self.is_direct = self._forge is not None or _REGISTERED.fullmatch(text) is None
        self.repository = self._repository(parameters.get("host"))

    @property
    def is_locked(self) -> bool:
        """Whether it names one commit."""
        return re.search(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])", self.text) is not None

    def at(self, commit: str, name: str | None) -> str:
        """Return the reference of a commit.

        Args:
            commit: its digits.
            name: the branch or tag that it was found by, with ``refs/``; ``None`` if it was not.
        """
        if self._forge is not None:
            suffix = f"?{urlencode(self._parameters)}" if self._parameters else ""
            return "{forge}:{owner}/{repository}/".format(**self._forge.groupdict()) + commit + suffix
        # Without "allRefs", Nix searches for a commit in the history of that reference alone.
        where = {"allRefs": "1", "ref": "HEAD"} if name is None else {"ref": name}
        return f"{self._location}?{urlencode({**self._parameters, **where, 'rev': commit})}"

    def may_be_locked_as(self, identity: str, commit: str | None) -> bool:
        """Whether a locked reference can be of this flake, as far as its form tells.

        Args:
            identity: the locked reference.
            commit: that it must have; ``None`` for any.
        """
        location, _, query = identity.partition("?")
        parameters = dict(parse_qsl(query, keep_blank_values=True))
        own = self._location
        if self._forge is not None:
            own = "{forge}:{owner}/{repository}".format(**self._forge.groupdict())
            location, _, parameters["rev"] = location.rpartition("/")
        if commit is not None and parameters.get("rev") != commit:
            return False
        is_commit = COMMIT.fullmatch(parameters.get("rev", "")) is not None
        if self.repository is not None or self._forge is not None:
            is_ours = unquote(location) == unquote(own) and _told(parameters) == _told(self._parameters)
            # A working tree with changes has no commit.
            return (is_ours and is_commit) or (own.startswith("git+file:") and _is_copy(identity))
        if own.startswith(("/", "path:", "file:")):
            # The directory, or one above it, may be a repository.
            path = own.removeprefix("path:").removeprefix("file:")
            above = unquote(location.removeprefix("git+file://")).rstrip("/")
            is_above = location.startswith("git+file:///") and f"{path}/".startswith(f"{above}/")
            return (is_above and is_commit) or _is_copy(identity)
        # Only the registry or a redirection determines the target; it must never be a file of this machine.
        return _NETWORK.match(location) is not None or _is_copy(identity)

    def _repository(self, host: str | None) -> str | None:
        if self._forge is not None:
            usual, url = _FORGES[self._forge["forge"]]
            host = host or usual
            # Sourcehut hosts Mercurial as well.
            if not _HOST.fullmatch(host) or host.startswith("hg."):
                return None
            owner = quote(unquote(self._forge["owner"]), safe="/~")
            return url.format(host=host, owner=owner, repository=self._forge["repository"])
        if self._location.startswith("git+"):
            return self._location.removeprefix("git+")
        return self._location if self._location.startswith("git://") else None


def flake_reference(tag: str, configured: FlakeReference, rule: CommitRule) -> Reference:
    """Resolve a tag: ``latest`` is the configured flake, others are a branch, a tag, or a commit's 40 digits.

    No client's text becomes a part of a flake reference: forges would accept seven digits for a commit as
    well, and serve commits of forks.

    Args:
        tag: of the client.
        configured: by the operator.
        rule: the commits that clients may ask for.

    Raises:
        TagUnknown: that flake has no versions, as a directory has none, or the commit may not be asked for.
    """
    if tag == "latest":
        return Reference(configured.text, moving=not configured.is_locked)
    if configured.repository is None:
        hint = "" if configured.is_direct else " (name its repository, as in github:owner/repository)"
        raise TagUnknown(tag, _WITHOUT_VERSIONS + hint)
    if COMMIT.fullmatch(tag) is None:
        return Reference(tag, moving=True)
    rule.require_commits(tag)
    return Reference(tag, moving=False, rule=rule.identity)


def _told(parameters: Mapping[str, str]) -> Mapping[str, str]:
    """The parameters, without those that give the state."""
    return {key: value for key, value in parameters.items() if key not in _STATE}


def _is_copy(identity: str) -> bool:
    """Whether a reference is a hashed tree in the Nix store: the pin of a flake without commits."""
    location, _, query = identity.partition("?")
    parameters = dict(parse_qsl(query))
    try:
        path = StorePath.parse(location.removeprefix("path:"))
    except ValueError:
        return False
    return location.startswith("path:") and path.name == "source" and "narHash" in parameters


def _is_repository(location: str) -> bool:
    return location.startswith(("/", ".")) and (Path(location) / ".git").exists()


_FLAKE_PLACES_FORGES = frozenset({"github", "gitlab", "sourcehut"})
_SCHEMES = {
    "git": frozenset({"https", "http", "ssh", "git"}),
    "hg": frozenset({"https", "http", "ssh"}),
    "tarball": frozenset({"https", "http"}),
    "file": frozenset({"https", "http"}),
}
_FLAKE_PLACES_HOST = re.compile(r"[a-zA-Z0-9\[][\w.:\[\]-]*", re.ASCII)
_FLAKE_PLACES_REGISTERED = re.compile(r"(?:flake:)?[a-zA-Z][\w-]*(?:/[\w./-]*)?(?:\?.*)?", re.ASCII)
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
        if not _FLAKE_PLACES_REGISTERED.fullmatch(url):
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
    if isinstance(kind, str) and kind in _FLAKE_PLACES_FORGES:
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
    if parts.scheme not in _SCHEMES.get(kind, ()) or not host or not _FLAKE_PLACES_HOST.fullmatch(host):
        raise FlakeRefused(f"input {shown(name)} is of this machine, or not understood; {NETWORKS}")
    # Programs parse such URLs differently.
    if re.search(r"[\s\\\x00-\x1f\x7f]", url):
        raise FlakeRefused(f"input {shown(name)} has a URL that is not understood")


def shown(name: str) -> str:
    """Return the name of an input, which is untrusted text, in a form that is safe to show."""
    return "".join(character if character.isprintable() else "?" for character in name[:80])


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
