"""TLS of the server itself: pulls, protocols, client certificates, and certificates that change while it serves."""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from tests.support.command_line import CommandLine
from tests.support.nix import wait_until
from tests.support.server import HOST, Server, free_port, run_server, running_server
from tests.validator.image_validator import validate

# Shorter times than in production, where the server looks at the files every two seconds, and the previous web server
# waits for idle connections.
_RUN = (
    "from nixery.server import serve, tls; serve._HAND_OVER = 2.0; tls._LOOK_EVERY = 0.2; "
    "from nixery.cli import main; main()"
)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def write_certificate(
    authority: trustme.CA, directory: Path, ends: datetime | None = None
) -> Mapping[str, str]:
    """Write another certificate and key; return the settings that name them."""
    directory.mkdir(exist_ok=True)
    issued = authority.issue_cert(HOST, "localhost", not_after=ends)
    (directory / "server.crt").write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    (directory / "server.key").write_bytes(issued.private_key_pem.bytes())
    return {
        "NIXERY_TLS_CERTIFICATE": str(directory / "server.crt"),
        "NIXERY_TLS_KEY": str(directory / "server.key"),
    }


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def encrypted(
    tmp_path_factory: pytest.TempPathFactory, settings: Mapping[str, str], authority: trustme.CA
) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("tls")
    files = write_certificate(authority, directory / "files")
    with running_server(
        directory, {**settings, **files}, ("-c", _RUN, "serve"), context=trusting(authority)
    ) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_an_image_is_pulled_over_tls(encrypted: Server) -> None:
    validate(encrypted.client.pull("shell"))
    page = encrypted.client.get("/")
    assert f"https://localhost:{encrypted.port}" not in page.body.decode()  # the client chose the other name
    assert f"{HOST}:{encrypted.port}/" in page.body.decode()


def test_a_page_of_this_server_is_not_another_site(encrypted: Server) -> None:
    own, other = f"https://{HOST}:{encrypted.port}", f"http://{HOST}:{encrypted.port}"
    statuses = [
        encrypted.client.get("/v2/", {"Origin": origin, "Sec-Fetch-Site": "same-origin"}).status
        for origin in (own, other)
    ]
    assert statuses == [200, 200]
    assert encrypted.client.get("/v2/", {"Origin": own}).status == 200
    assert encrypted.client.get("/v2/", {"Origin": other}).status == 403


@contextmanager
def http2(server: Server, window: int = 1 << 16) -> Iterator[socket.socket]:
    context = server.context
    assert context is not None
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((HOST, server.port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as connection,
        ):
            assert connection.selected_alpn_protocol() == "h2"
            # The preface (RFC 9113, 3.4), and a SETTINGS frame with the window of streams.
            setting = (4).to_bytes(2) + window.to_bytes(4)
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, setting))
            yield connection
    finally:
        context.set_alpn_protocols(["http/1.1"])


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def request_frame(stream: int, path: str, host: str) -> bytes:
    def literal(index: int, value: str) -> bytes:
        return bytes([index, len(value)]) + value.encode()

    # Fields of HPACK's static table (RFC 7541, A): GET and https as a whole; path and authority by name.
    fields = b"\x82\x87" + literal(0x04, path) + literal(0x01, host)
    return frame(1, 5, stream, fields)


def frames(connection: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """Yield kind, stream and payload of the frames that the server sends, until it closes the connection."""
    with connection.makefile("rb") as stream:
        while len(head := stream.read(9)) == 9:
            yield head[3], int.from_bytes(head[5:]), stream.read(int.from_bytes(head[:3]))


def test_http_2_is_offered_and_answers_several_requests_at_once(encrypted: Server) -> None:
    with http2(encrypted) as connection:
        host = f"{HOST}:{encrypted.port}"
        # One more than the server admits at once would be refused; four are not.
        connection.sendall(b"".join(request_frame(stream, "/v2/", host) for stream in (1, 3, 5, 7)))
        statuses, bodies = {}, {}
        for kind, stream, payload in frames(connection):
            if kind == 1:
                statuses[stream] = payload[:1]
            if kind == 0 and payload:
                bodies[stream] = payload
            if len(bodies) == 4:
                break
        # ``:status: 200`` in the static table.
        assert statuses == dict.fromkeys((1, 3, 5, 7), b"\x88")
        assert bodies == dict.fromkeys((1, 3, 5, 7), b"{}")


def test_requests_that_are_reset_at_once_end_the_connection(encrypted: Server) -> None:
    with http2(encrypted) as connection:
        host = f"{HOST}:{encrypted.port}"
        with pytest.raises(OSError, match=r"\S"):  # noqa: PT012 -- the server closes it at any of them
            for number in range(5000):
                stream = 2 * number + 1
                reset = frame(3, 0, stream, (8).to_bytes(4))
                connection.sendall(request_frame(stream, "/v2/", host) + reset)
    assert encrypted.client.get("/v2/").status == 200


def test_header_fields_without_end_end_the_connection(encrypted: Server) -> None:
    with http2(encrypted) as connection:
        connection.sendall(frame(1, 1, 1, b"\x82\x87"))
        field = b"\x00\x03x-y\x7f\x81\x7e" + b"a" * 16000
        with pytest.raises(OSError, match=r"\S"):  # noqa: PT012
            for _ in range(2000):
                connection.sendall(frame(9, 0, 1, field[:16384]))
    assert encrypted.client.get("/v2/").status == 200


def test_old_protocols_and_clients_without_tls_are_refused(encrypted: Server, authority: trustme.CA) -> None:
    hello_1_1 = (
        bytes.fromhex("16030100310100002d0302") + os.urandom(32) + bytes.fromhex("000004c013c01401000000")
    )
    for sent in (hello_1_1, b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n"):
        with socket.create_connection((HOST, encrypted.port), timeout=20) as connection:
            connection.sendall(sent)
            received = connection.recv(100)
            # A fatal alert (RFC 8446, 6), and no answer.
            assert received[:1] == b"\x15"
            assert received[5:6] == b"\x02"
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = trusting(authority)
        context.minimum_version = context.maximum_version = version
        assert replace(encrypted.client, context=context).get("/v2/").status == 200


def serial_number(server: Server) -> object:
    context = server.context
    assert context is not None
    with (
        socket.create_connection((HOST, server.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as connection,
    ):
        return (connection.getpeercert() or {}).get("serialNumber")


def test_a_renewed_certificate_is_served_and_no_request_is_refused(
    encrypted: Server, authority: trustme.CA
) -> None:
    before = serial_number(encrypted)
    failures: list[str] = []
    answered = [0, 0]
    stop = threading.Event()

    def ask(*, kept: bool) -> None:
        connection = encrypted.client.connect()
        while not stop.is_set():
            try:
                connection.request("GET", "/v2/")
                response = connection.getresponse()
                assert response.read() == b"{}"
                answered[kept] += 1
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"kept={kept} {error!r}")
            if not kept:
                connection.close()
        connection.close()

    threads = [threading.Thread(target=ask, kwargs={"kept": kept}) for kept in (False, False, True)]
    for thread in threads:
        thread.start()
    try:
        write_certificate(authority, encrypted.output.parent / "files")
        wait_until(lambda: serial_number(encrypted) != before, "the new certificate is served")
        # For a moment, connections go to either web server.
        wait_until(lambda: "previous certificate retired" in encrypted.log, "the previous web server stops")
        renewed = serial_number(encrypted)
        assert renewed != before
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert all(answered)

    # A key that does not fit, or a broken file, changes nothing.
    other = authority.issue_cert(HOST).private_key_pem.bytes()
    (encrypted.output.parent / "files" / "server.key").write_bytes(other)
    wait_until(lambda: "does not fit the first certificate" in encrypted.log, "the other key is refused")
    assert serial_number(encrypted) == renewed
    (encrypted.output.parent / "files" / "server.key").write_bytes(b"broken")
    wait_until(lambda: "has no private key in PEM" in encrypted.log, "the broken key is refused")
    assert serial_number(encrypted) == renewed


def test_clients_need_a_certificate_of_the_authority(
    tmp_path: Path, settings: Mapping[str, str], authority: trustme.CA
) -> None:
    files = write_certificate(authority, tmp_path / "files")
    clients = trustme.CA()
    (tmp_path / "clients.pem").write_bytes(clients.cert_pem.bytes())
    context = trusting(authority)
    clients.issue_cert("node@example.org").configure_cert(context)
    given = {**settings, **files, "NIXERY_TLS_CLIENT_CA": str(tmp_path / "clients.pem")}
    with running_server(tmp_path / "server", given, context=context) as server:
        assert server.client.get("/v2/").status == 200
        foreign = trusting(authority)
        authority.issue_cert("node@example.org").configure_cert(foreign)
        for refused in (trusting(authority), foreign):
            connection = http.client.HTTPSConnection(HOST, server.port, timeout=20, context=refused)
            with pytest.raises(OSError, match=r"\S"):  # noqa: PT012 -- TLS 1.3 refuses after the handshake
                connection.request("GET", "/v2/")
                connection.getresponse()
            connection.close()
        assert server.stop() == 0


def test_a_server_with_unusable_files_does_not_start(
    tmp_path: Path, settings: Mapping[str, str], authority: trustme.CA
) -> None:
    files = write_certificate(authority, tmp_path / "files")
    (tmp_path / "files" / "server.key").write_bytes(authority.issue_cert("a").private_key_pem.bytes())
    required = {
        "PORT": str(free_port()),
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(tmp_path / "storage"),
    }
    ended = run_server({**settings, **required, **files}, tmp_path)
    assert ended.returncode == 2
    assert "does not fit the first certificate" in ended.stderr + ended.stdout
    ended = run_server({**settings, **required, "NIXERY_TLS_KEY": files["NIXERY_TLS_KEY"]}, tmp_path)
    assert "NIXERY_TLS_CERTIFICATE is not set, but NIXERY_TLS_KEY is" in ended.stderr + ended.stdout


def test_a_server_on_a_network_without_tls_and_proxy_warns_once(
    tmp_path: Path, settings: Mapping[str, str], authority: trustme.CA
) -> None:
    # Nix's sandbox is another matter.
    network = {**settings, "NIXERY_HOST": "0.0.0.0", "NIXERY_NIX_SANDBOX": "off"}  # noqa: S104 -- tested
    files = write_certificate(authority, tmp_path / "files")
    for name, others, context, warnings in (
        ("bare", {}, None, 1),
        ("proxy", {"NIXERY_TRUSTED_PROXIES": "192.0.2.1"}, None, 0),
        ("loopback", {"NIXERY_HOST": HOST}, None, 0),
        ("encrypted", files, trusting(authority), 0),
    ):
        with running_server(tmp_path / name, {**network, **others}, context=context) as server:
            assert server.client.get("/v2/").status == 200
            assert server.stop() == 0
            assert server.log.count("listening on a network without TLS") == warnings, name


def test_check_and_metrics_have_the_certificate(
    tmp_path: Path, settings: Mapping[str, str], authority: trustme.CA
) -> None:
    files = write_certificate(authority, tmp_path / "files")
    nixery = CommandLine({**settings, **files, "STORAGE_PATH": str(tmp_path / "storage")}, tmp_path)

    def line(status: int = 0, **others: str) -> str:
        printed = nixery("check", status=status, **others).stdout.splitlines()
        first = next(number for number, text in enumerate(printed) if " tls " in text)
        return " ".join(printed[first : first + 2])

    assert re.search(
        r"ok +tls +the certificate is for localhost, 127\.0\.0\.1, and expires on \d{4}-", line()
    )
    other = line(NIXERY_PUBLIC_URL="https://registry.example.org")
    assert "not for the host of NIXERY_PUBLIC_URL (registry.example.org)" in other

    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(days=2)
    write_certificate(authority, tmp_path / "files", soon)
    assert f"expires on {soon:%Y-%m-%d %H:%M} UTC; renew it" in line()
    with running_server(tmp_path / "server", {**settings, **files}, context=trusting(authority)) as server:
        metrics = server.client.get("/metrics").body.decode()
        (value,) = re.findall(
            r"^nixery_tls_certificate_expiry_timestamp_seconds (\S+)", metrics, re.MULTILINE
        )
        assert float(value) == soon.timestamp()
        assert server.stop() == 0
        assert server.log.count("the certificate in NIXERY_TLS_CERTIFICATE expires on") == 1

    write_certificate(authority, tmp_path / "files", datetime.now(UTC) - timedelta(days=1))
    assert "the certificate expired on" in line(status=1)
    (tmp_path / "files" / "server.key").write_bytes(authority.issue_cert("a").private_key_pem.bytes())
    assert "does not fit the first certificate" in line(status=1)
