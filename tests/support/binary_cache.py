"""Binary caches made without Nix, and servers of them that misbehave."""

from __future__ import annotations

import base64
import bz2
import gzip
import hashlib
import lzma
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nixery.binary_caches.narinfo import Compression, encode_base32, fingerprint
from nixery.closure import PathInfo, StorePath
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
    """

    url: str = ""
    answers: dict[str, Answer | Callable[[Mapping[str, str]], Answer]] = field(default_factory=dict)
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    hanging: threading.Event = field(default_factory=threading.Event)

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


@contextmanager
def cache_server() -> Iterator[CacheServer]:
    """Serve a cache, with ranges."""
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
            content, status = answer.content, answer.status
            headers = dict(answer.headers)
            start = self.headers.get("Range", "")
            if isinstance(content, bytes) and start and status == 200:
                first = int(start.removeprefix("bytes=").removesuffix("-"))
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
                content, status = content[first:], 206
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if answer.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif isinstance(content, bytes):
                self.send_header(
                    "Content-Length", str(len(content) if answer.length is None else answer.length)
                )
            elif answer.length is not None:
                self.send_header("Content-Length", str(answer.length))
            self.end_headers()
            for piece in (content,) if isinstance(content, bytes) else content:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if answer.chunked else piece)
            if answer.chunked:
                self.wfile.write(b"0\r\n\r\n")
            # The client sees the end of a body that is too short.
            self.close_connection = answer.length is not None or not isinstance(content, bytes)

        def log_message(self, *arguments: object) -> None:
            pass

    with serving(Handler) as port:
        cache.url = f"http://{HOST}:{port}"
        try:
            yield cache
        finally:
            cache.hanging.set()
