"""Things kept in memory up to a number of bytes; what was not asked for the longest has to go first.

How often a cache had what was asked for.

Doing a piece of work once for everybody who asks for it at the same time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from nixery.errors import ShuttingDown
from nixery.request_context import Parties, current_parties, enter_parties, waiting_for

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# What an entry costs beside its content: key, objects, hash table. A rough figure, in bytes.
_OVERHEAD = 512


class LRUCache(Generic[Key, Value]):
    """A mapping with a bound. For one thread, such as that of an event loop.

    Args:
        capacity: in bytes, of all entries together.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._used = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """Return the value of a key, if it is still there."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Set a value of ``size`` bytes. One that is larger than everything together is not kept."""
        self.discard(key)
        size += _OVERHEAD
        if size > self._capacity:
            return
        self._entries[key] = (value, size)
        self._used += size
        while self._used > self._capacity:
            _, (_, freed) = self._entries.popitem(last=False)
            self._used -= freed

    def discard(self, key: Key) -> None:
        """Forget a key, if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._used -= entry[1]


@dataclass(slots=True)
class CacheCounts:
    """Counted where it happens, as plain numbers, since a cached answer takes little longer than a counter with a lock.

    Attributes:
        hits: it was there.
        misses: it had to be made, or fetched from somewhere slower.
    """

    hits: int = 0
    misses: int = 0


Result = TypeVar("Result")


class SingleFlight(Generic[Key, Result]):
    """Runs at most one task for each key.

    No caller owns a task: it continues when callers leave, and a returning one joins it. It works for all of
    its callers: a client that joins another one's work need not wait for that client's turn (see ``Slots``).
    """

    def __init__(self) -> None:
        self._tasks: dict[Key, asyncio.Task[Result]] = {}
        self._parties: dict[Key, Parties] = {}
        self._closed = False

    async def run(self, key: Key, work: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of ``work``, started now or, for the same key, by somebody before.

        Raises:
            ShuttingDown: ``close`` was called.
            Exception: whatever the work raises, for everybody who waits for it.
        """
        if self._closed:
            raise ShuttingDown
        task = self._tasks.get(key)
        ours = current_parties()
        if task is None or task.done():  # about to be forgotten: what it knows may not be true any more
            parties = Parties(next(iter(ours.clients)), awaited=ours.awaited)
            task = asyncio.ensure_future(_for_parties(parties, work))
            self._tasks[key] = task
            self._parties[key] = parties
            task.add_done_callback(lambda done: self._forget(key, done))
        self._parties[key].join(ours)
        wait = asyncio.shield(task)
        try:
            with waiting_for(wait):
                return await wait
        except asyncio.CancelledError:
            if task.cancelled() and self._closed:
                raise ShuttingDown from None
            raise

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
            task.exception()  # Mark it as seen: everybody who wanted to know may be gone.


async def _for_parties(parties: Parties, work: Callable[[], Awaitable[Result]]) -> Result:
    enter_parties(parties)
    return await work()
