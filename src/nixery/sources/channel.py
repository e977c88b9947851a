"""What a tag means where packages come from a channel of nixpkgs.

Package sets in nixpkgs' channels (``NIXERY_CHANNEL``): archives of commits, fetched by Nix.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from functools import partial
from importlib.resources import files
from pathlib import Path

from nixery.errors import NixTimedOut, TagUnknown
from nixery.nix.error_message import explanation
from nixery.nix.packages import NixFiles
from nixery.nix.processes import ProcessContext, run_command
from nixery.source_location import COMMIT, SourceLocation
from nixery.sources.commits import CommitRule
from nixery.sources.git_commands import Disclosure
from nixery.sources.git_repository import GitRepository
from nixery.sources.source import Pin, Reference, is_commit_of
from nixery.sources.trees import NixStore, TreeCache

# In a list of patterns: commits, subject to NIXERY_COMMITS.
COMMITS = "commits"


def channel_rule(rule: CommitRule, configured: str, allowed: Sequence[str]) -> CommitRule:
    """Return the accepted commits: by default, those of the channels that clients may ask for."""
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
        raise TagUnknown(tag, f"is no channel that can be had here; latest, or one of: {names}")
    return Reference(selected, moving=True)


# Seconds for 45 MB, and for unpacking 40,000 files.
_FETCH = 900

# Nix's message for an archive that a server does not have, and for a file.
_MISSING = re.compile(r"HTTP error 404|error: 404|file not found", re.IGNORECASE)

_EXPRESSIONS = files("nixery.sources") / "expressions"


class Archives:
    """The archives of a repository's commits, unpacked into the Nix store.

    Args:
        location: URL of a commit's archive, with ``{rev}`` in place of the commit.
        url: the same with its secrets, which is in no argument list.
        temporary: for Nix's own cache of URLs; belongs to this process.
        environment: for fetching.
        memory: bytes of address space; ``None`` for no bound. Nix may keep an archive in memory until it has all of it, and a server
            may send one without end.

    Attributes:
        location: as above.
    """

    def __init__(
        self,
        location: SourceLocation,
        url: str,
        temporary: Path,
        environment: Mapping[str, str],
        memory: int | None = None,
    ) -> None:
        self.location = location
        self._url = url
        self._temporary = temporary
        self._environment = environment
        self._memory = memory

    async def fetch(self, commit: str) -> Path:
        """Return the store path of a commit's tree.

        Raises:
            TagUnknown: that commit has no archive.
            SourceUnreachable: the archive cannot be fetched.
        """
        disclosure = Disclosure(self.location)
        with tempfile.TemporaryDirectory(dir=self._temporary) as cache:
            # Nix caches whole URLs where other users may read them; each commit is fetched only once anyway.
            variables = {"NIXERY_ARCHIVE_URL": self._url.replace("{rev}", commit), "XDG_CACHE_HOME": cache}
            try:
                completed, stderr = await run_command(
                    _FETCH,
                    *("nix-instantiate", "--eval", "--read-write-mode"),
                    *("--option", "restrict-eval", "false", "--option", "pure-eval", "false"),
                    *("--expr", (_EXPRESSIONS / "archive.nix").read_text()),
                    context=ProcessContext({**self._environment, **variables}, self._memory),
                )
            except NixTimedOut as error:
                raise disclosure.unreachable(f"no archive within {_FETCH} seconds") from error
        if completed.exit_code == 0:
            return Path(completed.stdout.decode().strip().strip('"'))
        # Newer versions of Nix print it before the last error. The digits alone may be those of a commit.
        if any(_MISSING.search(line) for line in stderr):
            raise TagUnknown(commit, f"{disclosure.name} has no archive of this commit")
        raise disclosure.unreachable(explanation(stderr))


class ChannelSource:
    """The ``PackageSource`` of channels, which are branches of a repository.

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
        """See ``PackageSource.may_mean``: the identity becomes a part of the archive's URL."""
        return is_commit_of(reference, pin)

    async def resolve(self, reference: Reference) -> Pin:
        """See ``PackageSource.resolve``. The archive is fetched at once, so that nobody has to wait for it later."""
        if reference.moving:
            commit = (await self._repository.look_up(reference.name)).commit
        else:
            commit = reference.name
            if reference.rule:
                await self._repository.require_accepted(commit)
        await self._trees.get(commit, partial(self._archives.fetch, commit))
        return Pin(self.description, commit, commit, self._repository.published)

    async def confirm(self, pin: Pin) -> None:
        """See ``PackageSource.confirm``. A commit can always be had."""

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[NixFiles]:
        """See ``PackageSource.open``."""
        async with self._trees.keeping(pin.identity, partial(self._archives.fetch, pin.identity)) as tree:
            yield NixFiles(tree, self_contained=True)
