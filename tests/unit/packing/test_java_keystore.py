"""The format of the keystore; tests/end_to_end/test_java.py has Java read one."""

from __future__ import annotations

import base64
import hashlib
import io

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from nixery.packing.java_keystore import java_keystore

AUTHORITIES = [trustme.CA(organization_name=name).cert_pem.bytes() for name in ("one", "two")]
PEM = AUTHORITIES[0]


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def entries(keystore: bytes | None) -> list[tuple[str, int, str, bytes]]:
    """Read a keystore as sun.security.provider.JavaKeyStore does."""
    assert keystore is not None
    content, digest = keystore[:-20], keystore[-20:]
    password = "changeit".encode("utf-16-be")
    assert hashlib.sha1(password + b"Mighty Aphrodite" + content).digest() == digest  # noqa: S324 -- the format's
    stream = io.BytesIO(content)

    def number(size: int) -> int:
        return int.from_bytes(stream.read(size))

    def text() -> str:
        return stream.read(number(2)).decode()

    assert (number(4), number(4)) == (0xFEEDFEED, 2)
    found = []
    for _ in range(number(4)):
        assert number(4) == 2
        found.append((text(), number(8), text(), stream.read(number(4))))
    assert not stream.read()
    return found


def test_the_certificates_of_a_bundle_are_in_the_keystore() -> None:
    bundle = b"# a comment\nOne\n====\n" + AUTHORITIES[0] + b"\nTwo\n" + AUTHORITIES[1]
    assert entries(java_keystore(bundle)) == [
        (hashlib.sha256(der(pem)).hexdigest(), 1000, "X.509", der(pem)) for pem in AUTHORITIES
    ]


def test_a_certificate_that_is_there_twice_has_one_entry() -> None:
    assert java_keystore(AUTHORITIES[0] * 2) == java_keystore(AUTHORITIES[0])


def pem(content: bytes) -> bytes:
    text = base64.encodebytes(content)
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "bundle",
    [
        b"",
        b"no certificate",
        b"\xff\xfe",
        PEM.replace(b"END", b"AND"),
        PEM + PEM.replace(b"M", b"*"),
        PEM + pem(b""),
        PEM + pem(b"0\x82"),
        PEM + pem(der(PEM)[:-1]),
        PEM + pem(der(PEM) + b"x"),
        PEM + pem(b"0\x82\x00\x00"),
        PEM + pem(b"0\x82\x00\x05" + b"x" * 65541),
        b"".join(pem(b"0\x82\x01\x00" + number.to_bytes(256)) for number in range(2001)),
    ],
    # The certificates differ in each process.
    ids=[
        *("empty", "text", "bytes", "unclosed", "not-base64", "no-der", "cut-length", "cut", "longer"),
        *("empty-der", "too-long", "too-many"),
    ],
)
def test_a_malformed_bundle_gives_no_keystore(bundle: bytes) -> None:
    assert java_keystore(bundle) is None
