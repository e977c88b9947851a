"""Fetch the next NARs while one is packed.

A distant cache answers a request after some hundredths of a second, and most store paths are small: without this,
packing waits for one answer after the other. Decompression runs ahead as well, on other cores.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import TracebackType
from typing import Self

from nixery.binary_caches.decompression import LARGEST_MEMORY, USUAL_MEMORY, NeedsMemory
from nixery.closure import StorePath

Pieces = Iterator[bytes]
OpenNar = Callable[[StorePath, int], AbstractContextManager[Pieces]]

# NARs that are fetched at the same time, and bytes of each that wait in memory.
_AT_ONCE = 8
_ROOM = 4 * 1024 * 1024

# Seconds between two checks whether a NAR is still wanted, while its cache sends nothing.
_LONGEST_WAIT = 1.0


class ReadAhead:
    """Opens NARs, expected ones in advance. A context manager; at its end, nothing is fetched any more.

    Args:
        open_nar: fetches a NAR, in the thread that reads it, with so many bytes of memory to decompress it. NARs that
            need more than ``USUAL_MEMORY`` are fetched again when they are read, so that a cache cannot have many of
            them in memory.
        at_once: NARs that are fetched at the same time.
        room: bytes of each that wait in memory; one piece may exceed it.
    """

    def __init__(self, open_nar: OpenNar, at_once: int = _AT_ONCE, room: int = _ROOM) -> None:
        self._open_nar = open_nar
        self._room = room
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="fetching")
        self._lock = threading.Lock()
        self._expected: dict[StorePath, _Fetch] = {}

    def expect(self, paths: Iterable[StorePath]) -> None:
        """Fetch NARs as soon as possible, in this order; the caller opens each of them once."""
        for path in paths:
            fetch = _Fetch(self._room)
            with self._lock:
                if path in self._expected:
                    continue
                self._expected[path] = fetch
            self._threads.submit(fetch.run, self._open_nar, path)

    @contextmanager
    def open(self, path: StorePath, check: Callable[[], None]) -> Iterator[Pieces]:
        """Open the NAR of a store path.

        Args:
            path: the store path.
            check: called at least every second while the cache sends nothing, and for each piece; an exception from
                it ends the reading.

        Raises:
            Exception: of fetching it, while reading; or of the check.
        """
        with self._lock:
            fetch = self._expected.pop(path, None)
        # All threads may be fetching what other layers need later. The packing thread itself waits for no cache, so
        # that `check` can end its work.
        if fetch is None or fetch.take_over():
            fetch = _Fetch(self._room)
            arguments = (self._open_nar, path, LARGEST_MEMORY)
            threading.Thread(target=fetch.run, args=arguments, name="fetching", daemon=True).start()
        with ExitStack() as stack:
            stack.callback(fetch.abandon)
            yield self._with_more_memory(path, fetch, check, stack)

    def _with_more_memory(
        self, path: StorePath, fetch: _Fetch, check: Callable[[], None], stack: ExitStack
    ) -> Pieces:
        size = 0
        try:
            for piece in fetch.pieces(check):
                size += len(piece)
                yield piece
        except NeedsMemory:
            for piece in stack.enter_context(self._open_nar(path, LARGEST_MEMORY)):
                # Its members need not be alike, so some of it may have been read.
                if size < len(piece):
                    yield piece[size:]
                size = max(0, size - len(piece))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for fetch in self._expected.values():
                fetch.abandon()
            self._expected.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Fetch:
    """A NAR between the thread that fetches it and the one that packs it."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._is_started = self._is_done = self._is_abandoned = False
        self._error: BaseException | None = None

    def take_over(self) -> bool:
        """Keep the fetch from starting; return whether it had not started."""
        with self._changed:
            if self._is_started:
                return False
            self._is_abandoned = True
            return True

    def abandon(self) -> None:
        """End the fetch. The caller reads no more of it."""
        with self._changed:
            self._is_abandoned = True
            self._waiting.clear()
            self._changed.notify_all()

    def run(self, open_nar: OpenNar, path: StorePath, memory: int = USUAL_MEMORY) -> None:
        """Fetch the NAR, with so many bytes of memory to decompress it."""
        with self._changed:
            if self._is_abandoned:
                return
            self._is_started = True
        try:
            with open_nar(path, memory) as pieces:
                for piece in pieces:
                    if not self._put(piece):
                        return
        except BaseException as error:  # noqa: BLE001 -- it is raised where the NAR is read
            self._error = error
        finally:
            with self._changed:
                self._is_done = True
                self._changed.notify_all()

    def _put(self, piece: bytes) -> bool:
        with self._changed:
            while self._size >= self._room and not self._is_abandoned:
                self._changed.wait()
            if self._is_abandoned:
                return False
            self._waiting.append(piece)
            self._size += len(piece)
            self._changed.notify_all()
        return True

    def pieces(self, check: Callable[[], None]) -> Pieces:
        """Yield the pieces as they come; see ``ReadAhead.open``.

        Raises:
            Exception: of the fetch, or of the check.
        """
        while True:
            check()
            with self._changed:
                if not self._waiting and not self._is_done:
                    self._changed.wait(_LONGEST_WAIT)
                if not self._waiting:
                    if self._is_done:
                        break
                    continue
                pieces = list(self._waiting)
                self._waiting.clear()
                self._size = 0
                self._changed.notify_all()
            yield from pieces
        if self._error is not None:
            raise self._error
