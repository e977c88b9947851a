"""Package sets in nixpkgs' channels (``NIXERY_CHANNEL``): archives of commits, fetched by Nix."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from nixery.errors import BuildTimedOut, SourceUnreachable, TagUnknown
from nixery.fetching.git_repository import GitRepository
from nixery.fetching.kept_trees import KeptTrees
from nixery.fetching.nix_store import NixStore
from nixery.nix.command import run_command
from nixery.nix.error_message import explanation
from nixery.nix.process import Surroundings
from nixery.sources.channel import channel_reference
from nixery.sources.location import public_url, without_credentials
from nixery.sources.source import NixFiles, Pin, Reference

# Seconds for 45 MB, and for unpacking 40,000 files.
_FETCH = 900


class ChannelSource:
    """The ``PackageSource`` of channels, which are branches of a repository.

    Args:
        channel: what ``latest`` is: a name, or a commit.
        allowed: which other tags there are; see ``channel_reference``.
        archives: URL of a commit's archive, with ``{rev}`` in its place.
        repository: where names are looked up.
        store: where archives are unpacked to.
        environment: of the commands that fetch them.
    """

    def __init__(
        self,
        channel: str,
        allowed: Sequence[str],
        archives: str,
        repository: GitRepository,
        store: NixStore,
        environment: Mapping[str, str],
    ) -> None:
        self._surroundings = Surroundings(environment)
        self.description = f"channel:{without_credentials(archives)}"
        self._channel = channel
        self._allowed = allowed
        self._archives = archives
        self._repository = repository
        self._trees = KeptTrees(store)

    def reference(self, tag: str) -> Reference:
        """See ``PackageSource.reference``."""
        return channel_reference(tag, self._channel, self._allowed)

    async def resolve(self, reference: Reference) -> Pin:
        """See ``PackageSource.resolve``. The archive is fetched at once, so that nobody has to wait for it later."""
        commit = await self._repository.look_up(reference.name) if reference.moving else reference.name
        await self._trees.get(commit, partial(self._fetch, commit))
        return Pin(self.description, commit, commit, public_url(self._repository.shown))

    async def confirm(self, pin: Pin) -> None:
        """See ``PackageSource.confirm``. A commit can always be had."""

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[NixFiles]:
        """See ``PackageSource.open``."""
        async with self._trees.keeping(pin.identity, partial(self._fetch, pin.identity)) as tree:
            yield NixFiles(tree, self_contained=True)

    async def _fetch(self, commit: str) -> Path:
        url = self._archives.replace("{rev}", commit)
        try:
            completed, stderr = await run_command(
                _FETCH,
                *("nix-prefetch-url", "--unpack", "--print-path", "--name", "source", url),
                surroundings=self._surroundings,
            )
        except BuildTimedOut as error:
            raise SourceUnreachable(
                f"{without_credentials(url)} did not arrive in {_FETCH} seconds"
            ) from error
        if completed.exit_code == 0:
            return Path(completed.stdout.decode().split()[-1])
        said = " ".join(explanation(stderr).replace(url, without_credentials(url)).split())
        # Newer versions of Nix say it in another line than the last error.
        if any("404" in line or "file not found" in line.lower() for line in stderr):
            raise TagUnknown(commit, f"there is no such commit at {without_credentials(url)}")
        raise SourceUnreachable(f"cannot fetch {without_credentials(url)}: {said}")
