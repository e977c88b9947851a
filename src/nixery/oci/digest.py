"""Content digests, as the image specification defines them (descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from nixery.errors import InvalidDigest

_SHA256 = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256 digest, the only algorithm that every client supports.

    Attributes:
        hex: 64 lower-case hexadecimal digits.
    """

    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse ``sha256:<hex>``.

        Raises:
            InvalidDigest: it is anything else, for example another algorithm.
        """
        match = _SHA256.fullmatch(text)
        if match is None:
            raise InvalidDigest(text)
        return cls(match[1])

    @classmethod
    def of(cls, content: bytes) -> Digest:
        """Return the digest of bytes."""
        return cls(hashlib.sha256(content).hexdigest())

    def __str__(self) -> str:
        return f"sha256:{self.hex}"
