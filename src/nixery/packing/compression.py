"""Compression of layers.

Clients verify the compressed bytes, so they must be the same on every machine. Measured with ISA-L 2.31 (isal
1.9.1) on emulated processors from Nehalem to AVX2 ones: levels 1 and 2 give the same bytes on all of them,
level 3 has a variant for AVX2 that gives others. Hence level 2 for gzip, which is also the fastest here. A
sample of the compressor's output (``_fingerprint``) is part of every layer's identity, beside its name,
version and level; so a machine or a library that compresses differently makes its own layers and never claims
those of another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import isal
import zstandard
from isal import isal_zlib

from nixery.oci.documents import MediaType

# docs/reference/performance.md has speed and ratio of the other levels.
_GZIP_LEVEL = 2
_ZSTD_LEVEL = 3

# gzip framing around deflate with a window of 2^15 bytes; the header has no time and no name.
_GZIP = 16 + 15


class Compressor(Protocol):
    """Compresses one stream."""

    def compress(self, data: bytes | memoryview, /) -> bytes:
        """Compress more input; may return nothing yet."""
        ...

    def flush(self) -> bytes:
        """End the stream; return its rest."""
        ...


@dataclass(frozen=True, slots=True)
class Compression:
    """A way to compress.

    Attributes:
        media_type: of layers.
        start: begins a stream; threads may use streams concurrently.
        identity: of everything that determines the bytes.
    """

    media_type: MediaType
    start: Callable[[], Compressor]
    identity: str


def compression(name: Literal["gzip", "zstd"], level: int | None = None) -> Compression:
    """Choose a compression.

    Args:
        name: as in the settings.
        level: 0 to 3 for gzip, 1 to 19 for zstd; ``None`` for the default.
    """
    return _gzip(level) if name == "gzip" else _zstd(level)


def _gzip(level: int | None) -> Compression:
    level = _GZIP_LEVEL if level is None else level

    def start() -> Compressor:
        compressor: Compressor = isal_zlib.compressobj(level, isal_zlib.DEFLATED, _GZIP)
        return compressor

    identity = f"gzip isa-l {isal.ISAL_VERSION} {level} {_fingerprint(start)}"
    return Compression(MediaType.OCI_LAYER_GZIP, start, identity)


def _zstd(level: int | None) -> Compression:
    level = _ZSTD_LEVEL if level is None else level

    def start() -> Compressor:
        # One thread: the number of threads would change the bytes, and layers are packed in parallel anyway.
        return zstandard.ZstdCompressor(level, write_checksum=False, threads=0).compressobj()

    version = ".".join(map(str, zstandard.ZSTD_VERSION))
    return Compression(
        MediaType.OCI_LAYER_ZSTD, start, f"zstd libzstd {version} {level} {_fingerprint(start)}"
    )


def _fingerprint(start: Callable[[], Compressor]) -> str:
    # A sample with near and far matches, and parts without any.
    noise = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(2000))
    sample = noise + noise[::3] + noise.hex().encode() + noise
    compressor = start()
    return hashlib.sha256(compressor.compress(sample) + compressor.flush()).hexdigest()[:16]
