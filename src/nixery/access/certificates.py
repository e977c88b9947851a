"""Client certificates: a proxy that ends TLS hands on the certificate of its client, which is verified here once more.

The web server verifies client certificates as well (``NIXERY_TLS_CLIENT_CA``), but does not show them to the
application. So only a proxy can hand one on, in a header field: as RFC 9440 has it, or as proxies write it today.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from nixery.access.configuration import CertificateName, ClientCertificates
from nixery.access.identity import MOST_GROUPS, CredentialsRefused, Identity, Kind, is_text
from nixery.caching import TTLCache
from nixery.errors import SettingsError

# Bytes of the file of authorities: those of a system have 250 kB.
_LARGEST = 1024 * 1024

# Characters of the header field. A certificate has one or two kB, and each of its characters at most three here.
_LONGEST = 16 * 1024

# Seconds for which a verified certificate is remembered, and bytes of all that are.
_REMEMBERED, _CAPACITY = 60.0, 4 * 1024 * 1024

_CLIENT_USES = frozenset({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})

_ESCAPED_PEM = "-----BEGIN"

_MALFORMED = "the proxy sent a client certificate that is malformed"


class CertificateVerifier:
    """Identifies clients by the certificates that proxies hand on.

    Args:
        section: of the access file.
        groups: users by group, of the access file.
        clock: seconds; only differences matter.
        wall_clock: seconds since the epoch.

    Raises:
        SettingsError: the file of authorities cannot be used.
    """

    def __init__(
        self,
        section: ClientCertificates,
        groups: Mapping[str, tuple[str, ...]],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._section = section
        self._header = section.header.lower()
        self._groups = groups
        self._wall_clock = wall_clock
        self._store = Store(read_authorities(section.ca_file))
        self._remembered: TTLCache[str, Identity] = TTLCache(_CAPACITY, clock)

    def identity(self, headers: Mapping[str, str], peer: str) -> Identity | None:
        """Return who has the certificate that a proxy handed on; ``None`` without one.

        Args:
            headers: by name in lower case.
            peer: address of the other end of the connection; header fields of others than the proxies are ignored.

        Raises:
            CredentialsRefused: the certificate is malformed, expired, of another authority, or names no user.
        """
        value = headers.get(self._header, "").strip()
        if not value or not self._section.has_address(peer):
            return None
        found = self._remembered.get(value)
        if found is None:
            found, seconds = self._verified(value)
            self._remembered.put(value, found, 512 + len(value), seconds)
        return found

    def _verified(self, value: str) -> tuple[Identity, float]:
        certificate = _parsed(value)
        now = self._wall_clock()
        try:
            _verify(certificate, self._store, datetime.fromtimestamp(now, UTC))
            user = _only(_names(certificate, self._section.user))
            listed = () if self._section.groups is None else _names(certificate, self._section.groups)
            groups = [group for group in listed if is_text(group)]
        except VerificationError:
            raise CredentialsRefused(
                "the client certificate is expired, not for clients, or of an authority that this registry does not trust"
            ) from None
        # Both parse parts of the certificate on first use.
        except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
            raise CredentialsRefused(_MALFORMED) from None
        name = self._section.prefix + (user or "")
        if user is None or not is_text(name):
            raise CredentialsRefused(
                f"the client certificate should have one {self._section.user.value} that can be a user name"
            )
        known = (group for group, users in self._groups.items() if name in users)
        prefixed = (self._section.prefix + group for group in groups[:MOST_GROUPS])
        identity = Identity(Kind.CERTIFICATE, name, frozenset([*prefixed, *known]))
        return identity, min(_REMEMBERED, certificate.not_valid_after_utc.timestamp() - now)


def read_authorities(path: Path) -> list[x509.Certificate]:
    """Read the authorities of client certificates, including intermediate ones.

    Raises:
        SettingsError: the file cannot be read, or has other things than certificates of authorities.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise SettingsError((f"client-certificates: cannot read {path}: {error.strerror}",)) from None
    if len(content) > _LARGEST:
        raise SettingsError((f"client-certificates: {path} has more than {_LARGEST} bytes",))
    try:
        found = x509.load_pem_x509_certificates(content)
        strangers = [one for one in found if not _is_authority(one)]
    except (ValueError, x509.DuplicateExtension):
        problem = f"client-certificates: {path} has no certificate in PEM, or one that is malformed"
        raise SettingsError((problem,)) from None
    if strangers:
        # With it, its owner could issue certificates for other users.
        number = found.index(strangers[0]) + 1
        problem = f"client-certificates: certificate {number} in {path} is not that of an authority (CA:TRUE)"
        raise SettingsError((problem,))
    return found


def _parsed(value: str) -> x509.Certificate:
    """Parse a header field.

    Three forms are in use: ``:BASE64:`` (RFC 9440), escaped PEM (nginx, AWS), and plain base64 (Traefik).

    Raises:
        CredentialsRefused: it has none of them.
    """
    if len(value) > _LONGEST:
        raise CredentialsRefused("the client certificate is too long")
    # None of the forms has a comma. A proxy that adds a field beside that of its client would otherwise hand on the
    # client's choice: the first certificate, which anyone who has seen it can send.
    if "," in value:
        raise CredentialsRefused(
            "the proxy sent several client certificates: configure it to replace the header field of its client"
        )
    try:
        if value.startswith(_ESCAPED_PEM):
            return x509.load_pem_x509_certificate(unquote_to_bytes(value))
        encoded = value[1:-1] if len(value) > 1 and value[0] == value[-1] == ":" else value
        return x509.load_der_x509_certificate(base64.b64decode(encoded, validate=True))
    except (ValueError, binascii.Error):
        raise CredentialsRefused(_MALFORMED) from None


def _verify(certificate: x509.Certificate, store: Store, now: datetime) -> None:
    """Check a certificate of a client.

    Certificates for clients follow no common profile: many have a common name only, and no key usage.

    Raises:
        VerificationError: it is not signed by an authority of the store, not valid now, or not for clients.
    """
    clients = ExtensionPolicy.permit_all().may_be_present(
        x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _require_client_use
    )
    clients = clients.may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _require_no_authority)
    builder = PolicyBuilder().store(store).time(now)
    authorities = ExtensionPolicy.permit_all().require_present(
        x509.BasicConstraints, Criticality.AGNOSTIC, None
    )
    builder = builder.extension_policies(ca_policy=authorities, ee_policy=clients)
    builder.build_client_verifier().verify(certificate, [])


def _require_client_use(
    _policy: Policy, _certificate: x509.Certificate, found: x509.ExtendedKeyUsage | None
) -> None:
    if found is not None and _CLIENT_USES.isdisjoint(found):
        raise ValueError("the certificate is not for clients")


def _require_no_authority(
    _policy: Policy, _certificate: x509.Certificate, found: x509.BasicConstraints | None
) -> None:
    if found is not None and found.ca:
        raise ValueError("the certificate is that of an authority")


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _names(certificate: x509.Certificate, kind: CertificateName) -> list[str]:
    """Return the names of one kind: parts of the subject, or alternative names."""
    of_subject = {
        CertificateName.COMMON_NAME: NameOID.COMMON_NAME,
        CertificateName.ORGANIZATION: NameOID.ORGANIZATION_NAME,
        CertificateName.ORGANIZATIONAL_UNIT: NameOID.ORGANIZATIONAL_UNIT_NAME,
    }.get(kind)
    if of_subject is not None:
        values = (one.value for one in certificate.subject.get_attributes_for_oid(of_subject))
        return [value for value in values if isinstance(value, str)]
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    match kind:
        case CertificateName.EMAIL:
            return found.get_values_for_type(x509.RFC822Name)
        case CertificateName.DNS:
            return found.get_values_for_type(x509.DNSName)
        case _:
            return found.get_values_for_type(x509.UniformResourceIdentifier)


def _only(names: Iterable[str]) -> str | None:
    """Return the only name. Of several, none is more right than the others."""
    found = list(names)
    return found[0] if len(found) == 1 else None
