"""Package sets in a git repository (``NIXERY_PKGS_REPO``)."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from nixery.errors import StorageError
from nixery.files import remove_tree
from nixery.nix.packages import NixFiles
from nixery.nix.processes import ProcessContext, run_command
from nixery.source_location import COMMIT, SourceLocation
from nixery.sources.commits import CommitRule
from nixery.sources.git_repository import GitRepository
from nixery.sources.source import Pin, Reference, is_commit_of
from nixery.sources.trees import NixStore, TreeCache

# Seconds to unpack a commit.
_UNPACK = 300


class GitSource:
    """The ``PackageSource`` of a repository: ``latest`` is its default branch, other tags are commits, branches or tags.

    Args:
        location: of the repository.
        repository: the same one.
        rule: the commits that clients may ask for.
        temporary: for unfinished files; belongs to this process.
        store: where checked-out commits go.
        environment: for unpacking.
    """

    def __init__(
        self,
        location: SourceLocation,
        repository: GitRepository,
        rule: CommitRule,
        temporary: Path,
        store: NixStore,
        environment: Mapping[str, str],
    ) -> None:
        self.description = f"git:{location.identity}"
        self._repository = repository
        self._rule = rule
        self._temporary = temporary
        self._store = store
        self._environment = environment
        self._trees = TreeCache(store)

    def reference(self, tag: str) -> Reference:
        """See ``PackageSource.reference``."""
        if tag == "latest":
            return Reference("HEAD", moving=True)
        if COMMIT.fullmatch(tag) is None:
            return Reference(tag, moving=True)
        self._rule.require_commits(tag)
        return Reference(tag, moving=False, rule=self._rule.identity)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:
        """See ``PackageSource.may_mean``: git would accept any reference name in place of an identity."""
        return is_commit_of(reference, pin)

    async def resolve(self, reference: Reference) -> Pin:
        """See ``PackageSource.resolve``. The commit is fetched at once, so that nobody has to wait for it later."""
        if reference.moving:
            commit = (await self._repository.look_up(reference.name)).commit
        else:
            commit = reference.name
            await self._repository.require_accepted(commit)
        created = await self._repository.fetch(commit)
        return Pin(self.description, commit, commit, self._repository.published, created)

    async def confirm(self, pin: Pin) -> None:
        """See ``PackageSource.confirm``. A commit can always be had."""

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[NixFiles]:
        """See ``PackageSource.open``."""
        async with self._trees.keeping(pin.identity, partial(self._check_out, pin.identity)) as tree:
            yield NixFiles(tree, self_contained=True)

    async def _check_out(self, commit: str) -> Path:
        # Another server on this storage may have resolved the pin.
        await self._repository.fetch(commit)
        directory = Path(tempfile.mkdtemp(dir=self._temporary))
        try:
            archive, tree = directory / "archive.tar", directory / "source"
            await self._repository.archive(commit, archive)
            await asyncio.to_thread(tree.mkdir)
            completed, stderr = await run_command(
                _UNPACK,
                *("tar", "--no-same-owner", "-xf", str(archive), "-C", str(tree)),
                context=ProcessContext(self._environment),
            )
            if completed.exit_code != 0:
                raise StorageError(f"cannot unpack a commit: {stderr[-1] if stderr else 'tar failed'}")
            return await self._store.add(tree)
        finally:
            # The author of the commit chose how many files it has, so a thread removes them.
            await asyncio.to_thread(remove_tree, directory)
