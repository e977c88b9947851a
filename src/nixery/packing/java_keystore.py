"""A Java keystore (JKS) of trusted certificates: Java does not read the bundles that other programs read.

The format (sun.security.provider.JavaKeyStore): a header, an entry for each certificate, and the SHA-1 of a
password, a constant and all before it. All versions of Java read it; the password protects nothing, and Java
reads the certificates without it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Iterator

# Bytes of a bundle, and certificates in it. Mozilla's has 150 in 230 kB.
MOST_BYTES = 4 << 20
_MOST_CERTIFICATES = 2000

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([^-]*)-----END CERTIFICATE-----")

# Bytes of a certificate after its header. DER writes smaller lengths in one byte.
_SIZES = range(1 << 8, 1 << 16)

_MAGIC, _VERSION, _TRUSTED = 0xFEEDFEED, 2, 2

# The time of all files of an image, in milliseconds.
_DATE = 1000

# The password of every keystore of certificates that Java itself comes with, and the format's constant.
_PASSWORD = "changeit".encode("utf-16-be")
_CONSTANT = b"Mighty Aphrodite"


def java_keystore(bundle: bytes) -> bytes | None:
    """Write the certificates of a PEM bundle as a keystore; ``None`` if one is malformed, or if there is none.

    A program that finds no keystore says so. One malformed certificate would make Java refuse all others.
    """
    try:
        # Without those that are there twice: a name stands for one certificate.
        certificates = {hashlib.sha256(der).hexdigest(): der for der in _certificates(bundle)}
    except ValueError:
        return None
    if not 0 < len(certificates) <= _MOST_CERTIFICATES:
        return None
    content = struct.pack(">III", _MAGIC, _VERSION, len(certificates)) + b"".join(
        struct.pack(">I", _TRUSTED)
        + _text(fingerprint)
        + struct.pack(">Q", _DATE)
        + _text("X.509")
        + struct.pack(">I", len(der))
        + der
        for fingerprint, der in certificates.items()
    )
    return content + hashlib.sha1(_PASSWORD + _CONSTANT + content).digest()  # noqa: S324 -- the format's


def _certificates(bundle: bytes) -> Iterator[bytes]:
    for match in _PEM.finditer(bundle):
        der = base64.b64decode(b"".join(match[1].split()), validate=True)
        if not _is_one_sequence(der):
            raise binascii.Error("not a certificate")
        yield der


def _is_one_sequence(der: bytes) -> bool:
    """Whether the bytes are one DER sequence with a length in two bytes, as every certificate's."""
    header, size = der[:4], len(der) - len(der[:4])
    return size in _SIZES and header == b"\x30\x82" + size.to_bytes(2)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">H", len(encoded)) + encoded
