"""What a tag means where packages come from a flake (Nix manual, "Flake references")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

from nixery.closure.store_path import StorePath
from nixery.errors import TagUnknown
from nixery.sources.commits import CommitRule
from nixery.sources.location import COMMIT
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
