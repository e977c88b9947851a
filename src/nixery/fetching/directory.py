"""Package sets in a directory of this machine (``NIXERY_PKGS_PATH``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from nixery.errors import NixeryError, PackageSetChanged, SourceUnreachable
from nixery.fetching.fingerprint import Fingerprint
from nixery.fetching.worktree import worktree_state
from nixery.sources.source import NixFiles, Pin, Reference

# The one source without versions: every tag means what is there now.
_REFERENCE = Reference("", moving=True)


class DirectorySource:
    """The ``PackageSource`` for a directory, or for a single Nix file.

    Nix reads the directory where it is, so that files may refer to their neighbours. No old state of it is kept: what was built
    is served as long as its pin lasts, but what is built anew is built from what is there, and moves the pin.

    Args:
        path: absolute. Symlinks are followed each time, so that a new version can be put in place by moving one.
    """

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self.description = f"path:{path}"
        self._environment = environment
        self._last: Pin | None = None
        self._path = path
        self._fingerprint = Fingerprint()
        self._one_at_a_time = asyncio.Lock()

    def reference(self, tag: str) -> Reference:  # noqa: ARG002 -- see _REFERENCE
        """See ``PackageSource.reference``."""
        return _REFERENCE

    def may_mean(self, reference: Reference, pin: Pin) -> bool:  # noqa: ARG002 -- see below
        """See ``PackageSource.may_mean``. A directory is always read in its current state."""
        return True

    async def resolve(self, reference: Reference) -> Pin:  # noqa: ARG002 -- there is only one
        """See ``PackageSource.resolve``."""
        return await self._pin()

    async def look_ahead(self) -> None:
        """Read the directory before anybody asks: from then on, a pin costs a look at what has changed.

        Whatever is wrong with it, those who ask are told.
        """
        with suppress(SourceUnreachable):
            await self._pin()

    async def confirm(self, pin: Pin) -> None:
        """See ``PackageSource.confirm``."""
        if (await self._pin()).identity != pin.identity:
            raise PackageSetChanged

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[NixFiles]:
        """See ``PackageSource.open``."""
        await self.confirm(pin)
        try:
            yield NixFiles(self._path.resolve(), self_contained=False)
        except NixeryError:
            # It may be due to a change that was half done.
            await self.confirm(pin)
            raise
        await self.confirm(pin)

    async def _pin(self) -> Pin:
        async with self._one_at_a_time:
            try:
                fingerprint = await asyncio.to_thread(self._fingerprint.of, self._path)
            except OSError as error:
                # Where the set is on this machine is no business of a client's.
                raise SourceUnreachable(f"the package set cannot be read: {error.strerror}") from error
            if self._last is None or self._last.identity != fingerprint:
                # The content is what counts; git has a better name for it, perhaps.
                state = await worktree_state(self._path.resolve(), self._environment)
                revision, created = (state.revision, state.created) if state else (fingerprint, None)
                self._last = Pin(self.description, fingerprint, revision, created=created)
            return self._last
