"""Files for TLS: what the server refuses, and what it says about them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from structlog.testing import capture_logs

from nixery.errors import SettingsError
from nixery.server import tls
from nixery.server.self_signed import CA, CERTIFICATE, KEY, make_certificates
from nixery.server.tls import CredentialsWatch, TLSFiles, advice, read_credentials, try_credentials

Issue = Callable[..., TLSFiles]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def issue(tmp_path: Path, authority: trustme.CA) -> Issue:
    def write(*names: str, ends: datetime | None = None, begins: datetime | None = None) -> TLSFiles:
        issued = authority.issue_cert(*(names or ("localhost",)), not_before=begins, not_after=ends)
        files = TLSFiles(tmp_path / "certificate.pem", tmp_path / "key.pem")
        files.certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
        files.key.write_bytes(issued.private_key_pem.bytes())
        return files

    return write


def problem(files: TLSFiles) -> str:
    with pytest.raises(SettingsError) as caught:
        read_credentials(files)
    return str(caught.value)


def test_a_certificate_and_its_key_are_read(issue: Issue, tmp_path: Path) -> None:
    credentials = read_credentials(issue("registry.example.org", "*.apps.example.org", "192.0.2.7"))
    assert credentials.names == ("registry.example.org", "*.apps.example.org", "192.0.2.7")
    covered = ["registry.example.org", "REGISTRY.example.org.", "a.apps.example.org", "192.0.2.7"]
    assert all(map(credentials.covers, covered))
    others = ["example.org", "a.b.apps.example.org", "apps.example.org", "192.0.2.8", ""]
    assert not any(map(credentials.covers, others))
    try_credentials(credentials, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["certificate.pem", "key.pem"]


def test_a_key_of_another_certificate_is_refused(issue: Issue, tmp_path: Path) -> None:
    key = issue().key.rename(tmp_path / "other.pem")
    files = issue()
    assert "does not fit" in problem(TLSFiles(files.certificate, key))


def test_an_expired_certificate_is_refused(issue: Issue) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert f"expired on {yesterday:%Y-%m-%d}" in problem(issue(ends=yesterday))


def test_a_certificate_that_is_not_yet_valid_is_refused(issue: Issue) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    assert f"not valid before {tomorrow:%Y-%m-%d}" in problem(issue(begins=tomorrow))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b"", "no private key in PEM"),
        (b"\0" * 100, "no private key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key in PEM"),
        (b"a" * (1024 * 1024 + 1), "more than"),
    ],
)
def test_an_unusable_key_file_is_refused(issue: Issue, content: bytes | None, expected: str) -> None:
    files = issue()
    files.key.unlink()
    if content is not None:
        files.key.write_bytes(content)
    assert expected in problem(files)
    assert str(files.key) in problem(files)


def test_all_files_are_reported_at_once(tmp_path: Path) -> None:
    missing = TLSFiles(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert len(problem(missing).splitlines()) == 3


@pytest.mark.parametrize("kind", ["password", "curve", "short"])
def test_a_key_that_the_web_server_cannot_use_is_refused(issue: Issue, kind: str) -> None:
    files = issue()
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = ec.generate_private_key(
        ec.SECP521R1() if kind == "curve" else ec.SECP256R1()
    )
    if kind == "short":
        key = rsa.generate_private_key(65537, 1024)  # noqa: S505 -- refused
    encryption = BestAvailableEncryption(b"secret") if kind == "password" else NoEncryption()
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    assert ("has a password" if kind == "password" else "does not support") in problem(files)


def test_files_that_would_abort_the_web_server_are_refused(issue: Issue, tmp_path: Path) -> None:
    files = issue()
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    # Valid for X.509, but the web server does not know the extension, and has to.
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(unknown, critical=True)
        .sign(key, SHA256())
    )
    files.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(SettingsError, match="web server cannot use the files of NIXERY_TLS_CERTIFICATE"):
        try_credentials(read_credentials(files), tmp_path)


def test_an_operator_is_told_of_another_name_and_of_the_end(issue: Issue) -> None:
    soon = read_credentials(issue("a.example.org", ends=datetime.now(UTC) + timedelta(days=2)))
    name, end = advice(soon, "https://b.example.org:5000")
    assert "a.example.org, and not for the host of NIXERY_PUBLIC_URL (b.example.org)" in name
    assert "expires on" in end
    assert list(advice(read_credentials(issue("a.example.org")), "https://a.example.org:5000")) == []
    (scheme,) = advice(read_credentials(issue("a.example.org")), "http://a.example.org")
    assert "https://a.example.org" in scheme


async def test_only_usable_changes_are_announced(
    issue: Issue, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(tls, "try_credentials", lambda *_: None)
    watch = CredentialsWatch(issue("first.example.org"), tmp_path, None)
    waiting = asyncio.ensure_future(watch.next())
    another = authority.issue_cert("another.example.org").private_key_pem.bytes()
    # A malformed key, and one that does not fit: each keeps certificate and key of before.
    for content, reason in ((b"broken", "no private key in PEM"), (another, "does not fit the first")):
        with capture_logs() as lines:
            (tmp_path / "key.pem").write_bytes(content)
            async with asyncio.timeout(20):
                while not lines:  # noqa: ASYNC110 -- the log sets no event
                    await asyncio.sleep(0.01)
        assert lines[0]["event"] == "new TLS files refused: the server keeps the previous ones"
        assert reason in lines[0]["reason"]
        assert watch.current.names == ("first.example.org",)
        assert not waiting.done()
    issue("second.example.org")
    async with asyncio.timeout(20):
        assert (await waiting).names == ("second.example.org",)
    assert watch.current.names == ("second.example.org",)


@pytest.mark.parametrize(
    ("days", "moments", "warned"),
    [
        (30, (0, 1, 22, 22.9), []),
        (30, (0, 23.1, 23.2, 24.0), [23.1]),
        (30, (0, 23.1, 24.2, 25.3, 30.1), [23.1, 24.2, 25.3, 30.1]),
        # It was warned of at the start.
        (3, (0, 0.5, 1.1), [1.1]),
    ],
)
async def test_a_certificate_that_is_about_to_expire_is_warned_of_once_a_day(
    issue: Issue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    days: int,
    moments: Sequence[float],
    warned: Sequence[float],
) -> None:
    begin = datetime.now(UTC)
    now = begin
    monkeypatch.setattr(tls, "_LOOK_EVERY", 0)
    monkeypatch.setattr(tls, "try_credentials", lambda *_: None)
    watch = CredentialsWatch(issue(ends=begin + timedelta(days=days)), tmp_path, None, lambda: now)
    found = []
    for moment in moments:
        now = begin + timedelta(days=moment)
        with capture_logs() as lines:
            watch._warn_of_end()
        found += [moment for _ in lines]
        verb = "expired on" if moment > days else "expires on"
        assert all(verb in line["problem"] for line in lines)
    assert found == warned
    # The server does that while it waits for other files.
    now = begin + timedelta(days=days + 5)
    with capture_logs() as lines:
        waiting = asyncio.ensure_future(watch.next())
        async with asyncio.timeout(20):
            while not lines:  # noqa: ASYNC110 -- the log sets no event
                await asyncio.sleep(0.01)
        waiting.cancel()
    assert len(lines) == 1


def test_certificates_for_a_trial(tmp_path: Path) -> None:
    directory = tmp_path / "tls"
    make_certificates(["registry.example.org", "::1"], directory, timedelta(days=30))
    assert (directory / KEY).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in directory.iterdir()) == sorted([CA, CERTIFICATE, KEY])
    credentials = read_credentials(TLSFiles(directory / CERTIFICATE, directory / KEY, directory / CA))
    assert credentials.names == ("registry.example.org", "::1")
    before = (directory / KEY).read_bytes()
    (directory / CA).unlink()
    with pytest.raises(SettingsError, match=r"server\.crt exists"):
        make_certificates(["a"], directory, timedelta(days=30))
    assert (directory / KEY).read_bytes() == before
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    "host", ["", "a b", "-a", "a..b", "a/b", "a" * 64, "é", "a\n", ".".join(["a"] * 200)]
)
def test_a_malformed_host_gets_no_certificate(tmp_path: Path, host: str) -> None:
    with pytest.raises(SettingsError, match="neither a host name nor an address"):
        make_certificates([host], tmp_path / "tls", timedelta(days=1))
    assert not (tmp_path / "tls").exists()
