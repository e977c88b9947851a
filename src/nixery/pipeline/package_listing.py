"""Asking Nix for all names of a package set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from nixery.errors import AnswerTooLarge, BuildError, BuildTimedOut, EvaluationFailed, NixUnusable, TooBusy
from nixery.image.platform import Platform
from nixery.least_recently_used import LeastRecentlyUsed
from nixery.nix.builder import Details, NixBuilder
from nixery.pipeline.recent_failures import size_of
from nixery.pipeline.slots import Slots
from nixery.sources.source import PackageSource, Pin

# Each is an evaluation of a whole package set, which may take all the memory that one is given.
_AT_ONCE, _QUEUE = 1, 4

# Bytes of failures that are remembered.
_CAPACITY = 1024 * 1024


class PackageListing:
    """Lists package sets, one after the other.

    Args:
        source: where package sets are.
        nix: lists them.
        platform: whose packages are listed.
        failure_time_to_live: seconds for which a failure is the answer without another attempt.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        source: PackageSource,
        nix: NixBuilder,
        platform: Platform,
        failure_time_to_live: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.platform = platform
        self._source = source
        self._nix = nix
        self._failure_time_to_live = failure_time_to_live
        self._clock = clock
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.LISTINGS)
        self._failures: LeastRecentlyUsed[Pin, tuple[BuildError, float]] = LeastRecentlyUsed(_CAPACITY)

    async def list(self, pin: Pin) -> Mapping[str, Details]:
        """Return what is known of each package by its attribute.

        Raises:
            BuildError: the package set cannot be had, or not be listed; now or a moment ago.
            TooBusy: too many others wait already.
        """
        error, until = self._failures.get(pin) or (None, 0.0)
        if error is not None and until > self._clock():
            raise error.without_frames()
        async with self._slots.slot():
            try:
                return await self._list(pin)
            except BuildError as failure:
                # Whoever types asks again with each key.
                until = self._clock() + self._failure_time_to_live
                self._failures.put(pin, (failure.without_frames(), until), size_of(failure))
                raise

    async def _list(self, pin: Pin) -> Mapping[str, Details]:
        async with self._source.open(pin) as package_set:
            try:
                return await self._nix.index(self.platform, package_set, details=True)
            except (AnswerTooLarge, BuildTimedOut, EvaluationFailed, NixUnusable):
                # A large set cannot be looked into, nor can one with errors that nobody can catch. Names can be had of both.
                return await self._nix.index(self.platform, package_set, details=False)
