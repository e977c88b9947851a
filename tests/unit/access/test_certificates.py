"""Client certificates that a proxy hands on: only from its addresses, and verified once more."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nixery.access.authentication import Authenticator, Verifiers
from nixery.access.certificates import CertificateVerifier, read_authorities
from nixery.access.checking import check_access
from nixery.access.configuration import ClientCertificates, read_access_file
from nixery.access.failed_logins import FailedLogins
from nixery.access.identity import CredentialsRefused, Identity, Kind
from nixery.errors import SettingsError
from nixery.request_context import Client

PROXY = "192.0.2.7"
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
Extension = tuple[x509.ExtensionType, bool]


class Authority:
    """A certificate authority whose certificates have exactly the given parts."""

    def __init__(self, name: str = "clients") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self._name, self._key, [(x509.BasicConstraints(True, None), True)])

    def issue(
        self,
        *names: str,
        units: Sequence[str] = (),
        alternative: Sequence[x509.GeneralName] = (),
        others: Sequence[Extension] = (),
        key: Key | None = None,
        start: datetime = NOW - DAY,
        end: datetime = NOW + DAY,
    ) -> x509.Certificate:
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names]
        subject += [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units]
        extensions = [*others]
        if alternative:
            extensions.append((x509.SubjectAlternativeName(alternative), False))
        key = key or ec.generate_private_key(ec.SECP256R1())
        return self._sign(x509.Name(subject), key, extensions, start, end)

    def _sign(
        self,
        subject: x509.Name,
        key: Key,
        extensions: Sequence[Extension],
        start: datetime = NOW - DAY,
        end: datetime = NOW + DAY,
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(start).not_valid_after(end)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())


def der(certificate: x509.Certificate) -> str:
    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def rfc_9440(certificate: x509.Certificate) -> str:
    return f":{der(certificate)}:"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def section(tmp_path: Path, authority: Authority) -> dict[str, object]:
    (tmp_path / "clients.pem").write_text(pem(authority.certificate))
    return {"addresses": ["192.0.2.0/24"], "ca-file": str(tmp_path / "clients.pem")}


class Clock:
    """Both clocks of a verifier."""

    def __init__(self) -> None:
        self.now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Verify = Callable[..., Identity | None]


@pytest.fixture
def verify(section: dict[str, object], clock: Clock) -> Verify:
    def verifier(**keys: object) -> Callable[[str, str], Identity | None]:
        given = ClientCertificates.model_validate({**section, **keys})
        made = CertificateVerifier(given, {"staff": ("alice",), "others": ("bob",)}, clock, clock)
        return lambda value, peer: made.identity({given.header.lower(): value}, peer)

    return lambda value, peer=PROXY, **keys: verifier(**keys)(value, peer)


@pytest.mark.parametrize(
    "spelt",
    [rfc_9440, lambda one: quote(pem(one)), lambda one: quote(pem(one), safe="+=/ \n"), der],
    ids=["RFC 9440", "nginx", "AWS", "Traefik"],
)
def test_a_certificate_names_a_user_in_each_form_that_proxies_write(
    verify: Verify, authority: Authority, spelt: Callable[[x509.Certificate], str]
) -> None:
    value = spelt(authority.issue("alice")).replace("\n", "%0A")
    assert verify(value) == Identity(Kind.CERTIFICATE, "alice", frozenset({"staff"}))


@pytest.mark.parametrize("peer", ["192.0.3.7", "::1", "a text", ""])
def test_the_header_field_of_others_is_ignored(verify: Verify, authority: Authority, peer: str) -> None:
    assert verify(rfc_9440(authority.issue("alice")), peer) is None
    assert verify("anything", peer) is None


def test_a_request_without_a_certificate_is_not_identified(verify: Verify) -> None:
    assert verify("") is None
    assert verify(" ") is None


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)])
def test_a_certificate_may_have_a_key_of_another_kind(verify: Verify, authority: Authority, key: Key) -> None:
    found = verify(rfc_9440(authority.issue("alice", key=key)))
    assert found is not None
    assert found.name == "alice"


def usage(*uses: x509.ObjectIdentifier) -> list[Extension]:
    return [(x509.ExtendedKeyUsage(uses), False)]


REFUSED = {
    "expired": ({"end": NOW - timedelta(seconds=1)}, "expired"),
    "not yet valid": ({"start": NOW + timedelta(hours=1)}, "expired"),
    "for servers": ({"others": usage(ExtendedKeyUsageOID.SERVER_AUTH)}, "not for clients"),
    "an authority": ({"others": [(x509.BasicConstraints(True, None), True)]}, "not for clients"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_certificate_that_is_not_valid_for_a_client_is_refused(
    verify: Verify, authority: Authority, name: str
) -> None:
    parts, reason = REFUSED[name]
    with pytest.raises(CredentialsRefused, match=reason):
        verify(rfc_9440(authority.issue("alice", **cast(Any, parts))))


def test_certificates_for_any_use_and_for_clients_are_accepted(verify: Verify, authority: Authority) -> None:
    for use in (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE):
        assert verify(rfc_9440(authority.issue("alice", others=usage(use)))) is not None


def test_a_certificate_of_another_authority_is_refused_whatever_the_proxy_accepts(
    verify: Verify, authority: Authority
) -> None:
    # Of the same name as the right one; and the certificate of the authority itself.
    for certificate in (Authority("clients").issue("alice"), authority.certificate):
        with pytest.raises(CredentialsRefused):
            verify(rfc_9440(certificate))


@pytest.mark.parametrize(
    "value",
    [
        ":",
        "::",
        ":AAAA:",
        "not base64!",
        "A" * 20_000,
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN%20CERTIFICATE-----%0AAAAA%0A-----END%20CERTIFICATE-----%0A",
        "\udcff\udcfe",
        "-----BEGIN\udcff",
    ],
    ids=ascii,
)
def test_a_malformed_field_is_refused(verify: Verify, value: str) -> None:
    with pytest.raises(CredentialsRefused, match="client certificate"):
        verify(value)


@pytest.mark.parametrize(
    "spelt", [rfc_9440, lambda one: quote(pem(one)), der], ids=["RFC 9440", "nginx", "Traefik"]
)
def test_two_fields_are_refused(
    verify: Verify, authority: Authority, spelt: Callable[[x509.Certificate], str]
) -> None:
    # The first one is the client's own choice, if the proxy adds its field after it.
    alice, bob = (spelt(authority.issue(name)).replace("\n", "%0A") for name in ("alice", "bob"))
    with pytest.raises(CredentialsRefused):
        verify(f"{alice}, {bob}")


def test_the_user_and_the_groups_may_be_other_names_with_a_prefix(
    verify: Verify, authority: Authority
) -> None:
    certificate = authority.issue(
        "Alice A.",
        units=["ops", "web", "a\x1bb"],
        alternative=[
            x509.RFC822Name("alice@example.org"),
            x509.DNSName("node1.example.org"),
            x509.UniformResourceIdentifier("spiffe://example.org/ci"),
        ],
    )
    value = rfc_9440(certificate)
    for kind, name in (
        ("email", "alice@example.org"),
        ("dns", "node1.example.org"),
        ("uri", "spiffe://example.org/ci"),
        ("common-name", "Alice A."),
    ):
        found = verify(value, user=kind, groups="organizational-unit", prefix="tls:")
        assert found is not None
        assert (found.name, set(found.groups)) == (f"tls:{name}", {"tls:ops", "tls:web"})


@pytest.mark.parametrize("names", [(), ("alice", "bob"), ("a\x1bb",)], ids=repr)
def test_a_certificate_without_one_usable_name_is_refused(
    verify: Verify, authority: Authority, names: Sequence[str]
) -> None:
    with pytest.raises(CredentialsRefused, match="one common-name that can be a user name"):
        verify(rfc_9440(authority.issue(*names)))


def test_a_certificate_is_verified_once_a_minute_and_not_after_its_end(
    section: dict[str, object], authority: Authority, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = CertificateVerifier(ClientCertificates.model_validate(section), {}, clock, clock)
    headers = {"client-cert": rfc_9440(authority.issue("alice", end=NOW + timedelta(seconds=70)))}
    assert verifier.identity(headers, PROXY) is not None
    with monkeypatch.context() as patched:
        patched.setattr(CertificateVerifier, "_verified", None)
        clock.now += 59
        assert verifier.identity(headers, PROXY) is not None
    clock.now += 2
    assert verifier.identity(headers, PROXY) is not None
    clock.now += 10
    with pytest.raises(CredentialsRefused, match="expired"):
        verifier.identity(headers, PROXY)


async def test_credentials_of_the_request_itself_come_first_and_no_one_can_name_a_remembered_certificate(
    section: dict[str, object], authority: Authority, clock: Clock
) -> None:
    verifier = CertificateVerifier(ClientCertificates.model_validate(section), {}, clock, clock)
    unused = cast(Any, None)
    authenticator = Authenticator(Verifiers(unused, unused, FailedLogins(), certificates=verifier))
    headers = {"client-cert": rfc_9440(authority.issue("alice"))}
    assert authenticator.remembered(headers) is None
    found = await authenticator.authenticate(headers, Client("client"), PROXY)
    assert (found.identity.kind, found.identity.name, found.repositories) == (
        Kind.CERTIFICATE,
        "alice",
        None,
    )
    assert authenticator.remembered(headers) is None  # not without the address
    assert (await authenticator.authenticate(headers, Client("client"), "192.0.3.1")).identity.is_anonymous
    for other in (headers["client-cert"], "Basic !"):
        with pytest.raises(CredentialsRefused):
            await authenticator.authenticate({**headers, "authorization": other}, Client("client"), PROXY)


RULES = """
rule = []
[client-certificates]
addresses = ["127.0.0.1"]
ca-file = "clients.pem"
"""


async def test_the_file_of_authorities_is_checked(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "access.toml").write_text(RULES)

    async def problems() -> str:
        return "\n".join((await check_access(tmp_path / "access.toml")).problems)

    assert "client-certificates: cannot read " in await problems()
    (tmp_path / "clients.pem").write_text("none")
    assert "has no certificate in PEM" in await problems()
    # With it, its owner could issue certificates for other users.
    (tmp_path / "clients.pem").write_text(pem(authority.certificate) + pem(authority.issue("alice")))
    assert "certificate 2 in " in await problems()
    with pytest.raises(SettingsError, match="is not that of an authority"):
        read_authorities(tmp_path / "clients.pem")
    (tmp_path / "clients.pem").write_text("A" * 2_000_000)
    assert "more than 1048576 bytes" in await problems()
    (tmp_path / "clients.pem").write_bytes(trustme.CA().cert_pem.bytes())
    assert await problems() == ""
    file = read_access_file(tmp_path / "access.toml")
    assert file.client_certificates is not None
    assert file.client_certificates.ca_file == tmp_path / "clients.pem"


def test_a_mistake_in_the_section_is_a_line_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "access.toml").write_text(
        RULES.replace("addresses", "adresses").replace("ca-file =", 'user = "cn"\nca-file =')
    )
    with pytest.raises(SettingsError) as caught:
        read_access_file(tmp_path / "access.toml")
    lines = "\n".join(caught.value.problems)
    assert "client-certificates, adresses: there is no such key; did you mean addresses?" in lines
    assert "client-certificates, user: should be 'common-name', 'organization'" in lines
