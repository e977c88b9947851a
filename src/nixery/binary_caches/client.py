"""A client of binary caches: narinfos for the event loop, and NARs for the threads that pack."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import structlog

from nixery.binary_caches.configuration import BinaryCache, CacheConfiguration
from nixery.binary_caches.decompression import LARGEST_MEMORY, NeedsMemory, decompressed
from nixery.binary_caches.narinfo import LARGEST_NARINFO, NarInfo, Trust
from nixery.binary_caches.transports import FileMissing, Patience, Transport, TransportFailed, open_transport
from nixery.caching import LRUCache, TTLCache
from nixery.closure import STORE_DIRECTORY, StorePath
from nixery.errors import AnswerTooLarge, BinaryCacheFailed, SettingsError

# Bytes of nix-cache-info.
_LARGEST_CACHE_INFO = 64 * 1024

# Bytes and signatures of a narinfo up to which the event loop reads it: a thread costs as much as a usual narinfo.
_LARGE, _FEW_SIGNATURES = 32 * 1024, 4

# Of a cache that does not say (``store-api.hh`` of Nix).
_DEFAULT_PRIORITY = 50

# Seconds without requests to a cache that failed.
COOLDOWN = 30.0

# Seconds for which no cache is asked for a path that none of them had.
ABSENT = 60.0

# Bytes for paths that no cache had, and for the reasons.
_ABSENT_MEMORY = 2 * 1024 * 1024

# Bytes by which a compressed NAR may be larger than the NAR.
_SPARE = 1024 * 1024

# Bytes after which a cache that fails again has all its attempts once more.
_PROGRESS = 1024 * 1024

# Bytes and seconds: a slower cache is given up on. Seconds of waiting for it alone.
_SLOWEST, _SLOWEST_WINDOW = 64 * 1024, 60.0

# A NAR of one file that is not executable (Nix manual, "Nix Archive (NAR) format"): strings with their lengths.
_FLAT = b"".join(
    len(word).to_bytes(8, "little") + word.ljust(-(-len(word) // 8) * 8, b"\0")
    for word in (b"nix-archive-1", b"(", b"type", b"regular", b"contents")
)

_log = structlog.get_logger("nixery.binary_caches")


Signatures = Literal["trusted", "untrusted", "unknown", "not required"]


@dataclass(frozen=True, slots=True)
class CacheState:
    """The state of a cache, for the operator.

    Attributes:
        name: of the cache, without secrets.
        priority: the lower, the earlier it is asked; ``None`` if it does not answer.
        problem: why it is not used at the moment, as a clause without a subject; empty if it is.
        signatures: whether narinfos of the tried paths are signed by a trusted key; ``unknown`` if it has none of
            them.
        reason: why they are not trusted, as a clause.
    """

    name: str
    priority: int | None
    problem: str = ""
    signatures: Signatures = "unknown"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Missing:
    """A store path that no binary cache has given.

    Attributes:
        path: the store path.
        reason: as a clause for an error message.
        failed: name of a cache that did not answer, and may have it; empty if all have answered.
    """

    path: StorePath
    reason: str
    failed: str = ""


class BinaryCaches:
    """Several binary caches, in the order of their priorities. For one event loop, and any number of threads.

    Args:
        configuration: caches, keys and logins.
        patience: with all of them.
        clock: seconds; only differences matter.

    Raises:
        SettingsError: a cache cannot be used with its parameters, or the certificates cannot be read.
    """

    def __init__(
        self,
        configuration: CacheConfiguration,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        patience = patience or Patience()
        try:
            transports = [
                open_transport(cache, configuration.authorities, patience) for cache in configuration.caches
            ]
        except ValueError as error:
            raise SettingsError((f"Nix's configuration is wrong: {error}",)) from error
        trust = configuration.trust
        self._caches = [
            _Cache(cache, transport, trust.without_signatures() if cache.trusted else trust, patience, clock)
            for cache, transport in zip(configuration.caches, transports, strict=True)
        ]
        self._by_name = {cache.name: cache for cache in self._caches}
        self._absent: TTLCache[StorePath, str] = TTLCache(_ABSENT_MEMORY, clock)
        self._reasons: LRUCache[StorePath, Missing] = LRUCache(_ABSENT_MEMORY)

    async def look_up(self, path: StorePath) -> NarInfo | None:
        """Ask the caches for a path, one after the other; ``None`` if none that answers has a trusted narinfo of it.

        Call it for many paths at once: requests share few connections. Found narinfos are not remembered here;
        paths that no cache has are, for a minute, if all caches have answered.
        """
        if self._absent.get(path) is not None:
            return None
        reasons = []
        failed = ""
        for cache in await self._ready():
            try:
                return await cache.look_up(path)
            except FileMissing:
                reasons.append(f"{cache.name} does not have it")
            except TransportFailed as error:
                reasons.append(f"{cache.name} {error.reason}")
                failed = failed or cache.name
            except ValueError as error:
                reasons.append(f"{cache.name} has a narinfo of it that is refused: {error}")
                _log.warning("narinfo refused", cache=cache.name, path=str(path), reason=str(error))
        for cache in self._caches:
            if cache.priority is None:
                reasons.append(f"{cache.name} is not used: it {cache.problem}")
                failed = failed or cache.name
        reason = "; ".join(reasons) or "no binary cache is configured"
        self._reasons.put(path, Missing(path, reason, failed), len(reason))
        if not failed:
            self._absent.put(path, reason, len(reason), ABSENT)
        return None

    async def find(self, paths: Collection[StorePath], limit: int) -> Mapping[StorePath, NarInfo]:
        """Look paths up side by side; leaves out those that ``look_up`` does not find.

        Args:
            paths: to look up.
            limit: bytes of all their narinfos. Nothing signs what a cache adds to a narinfo, so the look-ups end as
                soon as those found exceed it.

        Raises:
            AnswerTooLarge: they do.
        """
        left = limit
        found: dict[StorePath, NarInfo] = {}
        tasks = [asyncio.ensure_future(self.look_up(path)) for path in paths]
        try:
            for task in asyncio.as_completed(tasks):
                narinfo = await task
                if narinfo is not None:
                    left -= len(narinfo.text)
                    if left < 0:
                        raise AnswerTooLarge("the text of all narinfos", limit)
                    found[narinfo.info.path] = narinfo
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return found

    def explain(self, path: StorePath) -> Missing:
        """Say why the last look-up found nothing."""
        return self._reasons.get(path) or Missing(path, "no binary cache was asked for it")

    def read(self, text: bytes, path: StorePath, cache: str) -> NarInfo:
        """Check a remembered narinfo (``NarInfo.text``) as if its cache had just sent it.

        Raises:
            ValueError: it is not trusted any more, or its cache is not configured any more.
        """
        known = self._by_name.get(cache)
        if known is None:
            raise ValueError(f"the binary cache {cache} is not configured")
        return known.trust.read(text, path, cache)

    @contextmanager
    def open(
        self,
        narinfo: NarInfo,
        memory: int = LARGEST_MEMORY,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Iterator[Iterator[bytes]]:
        """Fetch and decompress a NAR, for a thread: pieces of at most ``PIECE`` bytes, none of them empty.

        The iterator ends only after ``nar_size`` bytes. Whether they have the NAR's hash is up to the caller, who
        reads them anyway. Retries before the first byte, and resumes after it. The connection is closed on leaving.

        Args:
            narinfo: of the NAR.
            memory: for decompression, in bytes.
            is_wanted: asked before each further attempt.

        Raises:
            NeedsMemory: while reading: that is less than ``LARGEST_MEMORY``, and not enough.
            BinaryCacheFailed: on entering or while reading: the cache does not answer, has no such file, sends too
                much or too little, or what it sends cannot be decompressed.
        """
        cache = self._by_name.get(narinfo.cache)
        if cache is None:
            raise BinaryCacheFailed(narinfo.cache, "it is not configured any more")
        compressed = _compressed(cache.transport, narinfo, cache.patience, is_wanted)
        try:
            yield cache.translated(
                narinfo, _complete(narinfo, decompressed(narinfo.compression, compressed, memory)), memory
            )
        finally:
            compressed.close()

    async def states(self, tried: Collection[StorePath] = ()) -> Sequence[CacheState]:
        """Ask each cache what it is; in the order in which they are asked for paths.

        Args:
            tried: paths that it is asked for, to see its signatures.
        """
        await asyncio.gather(*(cache.probe(logged=False) for cache in self._caches))
        ready = await self._ready()
        others = [cache for cache in self._caches if cache not in ready]
        return await asyncio.gather(*(cache.state(tried) for cache in (*ready, *others)))

    async def close(self) -> None:
        """Close idle connections."""
        for cache in self._caches:
            await cache.close()

    async def _ready(self) -> Sequence[_Cache]:
        """Return the caches that can be asked, in their order."""
        unknown = [cache for cache in self._caches if cache.is_unknown]
        if unknown:
            probes = asyncio.gather(*(cache.probe() for cache in unknown))
            # A cache that failed before delays nothing while others answer.
            if not all(cache.problem for cache in unknown) or not any(
                cache.is_usable for cache in self._caches
            ):
                await probes
        ready = [cache for cache in self._caches if cache.is_usable]
        return sorted(ready, key=lambda cache: cache.priority or 0)


class _Cache:
    """A cache with its connections, and what is known of it.

    Attributes:
        name: without secrets.
        priority: ``None`` before its first answer.
        problem: its last failure, as a clause without a subject.
    """

    def __init__(
        self,
        cache: BinaryCache,
        transport: Transport,
        trust: Trust,
        patience: Patience,
        clock: Callable[[], float],
    ) -> None:
        self.cache = cache
        self.name = cache.name
        self.transport = transport
        self.trust = trust
        self.priority: int | None = None
        self.problem = ""
        self.patience = patience
        self._clock = clock
        self._down_until = 0.0
        self._turns = asyncio.Semaphore()
        self._probe: asyncio.Task[None] | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it has said what it is, and did not fail lately."""
        return self.priority is not None and not self._is_down

    @property
    def is_unknown(self) -> bool:
        """Whether it has not said what it is, and may be asked."""
        return self.priority is None and not self._is_down

    @property
    def _is_down(self) -> bool:
        return self._clock() < self._down_until

    async def probe(self, *, logged: bool = True) -> None:
        """Read ``nix-cache-info``; a failure is kept in ``problem``. Concurrent callers share one request."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._read_cache_info(logged=logged))
        await asyncio.shield(self._probe)

    async def close(self) -> None:
        """End a probe, and close idle connections."""
        if self._probe is not None:
            self._probe.cancel()
        await self.transport.close()

    async def _read_cache_info(self, *, logged: bool) -> None:
        try:
            content = await self.transport.read("nix-cache-info", _LARGEST_CACHE_INFO)
            if self.priority is None:
                self._turns = asyncio.Semaphore(self.transport.concurrency)
            self.priority = _priority(content, self.cache.priority)
            self.problem = ""
        except FileMissing:
            self.fail("has no nix-cache-info, so it is no binary cache", logged=logged)
        except (TransportFailed, ValueError) as error:
            self.fail(str(error), logged=logged)

    def fail(self, reason: str, *, logged: bool = True) -> None:
        """Ask it nothing for a while."""
        if logged and not self._is_down:
            _log.warning("binary cache fails", cache=self.name, reason=reason, cooldown=COOLDOWN)
        self.problem = reason
        self._down_until = self._clock() + COOLDOWN

    async def look_up(self, path: StorePath) -> NarInfo:
        """Ask for the narinfo of a path.

        Raises:
            FileMissing: it has none.
            TransportFailed: it does not answer.
            ValueError: its narinfo is malformed, or not trusted.
        """
        async with self._turns:
            if self._is_down:
                raise TransportFailed(self.problem, again=True)
            try:
                content = await self.transport.read(f"{path.base_name[:32]}.narinfo", LARGEST_NARINFO)
            except FileMissing:
                raise
            except TransportFailed as error:
                if error.again:
                    self.fail(error.reason)
                raise
        # Nothing signs what a cache adds: many wrong signatures, or references, take tens of milliseconds.
        if len(content) > _LARGE or content.count(b"\nSig:") > _FEW_SIGNATURES:
            return await asyncio.to_thread(self.trust.read, content, path, self.name)
        return self.trust.read(content, path, self.name)

    async def state(self, tried: Collection[StorePath]) -> CacheState:
        """Describe it, after it was probed."""
        signatures: Signatures = "unknown" if self.trust.require_signatures else "not required"
        reason = ""
        if self.is_usable and self.trust.require_signatures:
            answers = await asyncio.gather(*map(self.look_up, tried), return_exceptions=True)
            refused = [str(answer) for answer in answers if isinstance(answer, ValueError)]
            if any(isinstance(answer, NarInfo) for answer in answers):
                signatures = "trusted"
            elif refused:
                signatures, reason = "untrusted", refused[0]
        return CacheState(
            self.name, self.priority, "" if self.is_usable else self.problem, signatures, reason
        )

    def translated(self, narinfo: NarInfo, pieces: Iterator[bytes], memory: int) -> Iterator[bytes]:
        """Have errors of reading a NAR name the cache, the file and the path.

        Raises:
            NeedsMemory: on reading: another attempt with more memory may succeed.
            BinaryCacheFailed: on reading.
        """
        try:
            yield from pieces
        except (TransportFailed, ValueError) as error:
            if isinstance(error, NeedsMemory) and memory < LARGEST_MEMORY:
                raise
            if isinstance(error, TransportFailed) and error.again:
                self.fail(str(error))
            raise BinaryCacheFailed(
                self.name, f"{narinfo.url}, of {narinfo.info.path}: it {error}"
            ) from error


def _compressed(
    transport: Transport, narinfo: NarInfo, patience: Patience, is_wanted: Callable[[], bool]
) -> Generator[bytes, None, None]:
    """Read a compressed NAR, with retries and limits.

    Raises:
        TransportFailed: the cache fails for good.
    """
    size = narinfo.info.nar_size
    # Nothing signs the size of the file. Incompressible contents become a little larger.
    limit = size if narinfo.compression == "none" else size + size // 32 + _SPARE
    limit = limit if narinfo.file_size is None else min(limit, narinfo.file_size)
    position, failures, progress = 0, 0, 0
    while True:
        try:
            with transport.stream(narinfo.url, position) as pieces:
                for piece in _limited(_fast_enough(pieces), limit - position):
                    position += len(piece)
                    yield piece
                return
        except TransportFailed as error:
            failures = 0 if position - progress > _PROGRESS else failures + 1
            progress = position
            if not error.again or failures >= patience.attempts or not is_wanted():
                raise
        time.sleep(patience.pause * 2 ** min(failures, 6))


def _limited(pieces: Iterator[bytes], limit: int) -> Iterator[bytes]:
    for piece in pieces:
        limit -= len(piece)
        if limit < 0:
            raise TransportFailed("sends more bytes than its narinfo says", again=False)
        yield piece


def _fast_enough(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Give up on a cache that sends next to nothing, however slowly its bytes are used here."""
    waited, received = 0.0, 0
    while True:
        began = time.monotonic()
        piece = next(pieces, None)
        waited += time.monotonic() - began
        if piece is None:
            return
        received += len(piece)
        yield piece
        if waited > _SLOWEST_WINDOW:
            if received < _SLOWEST:
                raise TransportFailed(f"sends less than {_SLOWEST:,} bytes a minute", again=False)
            waited, received = 0.0, 0


def _complete(narinfo: NarInfo, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Check the size of a NAR, and the content address of a file that nothing else vouches for.

    Raises:
        ValueError: before the last piece, it has another one.
    """
    left = narinfo.info.nar_size
    flat = _FlatHash() if narinfo.flat_hash else None
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise ValueError("decompresses to more bytes than its NarSize")
        if flat is not None:
            flat.update(piece)
            if not left and flat.hexdigest() != narinfo.flat_hash:
                raise ValueError("does not have the content that its content address says")
        yield piece
    if left:
        raise ValueError(f"is cut off: {left:,} bytes of its NAR are missing")


class _FlatHash:
    """The SHA-256 of the only file of a NAR."""

    def __init__(self) -> None:
        self._head = b""
        self._left = -1
        self._hash = hashlib.sha256()

    def update(self, piece: bytes) -> None:
        if self._left < 0:
            self._head += piece
            if len(self._head) < len(_FLAT) + 8:
                return
            piece = self._head[len(_FLAT) + 8 :]
            self._left = int.from_bytes(self._head[len(_FLAT) :][:8], "little")
        self._hash.update(piece[: self._left])
        self._left -= min(self._left, len(piece))

    def hexdigest(self) -> str:
        """Return the digits; empty if the NAR is not that of a file, or is cut off."""
        is_file = self._head.startswith(_FLAT) and not self._left
        return self._hash.hexdigest() if is_file else ""


def _priority(content: bytes, given: int | None) -> int:
    """Parse ``nix-cache-info``.

    Raises:
        ValueError: the cache cannot be used.
    """
    lines = (line.partition(":") for line in content.decode(errors="replace").split("\n"))
    fields = {name.strip(): value.strip() for name, _, value in lines}
    directory = fields.get("StoreDir", STORE_DIRECTORY)
    if directory != STORE_DIRECTORY:
        raise ValueError(f"is of the store directory {directory[:100]!r}, not {STORE_DIRECTORY}")
    if given is not None:
        return given
    priority = fields.get("Priority", "")
    return int(priority) if re.fullmatch("[0-9]{1,9}", priority) else _DEFAULT_PRIORITY
