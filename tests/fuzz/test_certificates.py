"""Client certificates from proxies: no header field but a valid certificate names a user, and none is an error of ours."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from nixery.access.certificates import CertificateVerifier
from nixery.access.configuration import CertificateName, ClientCertificates
from nixery.access.identity import CredentialsRefused, Identity
from tests.fuzz.effort import examples
from tests.unit.access.test_certificates import NOW, PROXY, Authority, pem

pytestmark = pytest.mark.xdist_group("fuzz")

_NAMES = [x509.DNSName("alice"), x509.RFC822Name("alice"), x509.UniformResourceIdentifier("alice")]


@pytest.fixture(scope="module")
def verifiers(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[CertificateVerifier], bytes]:
    authority = Authority()
    file: Path = tmp_path_factory.mktemp("certificates") / "clients.pem"
    file.write_text(pem(authority.certificate))
    made = []
    for kind in CertificateName:
        section = {"addresses": [PROXY], "ca-file": str(file), "user": kind, "groups": kind}
        made.append(
            CertificateVerifier(
                ClientCertificates.model_validate(section), {}, NOW.timestamp, wall_clock=NOW.timestamp
            )
        )
    certificate = authority.issue("alice", units=["alice"], alternative=_NAMES)
    return made, certificate.public_bytes(Encoding.DER)


def _identity(verifier: CertificateVerifier, value: str) -> Identity | None:
    try:
        return verifier.identity({"client-cert": value}, PROXY)
    except CredentialsRefused:
        return None


_TEXTS = st.text(max_size=200) | st.binary(max_size=200).map(
    lambda content: base64.b64encode(content).decode()
)


@given(_TEXTS, st.sampled_from(["{}", ":{}:", "-----BEGIN{}", "-----BEGIN%20CERTIFICATE-----%0A{}"]))
@examples(200)
def test_no_text_names_a_user(
    verifiers: tuple[list[CertificateVerifier], bytes], text: str, form: str
) -> None:
    assert _identity(verifiers[0][0], form.format(text)) is None


@given(st.data())
@examples(300)
def test_a_changed_certificate_names_no_other_user(
    verifiers: tuple[list[CertificateVerifier], bytes], data: st.DataObject
) -> None:
    made, original = verifiers
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    del changed[data.draw(st.integers(1, len(changed)) | st.just(len(changed))) :]
    found = _identity(data.draw(st.sampled_from(made)), f":{base64.b64encode(changed).decode()}:")
    # Bytes outside of what is signed may differ, such as the leading zeros of the signature.
    assert found is None or found.name == "alice"
