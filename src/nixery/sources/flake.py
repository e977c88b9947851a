"""Package sets from a flake (``NIXERY_FLAKE``; Nix manual, "Flake references").

Nix fetches the tree of a flake without its inputs, and ``flake_lock`` checks it before any evaluation.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

from nixery.caching import LRUCache
from nixery.closure import STORE_DIRECTORY, StorePath
from nixery.errors import EvaluationFailed, PackageSetChanged, PathsCollected, TagUnknown
from nixery.nix.environments import with_safe_git
from nixery.nix.fetching import FetchFailed, FlakeTree, fetch_tree, lock_flake, read_flake_inputs
from nixery.nix.packages import Flake
from nixery.nix.processes import ProcessContext
from nixery.nix.trees import NixStore
from nixery.source_location import COMMIT, SourceLocation
from nixery.sources.flake_lock import FlakeRefused, check_inputs, locked_inputs
from nixery.sources.git import GitRepository
from nixery.sources.source import CommitRule, Disclosure, Pin, Reference

# Attempts to read a directory that changes during the read.
_ATTEMPTS = 3

# Bytes of cached references of flakes that passed the check.
_CAPACITY = 256 * 1024

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


class FlakeSource:
    """A ``PackageSource`` for a flake: its ``packages`` and ``legacyPackages`` for the system.

    Args:
        reference: of the operator.
        location: the same, for messages.
        repository: where branches and tags are looked up; ``None`` for a flake without versions.
        rule: the commits that clients may ask for.
        store: where Nix puts trees.
        fetching: the context of commands that fetch.
    """

    def __init__(
        self,
        reference: FlakeReference,
        location: SourceLocation,
        repository: GitRepository | None,
        rule: CommitRule,
        store: NixStore,
        fetching: ProcessContext,
    ) -> None:
        self._location = location
        self.description = f"flake:{reference.text}"
        self._flake = reference
        self._repository = repository
        self._rule = rule
        self._store = store
        self._trees = FlakeTrees(reference, location, fetching)
        # The trees that were checked, by the identity of their pins.
        self._checked: LRUCache[str, Path] = LRUCache(_CAPACITY)

    def reference(self, tag: str) -> Reference:
        """See ``PackageSource.reference``."""
        return flake_reference(tag, self._flake, self._rule)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:
        """See ``PackageSource.may_mean``: Nix would fetch any flake that a pin names."""
        asked = reference.name if COMMIT.fullmatch(reference.name) else None
        return self._flake.may_be_locked_as(pin.identity, asked)

    async def resolve(self, reference: Reference) -> Pin:
        """See ``PackageSource.resolve``."""
        if reference.name == self._flake.text:
            locked, tree = await self._trees.current()
        else:
            locked = await self._locked(reference)
            tree = await self._trees.fetch(_without_directory(locked), reference.name)
        # A directory, or a working tree that has changes, is pinned by its copy in the Nix store.
        identity = locked if tree.rev else _copied(tree, locked)
        await self._require_sound(identity, tree.path)
        shown = tree.rev or tree.narHash
        url = self._published(locked) if tree.rev else None
        # Of a directory, it is the time of its newest file on this machine, which must not reach a digest.
        created = None if locked.startswith("path:") else tree.lastModified
        return Pin(self.description, identity, shown, url, created)

    async def require_reachable(self, reference: Reference) -> None:
        """See ``PackageSource.require_reachable``."""
        if self._repository is None or self._flake.is_on_forge:
            # Nix asks a forge at most once in its `tarball-ttl`, with tokens that git does not have.
            await self.resolve(reference)
        else:
            await self._repository.look_up("HEAD")

    async def confirm(self, pin: Pin) -> None:
        """See ``PackageSource.confirm``. A locked flake stays available."""

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[Flake]:
        """See ``PackageSource.open``."""
        kind, _, copy = pin.identity.partition("?")[0].partition(":")
        if kind != "path" or not copy.startswith(STORE_DIRECTORY):
            if self._checked.get(pin.identity) is None:
                # Another server resolved the pin, perhaps of another version.
                tree = await self._trees.fetch(_without_directory(pin.identity))
                await self._require_sound(pin.identity, tree.path)
            # A commit, which Nix can fetch again.
            yield Flake(pin.identity, tree=self._checked.get(pin.identity))
            return
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._store.keeping(Path(copy)))
            except PathsCollected:
                # It was the only copy of the pinned state.
                raise PackageSetChanged from None
            await self._require_sound(pin.identity, Path(copy))
            yield Flake(pin.identity, tree=Path(copy))

    def _published(self, locked: str) -> str | None:
        location = SourceLocation.parse(locked.partition("?")[0], public=self._location.public)
        return location.published

    async def _locked(self, reference: Reference) -> str:
        if self._repository is None:
            raise AssertionError("a flake without versions has one reference")
        if not reference.moving:
            name = None
            if self._rule.checks or not self._flake.is_on_forge:
                # Older versions of Nix search for a commit in the history of one branch or tag only.
                name = await self._repository.leading_to(reference.name)
            if name is None and self._rule.checks:
                raise self._rule.refusal(reference.name)
            return self._flake.at(reference.name, name)
        found = await self._repository.look_up(reference.name)
        return self._flake.at(found.commit, found.name)

    async def _require_sound(self, identity: str, tree: Path) -> None:
        if self._checked.get(identity) is None:
            await self._trees.require_sound(tree, _directory(identity))
            self._checked.put(identity, tree, len(identity))


class FlakeTrees:
    """Fetches the trees of one flake, and checks them.

    Args:
        flake: of the operator.
        location: the same, for messages.
        fetching: the context of commands that fetch it. Its memory should be limited, since a server may send
            an archive without end.
    """

    def __init__(self, flake: FlakeReference, location: SourceLocation, fetching: ProcessContext) -> None:
        self._flake = flake
        self._disclosure = Disclosure(location)
        self._fetching = replace(fetching, environment=with_safe_git(fetching.environment))

    async def current(self) -> tuple[str, FlakeTree]:
        """Fetch the current state of the flake; return its locked reference, and its tree.

        Raises:
            PackageSetChanged: it changed during every attempt.
            TagUnknown: it does not exist.
            SourceUnreachable: it cannot be fetched.
        """
        for _ in range(_ATTEMPTS):
            try:
                found = await lock_flake(
                    self._flake.text, self._fetching, use_registry=not self._flake.is_direct
                )
            except FetchFailed as error:
                raise self._failed(error, "latest") from error
            kind, _, place = found.reference.partition("?")[0].partition(":")
            modified = dict(parse_qsl(found.reference.partition("?")[2])).get("lastModified", "")
            if kind == "path" and modified.isdigit():
                tree = FlakeTree(path=found.path, narHash=found.nar_hash, lastModified=int(modified))
                return found.reference, tree
            tree = await self.fetch(
                {"type": "path", "path": place} if kind == "path" else _without_directory(found.reference)
            )
            if tree.narHash == found.nar_hash:
                return found.reference, tree
        raise PackageSetChanged

    async def fetch(self, reference: str | Mapping[str, str], tag: str = "latest") -> FlakeTree:
        """Fetch a tree without its inputs.

        Args:
            reference: as a URL or as attributes, without ``dir``.
            tag: that the client asked for.

        Raises:
            TagUnknown: it does not exist.
            SourceUnreachable: it cannot be fetched.
        """
        try:
            return await fetch_tree(reference, self._fetching)
        except FetchFailed as error:
            raise self._failed(error, tag) from error

    async def require_sound(self, tree: Path, directory: str) -> None:
        """Check a flake's inputs before anything of it is evaluated as a flake.

        Args:
            tree: in the Nix store.
            directory: of the flake in it.

        Raises:
            EvaluationFailed: an input is not locked, or refers to this machine.
            PathsCollected: the tree no longer exists.
        """
        try:
            locked = await asyncio.to_thread(locked_inputs, tree, directory)
            found = await read_flake_inputs(tree, directory, self._fetching.environment)
            # Off the event loop: the author of the flake chose how many inputs it has.
            await asyncio.to_thread(check_inputs, found.inputs, found.arguments, locked)
        except FileNotFoundError:
            raise PathsCollected(str(tree)) from None
        except FlakeRefused as error:
            raise EvaluationFailed((), f"the flake is refused: {error}") from error

    def _failed(self, error: FetchFailed, tag: str) -> Exception:
        # Logs the reason, also for a tag that does not exist.
        unreachable = self._disclosure.unreachable(error.reason)
        if error.is_missing:
            return TagUnknown(tag, f"{self._disclosure.name} has no such flake")
        return unreachable


class FlakeReference:
    """The operator's reference to a flake, and its form at one commit.

    Args:
        text: absolute, if it is a directory.

    Attributes:
        text: as given.
        repository: where branches and tags are looked up, for git; ``None`` without a known git repository.
        is_direct: whether it can be resolved without a registry.
        is_on_forge: whether it is at a forge, which serves commits by their digits alone.
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
        self.is_on_forge = self._forge is not None
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
            is_ours = unquote(location) == unquote(own) and _relevant_parameters(
                parameters
            ) == _relevant_parameters(self._parameters)
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


def _relevant_parameters(parameters: Mapping[str, str]) -> Mapping[str, str]:
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


def _without_directory(reference: str) -> str:
    """Return a reference without ``dir``, which locates the flake in a tree and does not concern fetching."""
    location, _, query = reference.partition("?")
    parameters = [(key, value) for key, value in parse_qsl(query) if key != "dir"]
    return f"{location}?{urlencode(parameters)}" if parameters else location


def _directory(reference: str) -> str:
    return dict(parse_qsl(reference.partition("?")[2])).get("dir", "")


def _copied(tree: FlakeTree, locked: str) -> str:
    parameters = {"narHash": tree.narHash}
    directory = _directory(locked)
    if directory:
        parameters["dir"] = directory
    return f"path:{tree.path}?{urlencode(parameters)}"
