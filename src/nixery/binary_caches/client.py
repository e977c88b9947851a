"""A client of binary caches: narinfos for the event loop, and NARs for the threads that pack."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from nixery.binary_caches.configuration import CacheConfiguration
from nixery.binary_caches.narinfo import NarInfo
from nixery.closure import StorePath


@dataclass(frozen=True, slots=True)
class CacheState:
    """The state of a cache, for the operator.

    Attributes:
        name: of the cache, without secrets.
        priority: the lower, the earlier it is asked; ``None`` if it does not answer.
        problem: why it is not used at the moment; empty if it is.
    """

    name: str
    priority: int | None
    problem: str = ""


class BinaryCaches:
    """Several binary caches, in the order of their priorities.

    Args:
        configuration: caches, keys and logins.
    """

    def __init__(self, configuration: CacheConfiguration) -> None:
        self._configuration = configuration

    async def look_up(self, path: StorePath) -> NarInfo | None:
        """Ask the caches for a path, one after the other; ``None`` if no cache has it, or none that answers.

        Call it for many paths at once: requests share few connections. Answers are not remembered here, except
        that no cache has a path, for a minute.
        """
        raise NotImplementedError

    async def find(self, paths: Collection[StorePath]) -> Mapping[StorePath, NarInfo]:
        """Look paths up side by side; leaves out those that ``look_up`` does not find."""
        raise NotImplementedError

    def explain(self, path: StorePath) -> str:
        """Say why the last look-up found nothing, as a clause for an error message."""
        raise NotImplementedError

    def has_cache(self, narinfo: NarInfo) -> bool:
        """Whether the cache of a remembered narinfo is still configured, so that ``open`` can use it."""
        raise NotImplementedError

    def open(self, narinfo: NarInfo) -> AbstractContextManager[Iterator[bytes]]:
        """Fetch and decompress a NAR, for a thread: pieces of at most ``PIECE`` bytes, none of them empty.

        Whether the NAR has the narinfo's hash and size is up to the caller, who reads it anyway; the compressed
        and the decompressed size are bounded here. Connections are made on entering, and closed on leaving.

        Raises:
            BinaryCacheFailed: on entering or while reading: the cache does not answer, has no such file, sends too
                much, or what it sends cannot be decompressed.
        """
        raise NotImplementedError

    async def states(self) -> Sequence[CacheState]:
        """Ask each cache what it is."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close idle connections."""
        raise NotImplementedError
