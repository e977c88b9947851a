"""Compression of layers.

The compressed bytes are what clients verify, so they must be the same on every machine. Measured with ISA-L
2.31 (isal 1.9.1) on emulated processors from Nehalem to AVX2 ones: levels 1 and 2 give the same bytes on all of
them, level 3 has a variant for AVX2 that gives others. Hence level 2, which is also the fastest here. What the compressor of
this machine does in fact is part of every layer's identity (``fingerprint``), so that a machine or a library that
compresses differently makes layers of its own and never claims another's.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

from isal import isal_zlib

_LEVEL = 2

# gzip framing around deflate with a window of 2^15 bytes; the header has no time and no name.
_GZIP = 16 + 15


class Compressor(Protocol):
    """Compresses one stream."""

    def compress(self, data: bytes, /) -> bytes:
        """Take more input; may return nothing yet."""
        ...

    def flush(self) -> bytes:
        """End the stream and return what is left of it."""
        ...


class Gzip:
    """gzip through ISA-L.

    Attributes:
        identity: of everything that decides about the bytes.
    """

    def __init__(self) -> None:
        self.identity = f"gzip isa-l {_LEVEL} {self._fingerprint()}"

    def start(self) -> Compressor:
        """Begin a stream."""
        compressor: Compressor = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _GZIP)
        return compressor

    def _fingerprint(self) -> str:
        # Something with matches near and far, and stretches without any.
        noise = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(2000))
        sample = noise + noise[::3] + noise.hex().encode() + noise
        compressor = self.start()
        return hashlib.sha256(compressor.compress(sample) + compressor.flush()).hexdigest()[:16]
