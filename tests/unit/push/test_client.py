"""Targets, and a client that survives hostile registries."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from nixery.errors import PushFailed
from nixery.oci.digest import Digest
from nixery.push.client import Target
from nixery.push.push import PushOptions, push
from nixery.storage.blobs import BlobStore
from nixery.storage.filesystem import FilesystemDriver


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:5000/git", Target("localhost:5000", "git", "latest")),
        ("registry.test/a/b-c:1.0", Target("registry.test", "a/b-c", "1.0")),
        ("[::1]:5000/git:x", Target("[::1]:5000", "git", "x")),
    ],
)
def test_a_target_has_a_host_a_name_and_a_tag(text: str, expected: Target) -> None:
    assert Target.parse(text, "latest") == expected


@pytest.mark.parametrize(
    "text", ["", "git", "localhost:5000/", "h/Git", "h/git:", "h/git@sha256:0", "http://h/git"]
)
def test_an_invalid_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid target"):
        Target.parse(text, "latest")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.2:80", True),
        ("[::1]:1", True),
        ("localhost.test", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback_addresses_are_recognised(host: str, loopback: bool) -> None:  # noqa: FBT001 -- pytest's parameter
    assert Target(host, "git", "latest").is_loopback is loopback


pytestmark = pytest.mark.security

_MIB = 1024 * 1024
_MANIFEST = (
    b'{"mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": [], "config": {"digest": "%s"}}'
)


class Answering(BaseHTTPRequestHandler):
    """Answers that blobs are missing, until the test provides another answer."""

    protocol_version = "HTTP/1.1"

    def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.reply(404)

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        raise NotImplementedError

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[Answering]) -> Iterator[str]:
    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client may close the connection early."""

    server = Quiet(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def failure(handler: type[Answering], directory: Path) -> str:
    blobs = BlobStore(FilesystemDriver(directory, directory))
    config = b"{}"
    manifest = _MANIFEST % str(Digest.of(config)).encode()
    for content in (config, manifest):
        await blobs.put(Digest.of(content), content)
    environment = {"HOME": str(directory)}
    with serving(handler) as address:
        target = Target.parse(f"{address}/set", "latest")
        with pytest.raises(PushFailed) as failed:
            await push(blobs, Digest.of(manifest), target, environment, lambda _: None, PushOptions(delay=0))
    assert "\n" not in str(failed.value)
    return str(failed.value)


def _flood(self: Answering) -> None:
    self.send_response(403)
    self.end_headers()
    self.close_connection = True
    with suppress(OSError):
        for _ in range(256):
            self.wfile.write(bytes(_MIB))


def _bomb(self: Answering) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = b"".join(packer.compress(bytes(_MIB)) for _ in range(256)) + packer.flush()
    self.reply(403, content, Content_Encoding="gzip")


def _challenge(value: str) -> Callable[[Answering], None]:
    return lambda self: self.reply(401, WWW_Authenticate=value)


def _token(content: bytes) -> Callable[[Answering], None]:
    def answer(self: Answering) -> None:
        if self.path.startswith("/token"):
            self.reply(200, content)
        else:
            self.reply(401, WWW_Authenticate=f'Bearer realm="http://{self.headers["Host"]}/token"')

    return answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_challenge('Bearer realm="http://[::bad/"'), "invalid URL of a token server"),
        (_challenge('Bearer realm="/relative"'), "cannot connect"),
        (_challenge('Bearer realm="file:///etc/passwd"'), "cannot connect"),
        # A regression: this took a minute.
        (_challenge("Bearer " + "a" * 60_000), "not logged in"),
        (_token(b"[" * 200_000), "has no valid token"),
        (_token(b'{"token": "\\u00e9"}'), "has no valid token"),
        (_token(b'{"token": "a\\r\\nX: y"}'), "has no valid token"),
        (lambda self: self.reply(202), "no Location"),
        (lambda self: self.reply(202, Location="http://[::bad/"), "not a URL"),
        (lambda self: self.reply(403, b"[" * 200_000), "no permission"),
    ],
)
async def test_a_hostile_answer_is_one_clear_error(
    answer: Callable[[Answering], None], reason: str, tmp_path: Path
) -> None:
    assert reason in await failure(type("Handler", (Answering,), {"do_POST": answer}), tmp_path)


@pytest.mark.parametrize("answer", [_flood, _bomb])
async def test_an_endless_answer_takes_bounded_memory(
    answer: Callable[[Answering], None], tmp_path: Path
) -> None:
    tracemalloc.start()
    try:
        assert "no permission" in await failure(type("Handler", (Answering,), {"do_POST": answer}), tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 32 * _MIB
    finally:
        tracemalloc.stop()


async def test_a_long_reason_is_shortened(tmp_path: Path) -> None:
    content = b'{"errors": [{"code": "DENIED", "message": "%s"}]}' % (b"y" * 100_000)
    handler = type("Handler", (Answering,), {"do_POST": lambda self: self.reply(403, content)})
    assert 500 < len(await failure(handler, tmp_path)) < 2000
