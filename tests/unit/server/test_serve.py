"""Limits on connections where the system allows few descriptors, and requests that clients of HTTP/2 reset."""

from __future__ import annotations

import asyncio
import resource
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from nixery.caching import SingleFlight
from nixery.server.app import Application
from nixery.server.connections import ConnectionBounds
from nixery.server.http import BytesResponse, Request, Response
from nixery.server.observation import Observation
from nixery.server.serve import ADMIN_CONNECTIONS, Listener, _server, _Target, _with_descriptors
from nixery.server.tls import TLSFiles
from nixery.telemetry.metrics import RequestCounts
from tests.support.server import HOST, free_port


@pytest.fixture
def listeners() -> list[Listener]:
    application = Application(None, Observation(RequestCounts()), {})
    bounds = ConnectionBounds(1024, 256)
    return [
        Listener(application, "127.0.0.1", 1, bounds),
        Listener(application, "127.0.0.1", 2, ADMIN_CONNECTIONS),
    ]


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "connections"),
    [
        (1024, 1 << 20, 3776, 1024),
        (1 << 20, 1 << 20, None, 1024),
        (1024, resource.RLIM_INFINITY, 3776, 1024),
        (512, 2144, 2144, 512),
        (256, 256, 256, 16),
    ],
)
def test_connections_fit_the_descriptors(
    listeners: list[Listener],
    monkeypatch: pytest.MonkeyPatch,
    soft: int,
    hard: int,
    raised: int | None,
    connections: int,
) -> None:
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    bounds = _with_descriptors(listeners)
    assert (bounds[1].total, bounds[1].per_client) == (connections, 256)
    assert limits == ([(raised, hard)] if raised else [])


@asynccontextmanager
async def http2(application: Application, directory: Path) -> AsyncIterator[asyncio.StreamWriter]:
    """Serve an application with TLS, and connect to it with HTTP/2."""
    authority, port = trustme.CA(), free_port()
    leaf = authority.issue_cert(HOST)
    files = TLSFiles(directory / "certificate.pem", directory / "key.pem")
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    files.key.write_bytes(leaf.private_key_pem.bytes())
    listener = Listener(application, HOST, port, ConnectionBounds(64, 64), http2=True)
    server = _server(listener, _Target(application), listener.bounds, files)
    serving = asyncio.ensure_future(server.serve())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    writer: asyncio.StreamWriter | None = None
    try:
        while writer is None:
            try:
                _, writer = await asyncio.open_connection(HOST, port, ssl=context, server_hostname=HOST)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, b""))
        yield writer
        writer.close()
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await serving


def _frame(kind: int, stream: int, payload: bytes, flags: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


async def test_a_reset_request_of_http_2_waits_no_longer(tmp_path: Path) -> None:
    flight: SingleFlight[str, str] = SingleFlight()
    done = asyncio.Event()

    async def work() -> str:
        await done.wait()
        return "done"

    async def answer(_: Request) -> Response:
        return BytesResponse(200, (await flight.run("work", work)).encode())

    application = Application(None, Observation(RequestCounts()), {"/slow": answer}, encrypted=True)

    async def requests(number: int) -> None:
        while len(application.observation.peers()) != number:  # noqa: ASYNC110 -- no event tells
            await asyncio.sleep(0.01)

    async with asyncio.timeout(60), http2(application, tmp_path) as writer:
        # GET, https, and path and authority as literals (RFC 7541).
        fields = b"\x82\x87\x04\x05/slow\x01\x09localhost"
        for stream in (1, 3, 5):
            writer.write(_frame(1, stream, fields, 5))
            await requests(1)
            # The connection stays open.
            writer.write(_frame(3, stream, (8).to_bytes(4)))
            await requests(0)
        done.set()
    await flight.close()
