"""NARs that are fetched ahead are read in any order, in bounded memory, and no thread waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nixery.binary_caches.decompression import LARGEST_MEMORY, NeedsMemory
from nixery.binary_caches.read_ahead import ReadAhead
from nixery.closure import StorePath

PATHS = [StorePath(f"{number:032}-path") for number in range(10)]


class Cache:
    """Serves NARs of some pieces, and counts what is fetched."""

    def __init__(self, pieces: int = 3) -> None:
        self.pieces = pieces
        self.fetched: dict[StorePath, int] = {}
        self.closed: list[StorePath] = []
        self.broken: set[StorePath] = set()
        self.large: set[StorePath] = set()
        self.read_with_much_memory: list[StorePath] = []
        self.first = threading.Event()

    @contextmanager
    def open(self, path: StorePath, memory: int) -> Iterator[Iterator[bytes]]:
        try:
            yield self._pieces(path, memory)
        finally:
            self.closed.append(path)

    def _pieces(self, path: StorePath, memory: int) -> Iterator[bytes]:
        for number in range(self.pieces):
            if path in self.large and number:
                if memory < LARGEST_MEMORY:
                    raise NeedsMemory(memory)
                self.read_with_much_memory.append(path)
            if path in self.broken and number:
                raise ValueError(f"{path} is broken")
            self.fetched[path] = number + 1
            self.first.set()
            yield f"{path.base_name[:32]}-{number} ".encode()


def expected(path: StorePath, pieces: int = 3) -> bytes:
    return b"".join(f"{path.base_name[:32]}-{number} ".encode() for number in range(pieces))


@pytest.mark.parametrize("order", [PATHS, PATHS[::-1]], ids=["as expected", "reversed"])
@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("room", [1, 1 << 20])
def test_nars_are_read_whole_in_any_order(order: list[StorePath], at_once: int, room: int) -> None:
    cache = Cache()
    with ReadAhead(cache.open, at_once, room) as ahead:
        ahead.expect(PATHS)
        for path in order:
            with ahead.open(path) as pieces:
                assert b"".join(pieces) == expected(path)
    assert sorted(cache.closed) == PATHS, "each is fetched once"


def test_a_nar_is_fetched_before_it_is_opened() -> None:
    cache = Cache()
    with ReadAhead(cache.open) as ahead:
        ahead.expect(PATHS[:1])
        assert cache.first.wait(60)


def test_little_of_a_large_nar_waits_in_memory() -> None:
    cache = Cache(pieces=1000)
    with ReadAhead(cache.open, room=100) as ahead:
        ahead.expect(PATHS[:1])
        assert cache.first.wait(60)
        with ahead.open(PATHS[0]) as pieces:
            next(pieces)
            assert cache.fetched[PATHS[0]] < 20
            assert sum(1 for _ in pieces) == 999


def test_an_error_of_fetching_reaches_the_reader() -> None:
    cache = Cache()
    cache.broken.add(PATHS[0])
    with ReadAhead(cache.open) as ahead:
        ahead.expect(PATHS[:2])
        with pytest.raises(ValueError, match="broken"), ahead.open(PATHS[0]) as pieces:
            list(pieces)
        with ahead.open(PATHS[1]) as pieces:
            assert b"".join(pieces) == expected(PATHS[1])


def test_nars_that_need_much_memory_are_decompressed_where_they_are_read() -> None:
    cache = Cache()
    cache.large.update(PATHS)
    with ReadAhead(cache.open, at_once=len(PATHS)) as ahead:
        ahead.expect(PATHS)
        for number, path in enumerate(PATHS):
            assert not set(cache.read_with_much_memory) & set(PATHS[number:])
            with ahead.open(path) as pieces:
                assert b"".join(pieces) == expected(path)


def test_nothing_is_fetched_after_the_end() -> None:
    cache = Cache(pieces=1000)
    with ReadAhead(cache.open, at_once=2, room=1) as ahead:
        ahead.expect(PATHS)
        with ahead.open(PATHS[0]) as pieces:
            next(pieces)
    for thread in threading.enumerate():
        if thread.name.startswith("fetching"):
            thread.join(60)
            assert not thread.is_alive()
    assert len(cache.fetched) <= 3
    assert set(cache.fetched) == set(cache.closed)
