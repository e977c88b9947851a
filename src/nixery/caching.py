"""Caches with bounds, and single flight: one run of a piece of work for all concurrent callers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, Generic, TypeVar

import cachetools

from nixery.errors import NixeryError, ShuttingDown
from nixery.request_context import Parties, current_parties, enter_parties, track_wait

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Result = TypeVar("Result")

# Bytes of an entry besides its content: key, objects, hash table. A rough figure.
_OVERHEAD = 512


@dataclass(slots=True)
class CacheCounts:
    """Look-ups in a cache. Plain numbers, since a Prometheus counter takes a lock on the hot path.

    Attributes:
        hits: look-ups that found an entry.
        misses: look-ups whose result had to be made, or fetched from somewhere slower.
    """

    hits: int = 0
    misses: int = 0


class LRUCache(Generic[Key, Value]):
    """A mapping bounded in bytes, which evicts the least recently used entry. For one thread.

    Args:
        capacity: bytes of all entries together.
    """

    def __init__(self, capacity: int) -> None:
        self._entries: cachetools.LRUCache[Key, tuple[Value, int]] = cachetools.LRUCache(
            capacity, getsizeof=itemgetter(1)
        )

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        """Return the value of a key; ``None`` if the cache has none."""
        try:
            return self._entries[key][0]
        except KeyError:
            return None

    def put(self, key: Key, value: Value, size: int) -> None:
        """Set a value of ``size`` bytes. A value larger than the cache is not kept."""
        self.discard(key)
        if size + _OVERHEAD <= self._entries.maxsize:
            self._entries[key] = value, size + _OVERHEAD

    def discard(self, key: Key) -> None:
        """Remove a key, if it is present."""
        self._entries.pop(key, None)


class TTLCache(Generic[Key, Value]):
    """An ``LRUCache`` whose entries also expire, each after its own time to live.

    Not ``cachetools.TLRUCache``, which hashes a key three times and takes twice as long: each cached manifest
    costs a look-up here.

    Args:
        capacity: bytes of all entries together; expired ones count until they are evicted.
        clock: seconds; only differences matter.
    """

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._entries: LRUCache[Key, tuple[Value, float]] = LRUCache(capacity)
        self._clock = clock

    def get(self, key: Key) -> Value | None:
        """Return the value of a key; ``None`` if there is none, or if it has expired."""
        entry = self._entries.get(key)
        return entry[0] if entry is not None and self._clock() < entry[1] else None

    def put(self, key: Key, value: Value, size: int, seconds: float) -> None:
        """Set a value of ``size`` bytes that expires after some seconds. A value larger than the cache is not kept."""
        self._entries.put(key, (value, self._clock() + seconds), size)


class SingleFlight(Generic[Key, Result]):
    """Runs at most one task for each key.

    No caller owns a task: it continues when callers leave, and a returning one joins it. It works for all of
    its callers: a client that joins another one's work need not wait for that client's turn (see ``Slots``).
    """

    def __init__(self) -> None:
        self._tasks: dict[Key, asyncio.Task[Result]] = {}
        self._parties: dict[Key, Parties] = {}
        self._closed = False

    def run(self, key: Key, work: Callable[[], Coroutine[Any, Any, Result]]) -> asyncio.Future[Result]:
        """Start ``work``, or join the run of an earlier caller. Cancelling the future leaves the work running.

        Returns:
            This caller's future for the result; it raises ``ShuttingDown`` if ``close`` ends the work.

        Raises:
            ShuttingDown: ``close`` was called.
        """
        if self._closed:
            raise ShuttingDown
        loop = asyncio.get_running_loop()
        task = self._tasks.get(key)
        ours = current_parties()
        if task is None or task.done():  # the result of a task that has just ended may be outdated
            parties = self._parties[key] = Parties(next(iter(ours.clients)), awaited=ours.awaited)
            context = copy_context()
            context.run(enter_parties, parties)
            task = self._tasks[key] = loop.create_task(work(), context=context)
            task.add_done_callback(partial(self._forget, key))
        self._parties[key].join(ours)
        wait: asyncio.Future[Result] = loop.create_future()
        pass_on = partial(self._pass_on, wait)
        task.add_done_callback(pass_on)
        wait.add_done_callback(lambda _: task.remove_done_callback(pass_on))
        track_wait(wait)
        return wait

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended; start none from now on."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, key: Key, task: asyncio.Task[Result]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key], self._parties[key]
        if not task.cancelled():
            task.exception()  # marks it as retrieved: all callers may have left

    def _pass_on(self, wait: asyncio.Future[Result], task: asyncio.Task[Result]) -> None:
        if wait.done():
            return  # its caller has left
        error = (ShuttingDown() if self._closed else None) if task.cancelled() else task.exception()
        if error is not None:
            wait.set_exception(error)
            wait.exception()  # marks it as retrieved, as above
        elif task.cancelled():
            wait.cancel()
        else:
            wait.set_result(task.result())


def size_of_error(error: NixeryError) -> int:
    """Return the bytes that an error holds: its message, the end of a log, and the reasons of unavailable packages."""
    packages = getattr(error, "packages", ())
    return len(str(error)) + sum(map(len, (*getattr(error, "log_tail", ()), *map(str, packages))))
