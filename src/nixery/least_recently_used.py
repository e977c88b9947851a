"""Things kept in memory up to a number of bytes; what was not asked for the longest has to go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# What an entry costs beside its content: key, objects, hash table. A rough figure, in bytes.
_OVERHEAD = 512


class LeastRecentlyUsed(Generic[Key, Value]):
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
