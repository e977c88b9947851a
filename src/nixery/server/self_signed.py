"""Certificates for a trial: an authority, and a certificate of it for a server."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nixery.errors import SettingsError

# Names of the files.
CA, CERTIFICATE, KEY = "ca.crt", "server.crt", "server.key"

# Before the present time, for clients whose clock is slow.
_SLOW_CLOCK = timedelta(hours=1)

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)*{_LABEL}", re.ASCII)
_LONGEST_HOST = 253


def make_certificates(hosts: Sequence[str], directory: Path, lifetime: timedelta) -> None:
    """Write an authority's certificate, and a server's certificate and key.

    The key of the authority is not kept, so that it can sign nothing else.

    Args:
        hosts: names and addresses of the server.
        directory: made if it does not exist; the files must not exist.
        lifetime: of the certificates.

    Raises:
        SettingsError: a host is malformed, or a file exists or cannot be written.
    """
    names = [_name(host) for host in hosts]
    begin = datetime.now(UTC) - _SLOW_CLOCK
    end = begin + _SLOW_CLOCK + lifetime
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = _subject(f"nixery trial authority of {hosts[0]}"[:64])
    authority = (
        _certificate(authority_name, authority_key.public_key(), authority_name, begin, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, SHA256())
    )
    server = (
        _certificate(_subject(hosts[0][:64]), key.public_key(), authority_name, begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, SHA256())
    )
    _write(
        directory,
        {
            CA: (authority.public_bytes(Encoding.PEM), 0o644),
            CERTIFICATE: (server.public_bytes(Encoding.PEM), 0o644),
            KEY: (key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600),
        },
    )


def trust_instructions(host: str, port: int, directory: Path) -> str:
    """Return the settings of the server, and the set-up of each client, for the certificates.

    Args:
        host: by which clients reach the server.
        port: likewise.
        directory: of the files.
    """
    authority = (directory / CA).absolute()
    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"""\
The server: set these variables, and start nixery serve.

  PORT={port}
  NIXERY_TLS_CERTIFICATE={(directory / CERTIFICATE).absolute()}
  NIXERY_TLS_KEY={(directory / KEY).absolute()}
  NIXERY_PUBLIC_URL=https://{at}

Each client: copy {authority} to it, and trust it.

  Docker                     /etc/docker/certs.d/{at}/ca.crt
  Podman, Skopeo, Buildah    /etc/containers/certs.d/{at}/ca.crt
  containerd                 /etc/containerd/certs.d/{at}/hosts.toml:
                               server = "https://{at}"
                               [host."https://{at}"]
                                 ca = "/etc/containerd/certs.d/{at}/ca.crt"
  crane, oras                SSL_CERT_FILE=ca.crt crane manifest {at}/shell
  curl                       curl --cacert ca.crt https://{at}/v2/
"""


def _name(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ip_address(host))
    if len(host) > _LONGEST_HOST or not _HOST.fullmatch(host.lower()):
        raise SettingsError(
            (f"{host!r} is neither a host name nor an address: write for example registry.example.org",)
        )
    return x509.DNSName(host.lower())


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _certificate(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, issuer: x509.Name, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _write(directory: Path, files: dict[str, tuple[bytes, int]]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        existing = [name for name in files if os.path.lexists(directory / name)]
        if existing:
            raise SettingsError(
                (f"{directory / existing[0]} exists: choose another directory, or delete the file",)
            )
        for name, (content, mode) in files.items():
            descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                # The command line's umask would keep clients' users from the certificates.
                os.fchmod(descriptor, mode)
                file.write(content)
    except OSError as error:
        raise SettingsError((f"cannot write to {directory}: {error.strerror}",)) from None
