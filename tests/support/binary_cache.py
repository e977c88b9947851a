"""Binary caches made without Nix, and servers of them that misbehave."""

from __future__ import annotations

import asyncio
import base64
import bz2
import gzip
import hashlib
import lzma
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import h2.config
import h2.connection
import h2.events
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nixery.binary_caches.narinfo import Compression, fingerprint
from nixery.closure import PathInfo, StorePath, encode_base32
from tests.support.server import HOST
from tests.support.web_server import serving

CACHE_INFO = b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"

COMPRESS: Mapping[Compression, Callable[[bytes], bytes]] = {
    "none": bytes,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "bzip2": bz2.compress,
    "gzip": gzip.compress,
}


class SigningKey:
    """A key that signs narinfos."""

    def __init__(self, name: str = "test-1", seed: bytes = bytes(32)) -> None:
        self.name = name
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    @property
    def public(self) -> str:
        return f"{self.name}:{base64.b64encode(self._key.public_key().public_bytes_raw()).decode()}"

    def sign(self, info: PathInfo) -> str:
        return f"{self.name}:{base64.b64encode(self._key.sign(fingerprint(info))).decode()}"


def store_path(name: str) -> StorePath:
    return StorePath(f"{encode_base32(hashlib.sha256(name.encode()).digest()[:20])}-{name}")


def _word(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content + bytes(-len(content) % 8)


def nar_of_file(content: bytes) -> bytes:
    """Write the NAR of a file that is not executable."""
    words = (b"nix-archive-1", b"(", b"type", b"regular", b"contents", content, b")")
    return b"".join(map(_word, words))


def path_info(name: str, nar: bytes, references: tuple[StorePath, ...] = ()) -> PathInfo:
    path = store_path(name)
    others = tuple(sorted(set(references) - {path}))
    return PathInfo(
        path, hashlib.sha256(nar).hexdigest(), len(nar), others, refers_to_itself=path in references
    )


def narinfo_text(info: PathInfo, fields: Mapping[str, str] | None = None) -> bytes:
    """Write a narinfo; ``fields`` overrides or adds some, and an empty value leaves one out."""
    references = sorted((*info.references, *((info.path,) if info.refers_to_itself else ())))
    all_fields = {
        "StorePath": str(info.path),
        "URL": f"nar/{info.path.base_name[:32]}.nar",
        "Compression": "none",
        "NarHash": f"sha256:{encode_base32(bytes.fromhex(info.nar_hash))}",
        "NarSize": str(info.nar_size),
        "References": " ".join(path.base_name for path in references),
        **(fields or {}),
    }
    return "".join(
        f"{name}: {value}\n" for name, value in all_fields.items() if value or name == "References"
    ).encode()


@dataclass
class Answer:
    """What a server sends.

    Attributes:
        content: the body; or pieces of it, without a length if ``chunked``.
        length: that is announced; ``None`` for the true one.
    """

    content: bytes | Iterator[bytes] = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    chunked: bool = False


@dataclass
class CacheServer:
    """A binary cache over HTTP.

    Attributes:
        url: of the cache.
        answers: by the path below it: an answer, or a function of the request's headers that returns one.
        requests: the paths and headers of requests, in order.
        hanging: ends answers that wait for it.
        connections: their number, over HTTP/2.
    """

    url: str = ""
    answers: dict[str, Answer | Callable[[Mapping[str, str]], Answer]] = field(default_factory=dict)
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)
    connections: int = 0

    def add(
        self,
        name: str,
        content: bytes,
        key: SigningKey | None,
        compression: Compression = "none",
        fields: Mapping[str, str] | None = None,
    ) -> StorePath:
        """Add a path with one file."""
        nar = nar_of_file(content)
        info = path_info(name, nar)
        file = f"nar/{name}.nar"
        described = {"URL": file, "Compression": compression}
        if key is not None:
            described["Sig"] = key.sign(info)
        self.answers[file] = Answer(COMPRESS[compression](nar))
        self.answers[narinfo_name(info.path)] = Answer(narinfo_text(info, described | dict(fields or {})))
        return info.path

    def requested(self, name: str) -> int:
        return sum(path == name for path, _ in self.requests)


def narinfo_name(path: StorePath) -> str:
    return f"{path.base_name[:32]}.narinfo"


@dataclass
class _Sent:
    status: int
    headers: dict[str, str]
    pieces: Iterable[bytes]


def _part(answer: Answer, requested: str) -> _Sent:
    """Return the status, the headers and the body of an answer to a request for a range, if it is one."""
    sent = _Sent(answer.status, dict(answer.headers), ())
    length = answer.length
    if isinstance(answer.content, bytes):
        content = answer.content
        if requested and answer.status == 200:
            first = int(requested.removeprefix("bytes=").removesuffix("-"))
            sent.headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            content, sent.status = content[first:], 206
        sent.pieces = (content,)
        length = len(content) if length is None else length
    else:
        sent.pieces = answer.content
    if answer.chunked:
        sent.headers["Transfer-Encoding"] = "chunked"
    elif length is not None:
        sent.headers["Content-Length"] = str(length)
    return sent


@contextmanager
def cache_server(tls: ssl.SSLContext | None = None) -> Iterator[CacheServer]:
    """Serve a cache over HTTP/1.1, with ranges."""
    cache = CacheServer()
    cache.answers["nix-cache-info"] = Answer(CACHE_INFO)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.removeprefix("/")
            cache.requests.append((name, dict(self.headers)))
            found = cache.answers.get(name, Answer(b"no", 404))
            answer = found if isinstance(found, Answer) else found(dict(self.headers))
            try:
                self._send(answer)
            except ConnectionError:
                self.close_connection = True

        def _send(self, answer: Answer) -> None:
            ranged = _part(answer, self.headers.get("Range", ""))
            self.send_response(ranged.status)
            for name, value in ranged.headers.items():
                self.send_header(name, value)
            self.end_headers()
            for piece in ranged.pieces:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if answer.chunked else piece)
            if answer.chunked:
                self.wfile.write(b"0\r\n\r\n")
            # The client sees the end of a body that is too short.
            self.close_connection = answer.length is not None or not isinstance(answer.content, bytes)

        def log_message(self, *arguments: object) -> None:
            pass

    with serving(Handler, tls=tls) as port:
        cache.url = f"{'https' if tls else 'http'}://{HOST}:{port}"
        try:
            yield cache
        finally:
            cache.hanging.set()


class _HTTP2(asyncio.Protocol):
    """A connection of a server that answers with the small files of a cache."""

    def __init__(
        self, cache: CacheServer, opened: list[tuple[asyncio.Transport, asyncio.Future[None]]]
    ) -> None:
        self._cache = cache
        self._opened = opened
        self._ended = asyncio.get_running_loop().create_future()
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._opened.append((transport, self._ended))
        self._cache.connections += 1
        self._connection.initiate_connection()
        transport.write(self._connection.data_to_send())

    def connection_lost(self, _: Exception | None) -> None:
        self._ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        for event in self._connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived) and event.headers is not None:
                headers = {name.decode(): value.decode() for name, value in event.headers}
                name = headers[":path"].removeprefix("/")
                self._cache.requests.append((name, headers))
                answer = self._cache.answers.get(name, Answer(b"no", 404))
                assert isinstance(answer, Answer)
                assert isinstance(answer.content, bytes)
                assert event.stream_id is not None
                self._connection.send_headers(event.stream_id, [(":status", str(answer.status))])
                self._connection.send_data(event.stream_id, answer.content, end_stream=True)
        self._transport.write(self._connection.data_to_send())


@contextmanager
def http2_cache_server(tls: ssl.SSLContext) -> Iterator[CacheServer]:
    """Serve the small files of a cache over HTTP/2 alone."""
    cache = CacheServer()
    cache.answers["nix-cache-info"] = Answer(CACHE_INFO)
    tls.set_alpn_protocols(["h2"])
    loop = asyncio.new_event_loop()
    started, stop = threading.Event(), asyncio.Event()
    opened: list[tuple[asyncio.Transport, asyncio.Future[None]]] = []

    async def serve() -> None:
        server = await loop.create_server(lambda: _HTTP2(cache, opened), HOST, 0, ssl=tls)
        cache.url = f"https://{HOST}:{server.sockets[0].getsockname()[1]}"
        started.set()
        await stop.wait()
        server.close()
        for transport, _ in opened:
            transport.abort()
        await asyncio.gather(*(ended for _, ended in opened))

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    try:
        yield cache
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
