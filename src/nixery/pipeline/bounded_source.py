"""A package source that is not asked by too many at once."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from nixery.pipeline.slots import Slots
from nixery.sources.source import PackageSet, PackageSource, Pin, Reference


class BoundedSource:
    """The ``PackageSource`` that bounds concurrent look-ups and fetches, since each may start a process.

    It does not bound opening package sets: only builds do that, and they have bounds of their own.

    Args:
        source: the underlying one.
        slots: not shared with builds, so that a task that holds one never waits for a build.
        commits: for searching a history for commits, which may fetch for minutes: branches and tags do not
            wait for that, even if clients make up many commits.
    """

    def __init__(self, source: PackageSource, slots: Slots, commits: Slots) -> None:
        self.description = source.description
        self._source = source
        self._slots = slots
        self._commits = commits

    def reference(self, tag: str) -> Reference:
        """See ``PackageSource.reference``."""
        return self._source.reference(tag)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:
        """See ``PackageSource.may_mean``."""
        return self._source.may_mean(reference, pin)

    async def resolve(self, reference: Reference) -> Pin:
        """See ``PackageSource.resolve``.

        Raises:
            TooBusy: too many others wait already.
        """
        async with (self._commits if reference.rule else self._slots).slot():
            return await self._source.resolve(reference)

    def open(self, pin: Pin) -> AbstractAsyncContextManager[PackageSet]:
        """See ``PackageSource.open``."""
        return self._source.open(pin)

    async def confirm(self, pin: Pin) -> None:
        """See ``PackageSource.confirm``, which may read a whole directory.

        Raises:
            TooBusy: too many others wait already.
        """
        async with self._slots.slot():
            await self._source.confirm(pin)
