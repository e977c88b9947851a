"""The certificate, key and client authorities of the server: read, checked, and watched for changes.

The web server aborts the whole process if it cannot use a file. So each set of files is checked here first, copied,
and tried in another process; the web server only ever reads copies of what passed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.server.embed import Server

from nixery.errors import SettingsError
from nixery.plain_text import escaped

CERTIFICATE, KEY, CLIENT_CA = "NIXERY_TLS_CERTIFICATE", "NIXERY_TLS_KEY", "NIXERY_TLS_CLIENT_CA"

# Bytes of a file. A chain has a few kB; the authorities of a system have 250 kB.
_LARGEST = 1024 * 1024

# Curves of ECDSA keys, and bits of RSA keys, that the web server can sign with.
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_RSA_BITS = (2048, 4096)

# Seconds for the trial in another process.
_TRIAL_TIMEOUT = 30

# Seconds between two looks at the files. They are read once two looks agree, since certificate and key are written
# one after the other.
_LOOK_EVERY = 2.0

# The time before the end of a certificate from which on the log warns, and the time between two warnings.
_EXPIRES_SOON, _WARN_EVERY = timedelta(days=7), timedelta(days=1)

_TRIAL = "import sys; from nixery.server.tls import serve_briefly; serve_briefly(*sys.argv[1:])"

_log = structlog.get_logger("nixery.tls")

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Signature = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Paths of PEM files.

    Attributes:
        certificate: of the server, followed by those of its intermediate authorities.
        key: of the certificate, without a password.
        client_ca: authorities of client certificates, which every client then needs; ``None`` to ask for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def signature(self) -> Signature:
        """Changes whenever one of the files, or the target of a symlink, is replaced or written."""
        return tuple(map(_signature, (self.certificate, self.key, self.client_ca)))


@dataclass(frozen=True, slots=True)
class Credentials:
    """The content of TLS files, as PEM.

    Attributes:
        certificate: the chain.
        key: in PKCS #8.
        client_ca: ``None`` if clients need no certificate.
        names: host names and addresses of the certificate, in lower case.
        expires: the end of the certificate's validity.
    """

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    names: tuple[str, ...]
    expires: datetime

    def covers(self, host: str) -> bool:
        """Whether a client that connects to a host accepts the names of the certificate (RFC 6125)."""
        host = host.lower().rstrip(".")
        return host in self.names or f"*.{host.partition('.')[2]}" in self.names


def read_credentials(files: TLSFiles, now: datetime | None = None) -> Credentials:
    """Read and check files; does not start the trial.

    Args:
        files: to read.
        now: the time at which the certificate has to be valid; the present time by default.

    Raises:
        SettingsError: with a line for each file that the server cannot use.
    """
    problems: list[str] = []
    chain = _certificates(problems, CERTIFICATE, files.certificate)
    key = _key(problems, files.key)
    client_ca = None
    if files.client_ca is not None:
        authorities = _certificates(problems, CLIENT_CA, files.client_ca)
        client_ca = b"".join(one.public_bytes(Encoding.PEM) for one in authorities)
    if not chain or key is None or problems:
        raise SettingsError(tuple(problems))
    leaf, now = chain[0], now or datetime.now(UTC)
    where = f"{CERTIFICATE} ({files.certificate})"
    if _public_bytes(leaf.public_key()) != _public_bytes(key.public_key()):
        problems.append(f"the key in {KEY} ({files.key}) does not fit the first certificate in {where}")
    if leaf.version is not x509.Version.v3:
        problems.append(f"{where}: the first certificate is not of X.509 version 3; have it issued again")
    if now > leaf.not_valid_after_utc:
        problems.append(f"{where}: the certificate expired on {_day(leaf.not_valid_after_utc)}; renew it")
    if now < leaf.not_valid_before_utc:
        problems.append(
            f"{where}: the certificate is not valid before {_day(leaf.not_valid_before_utc)}; "
            "check this machine's clock"
        )
    if problems:
        raise SettingsError(tuple(problems))
    return Credentials(
        b"".join(one.public_bytes(Encoding.PEM) for one in chain),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        client_ca,
        _names(leaf),
        leaf.not_valid_after_utc,
    )


def try_credentials(credentials: Credentials, directory: Path) -> None:
    """Have the web server load credentials in another process, which takes half a second.

    Args:
        credentials: from ``read_credentials``.
        directory: for copies of them, which are removed.

    Raises:
        SettingsError: the web server cannot use them.
    """
    with copies(credentials, directory) as files:
        paths = [str(path) for path in (files.certificate, files.key, files.client_ca) if path is not None]
        try:
            ended = subprocess.run(
                [sys.executable, "-c", _TRIAL, *paths],
                capture_output=True,
                timeout=_TRIAL_TIMEOUT,
                check=False,
                stdin=subprocess.DEVNULL,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SettingsError((f"cannot try {CERTIFICATE} and {KEY}: {error}",)) from None
    if ended.returncode:
        lines = ended.stderr.decode(errors="replace").strip().splitlines() or [f"status {ended.returncode}"]
        # The message of a Rust panic ends with the error.
        reason = next((line.rpartition("value: ")[2] for line in lines if "value: " in line), lines[-1])
        names = ", ".join([CERTIFICATE, KEY, *([CLIENT_CA] if credentials.client_ca else [])])
        raise SettingsError((f"the web server cannot use the files of {names}: {escaped(reason[:200])}",))


def serve_briefly(certificate: str, key: str, client_ca: str | None = None) -> None:
    """Start a web server with TLS on a free loopback port, and end the process: by an abort if that fails."""

    async def application(scope: object, protocol: object) -> None:
        """Answer nothing."""

    async def run() -> None:
        files = TLSFiles(Path(certificate), Path(key), Path(client_ca) if client_ca else None)
        server = Server(
            application, port=0, interface=Interfaces.RSGI, log_enabled=False, **server_options(files)
        )
        # The web server reads the files in the first steps of its tasks, which the loop takes before this. The process
        # ends without finalising the interpreter: a thread of the web server that needed it would abort.
        asyncio.get_running_loop().call_later(0.05, os._exit, 0)
        await server.serve()

    asyncio.run(run())


def server_options(files: TLSFiles, *, http2: bool = True) -> dict[str, Any]:
    """Return the arguments of the web server that turn TLS on, and offer HTTP/2 beside HTTP/1.1."""
    return {
        "http": HTTPModes.auto if http2 else HTTPModes.http1,
        "ssl_cert": files.certificate,
        "ssl_key": files.key,
        "ssl_protocol_min": SSLProtocols.tls12,
        "ssl_ca": files.client_ca,
        "ssl_client_verify": files.client_ca is not None,
    }


@contextmanager
def copies(credentials: Credentials, directory: Path) -> Iterator[TLSFiles]:
    """Write credentials to files that only this user can read, and remove them when the context ends."""
    with TemporaryDirectory(prefix="tls-", dir=directory) as name:
        paths = [Path(name) / kind for kind in ("certificate.pem", "key.pem", "client-ca.pem")]
        contents = (credentials.certificate, credentials.key, credentials.client_ca)
        for path, content in zip(paths, contents, strict=True):
            if content is not None:
                path.touch(0o600)
                path.write_bytes(content)
        yield TLSFiles(paths[0], paths[1], None if credentials.client_ca is None else paths[2])


def advice(credentials: Credentials, public_url: str | None, now: datetime | None = None) -> Iterator[str]:
    """Yield a line for each fact about usable credentials that an operator should know."""
    url = urlsplit(public_url or "")
    host = url.hostname
    if url.scheme == "http":
        yield f"NIXERY_PUBLIC_URL begins with http:, but the server has TLS; write https://{url.netloc}"
    if host is not None and not credentials.covers(host):
        names = ", ".join(map(escaped, credentials.names[:5])) or "no name"
        yield f"{CERTIFICATE} is for {names}, and not for the host of NIXERY_PUBLIC_URL ({host}): clients refuse it"
    if (end := _end(credentials, now or datetime.now(UTC))) is not None:
        yield end


def _end(credentials: Credentials, now: datetime) -> str | None:
    """Return a line about the end of a certificate; ``None`` if that is far."""
    if credentials.expires - now >= _EXPIRES_SOON:
        return None
    verb = "expired" if now > credentials.expires else "expires"
    return f"the certificate in {CERTIFICATE} {verb} on {_day(credentials.expires)}; renew it"


class CredentialsWatch:
    """The credentials of a server, renewed when their files change.

    Args:
        files: to read.
        directory: for copies that the web server reads.
        public_url: that the certificate should be for.
        clock: the present time.
    """

    def __init__(
        self,
        files: TLSFiles,
        directory: Path,
        public_url: str | None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._files = files
        self._clock = clock
        self._warned = clock()
        self.directory = directory
        self._public_url = public_url
        self._signature = files.signature
        self.current = read_credentials(files, clock())
        try_credentials(self.current, directory)
        self._advise()

    async def next(self) -> Credentials:
        """Wait for other usable credentials, and return them.

        Logs a line for each change that is not usable; and once a day, that the present certificate is about to expire.
        """
        seen = self._signature
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            self._warn_of_end()
            found = await asyncio.to_thread(lambda: self._files.signature)
            is_stable, seen = found == seen, found
            if not is_stable or found == self._signature:
                continue
            self._signature = found
            try:
                credentials = await asyncio.to_thread(self._read)
            except SettingsError as error:
                _log.error("new TLS files refused: the server keeps the previous ones", reason=str(error))
                continue
            if credentials != self.current:
                self.current = credentials
                self._advise()
                return credentials

    def _read(self) -> Credentials:
        credentials = read_credentials(self._files, self._clock())
        if credentials != self.current:
            try_credentials(credentials, self.directory)
        return credentials

    def _advise(self) -> None:
        self._warned = self._clock()
        for line in advice(self.current, self._public_url, self._warned):
            _log.warning("certificate", problem=line)

    def _warn_of_end(self) -> None:
        now = self._clock()
        end = _end(self.current, now)
        # The first time as soon as the end is near, unless the server has just started.
        is_new = end is not None and _end(self.current, self._warned) is None
        if end is not None and (is_new or now - self._warned >= _WARN_EVERY):
            self._warned = now
            _log.warning("certificate", problem=end)


def _signature(path: Path | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _content(problems: list[str], setting: str, path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        problems.append(f"cannot read {path} ({setting}): {error.strerror}")
        return None
    if len(content) > _LARGEST:
        problems.append(f"{path} ({setting}) has more than {_LARGEST} bytes")
        return None
    return content


def _certificates(problems: list[str], setting: str, path: Path) -> list[x509.Certificate]:
    content = _content(problems, setting, path)
    if content is None:
        return []
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        problems.append(f"{path} ({setting}) has no certificate in PEM, or one that is malformed")
        return []


def _key(problems: list[str], path: Path) -> PrivateKey | None:
    content = _content(problems, KEY, path)
    if content is None:
        return None
    problem = (
        f"the key in {path} ({KEY}) is of a kind that the server does not support: use ECDSA with P-256 or "
        "P-384, Ed25519, or RSA with 2048 to 4096 bits"
    )
    try:
        key = load_pem_private_key(content, None)
    except TypeError:
        problem = f"the key in {path} ({KEY}) has a password; write it without one"
    except (ValueError, UnsupportedAlgorithm):
        problem = f"{path} ({KEY}) has no private key in PEM, or one that is malformed"
    else:
        if (
            isinstance(key, ed25519.Ed25519PrivateKey)
            or (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES))
            or (isinstance(key, rsa.RSAPrivateKey) and _RSA_BITS[0] <= key.key_size <= _RSA_BITS[1])
        ):
            return key
    problems.append(problem)
    return None


def _public_bytes(key: object) -> bytes | None:
    if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return None


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    addresses = [str(one) for one in found.get_values_for_type(x509.IPAddress)]
    return (*(name.lower() for name in found.get_values_for_type(x509.DNSName)), *addresses)


def _day(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")
