"""Package sets from a channel of nixpkgs (``NIXERY_CHANNEL``): archives of commits, which Nix fetches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from nixery.errors import TagUnknown
from nixery.nix.fetching import FetchFailed, fetch_archive
from nixery.nix.packages import NixFiles
from nixery.nix.processes import ProcessContext
from nixery.nix.trees import NixStore, TreeCache
from nixery.source_location import COMMIT, SourceLocation
from nixery.sources.git import GitRepository
from nixery.sources.source import CommitRule, Disclosure, Pin, Reference, is_commit_of

# In a list of patterns: commits, subject to NIXERY_COMMITS.
COMMITS = "commits"


@dataclass(frozen=True, slots=True)
class Archives:
    """The archives of a repository's commits, unpacked into the Nix store.

    Attributes:
        location: URL of a commit's archive, with ``{rev}`` in place of the commit.
        url: the same URL with its secrets, which no argument list contains.
        temporary: for Nix's cache of URLs; belongs to this process.
        fetching: the context in which Nix fetches them.
    """

    location: SourceLocation
    url: str = field(repr=False)
    temporary: Path
    fetching: ProcessContext

    async def fetch(self, commit: str) -> Path:
        """Return the store path of a commit's tree.

        Raises:
            TagUnknown: the commit has no archive.
            SourceUnreachable: the archive cannot be fetched.
        """
        disclosure = Disclosure(self.location)
        try:
            return await fetch_archive(self.url.replace("{rev}", commit), self.temporary, self.fetching)
        except FetchFailed as error:
            if error.is_missing:
                raise TagUnknown(commit, f"{disclosure.name} has no archive of this commit") from error
            raise disclosure.unreachable(error.reason) from error


class ChannelSource:
    """A ``PackageSource`` for channels, which are branches of a repository.

    Args:
        channel: the meaning of ``latest``: a name, or a commit.
        allowed: patterns of other tags; see ``channel_reference``.
        archives: of commits.
        repository: where names are looked up.
        rule: the commits that clients may ask for.
        store: where archives are unpacked.
    """

    def __init__(
        self,
        channel: str,
        allowed: Sequence[str],
        archives: Archives,
        repository: GitRepository,
        rule: CommitRule,
        store: NixStore,
    ) -> None:
        self.description = f"channel:{archives.location.identity}"
        self._channel = channel
        self._allowed = allowed
        self._archives = archives
        self._repository = repository
        self._rule = rule
        self._trees = TreeCache(store)

    def reference(self, tag: str) -> Reference:
        """See ``PackageSource.reference``."""
        return channel_reference(tag, self._channel, self._allowed, self._rule)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:
        """See ``PackageSource.may_mean``: the identity becomes part of the archive's URL."""
        return is_commit_of(reference, pin)

    async def resolve(self, reference: Reference) -> Pin:
        """See ``PackageSource.resolve``. Fetches the archive at once, so that no build waits for it later."""
        if reference.moving:
            commit = (await self._repository.look_up(reference.name)).commit
        else:
            commit = reference.name
            if reference.rule:
                await self._repository.require_accepted(commit)
        await self._trees.get(commit, partial(self._archives.fetch, commit))
        return Pin(self.description, commit, commit, self._repository.published)

    async def require_reachable(self, reference: Reference) -> None:
        """See ``PackageSource.require_reachable``. Fetches no archive."""
        await self._repository.look_up(reference.name)

    async def confirm(self, pin: Pin) -> None:
        """See ``PackageSource.confirm``. A commit stays available."""

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[NixFiles]:
        """See ``PackageSource.open``."""
        async with self._trees.keeping(pin.identity, partial(self._archives.fetch, pin.identity)) as tree:
            yield NixFiles(tree, self_contained=True)


def channel_rule(rule: CommitRule, configured: str, allowed: Sequence[str]) -> CommitRule:
    """Return the rule for commits: by default, those of the channels that clients may ask for."""
    names = () if COMMIT.fullmatch(configured) else (configured,)
    return rule.within([*names, *(pattern for pattern in allowed if pattern != COMMITS)])


def channel_reference(tag: str, configured: str, allowed: Sequence[str], rule: CommitRule) -> Reference:
    """Resolve a tag to a channel or a commit.

    Args:
        tag: ``latest`` for the configured one; otherwise a name or 40 digits.
        configured: name or commit.
        allowed: patterns, in which ``*`` matches anything, and ``commits`` stands for commits.
        rule: the commits that clients may ask for.

    Raises:
        TagUnknown: it is not allowed.
    """
    selected = configured if tag == "latest" else tag
    is_commit = COMMIT.fullmatch(selected) is not None
    if selected == configured:
        return Reference(selected, moving=not is_commit)
    if is_commit and COMMITS in allowed:
        rule.require_commits(tag)
        return Reference(selected, moving=False, rule=rule.identity)
    # A pattern that happens to match 40 digits does not allow commits.
    if is_commit or not any(fnmatchcase(tag, pattern) for pattern in allowed if pattern != COMMITS):
        names = ", ".join("a commit's 40 digits" if pattern == COMMITS else pattern for pattern in allowed)
        raise TagUnknown(tag, f"this server has no such channel; use latest, or one of: {names}")
    return Reference(selected, moving=True)
