"""Files of binary caches: over HTTP, in a directory, in a bucket of S3.

Narinfos come over one connection where a cache has HTTP/2, and otherwise over a few; NARs have a connection each.
docs/reference/performance.md has figures, also for other libraries. obstore would be the fastest for narinfos, but it
reads the body of an error whatever its length, and no answer without a length.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AbstractContextManager, aclosing, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

import httpx
import obstore
from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from nixery.binary_caches.configuration import BinaryCache
from nixery.plain_text import shortened

if TYPE_CHECKING:  # obstore has no types at run time
    from obstore.store import ClientConfig, RetryConfig, S3Config

# Bytes of a piece of a file.
_PIECE = 256 * 1024

# Connections for narinfos to a cache without HTTP/2, and requests at once to one with it. Nix has 25 connections, and
# servers allow 100 requests or more.
_LANES = 32
_STREAMS = 96

# Nix's own limit is 10.
_MOST_REDIRECTS = 5

# The status of a file that a cache has not. S3 answers 403 without the permission to list, and so does Nix read it.
_MISSING = frozenset({403, 404, 410})
_LOGIN = frozenset({401, 407})
_TEMPORARY = frozenset({408, 425, 429})

_LONGEST_REASON = 200

# Of obstore's messages, which has no errors of their own for them.
_STATUS = re.compile(r"non-2xx status code: (\d{3})")


class TransportFailed(Exception):
    """A cache did not answer as it should.

    Attributes:
        reason: as a clause without a subject.
        again: whether another attempt may help.
    """

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.again = again


class FileMissing(TransportFailed):
    """A cache does not have a file."""

    def __init__(self) -> None:
        super().__init__("has no such file", again=False)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a cache is waited for, in seconds.

    Attributes:
        connect: for a connection.
        answer: for the whole answer with a narinfo.
        silence: between two pieces of a NAR.
        attempts: number of them.
        pause: before the second attempt; twice as long before each further one.
    """

    connect: float = 5.0
    answer: float = 15.0
    silence: float = 30.0
    attempts: int = 4
    pause: float = 0.2


class _TooManyRedirects(TransportFailed):
    def __init__(self) -> None:
        super().__init__(f"redirects more than {_MOST_REDIRECTS} times", again=False)


class Transport(Protocol):
    """Reads the files of a cache."""

    @property
    def concurrency(self) -> int:
        """Small files that may be read at once; known after the first answer."""
        ...

    async def read(self, name: str, limit: int) -> bytes:
        """Read a small file, with retries.

        Raises:
            TransportFailed: it cannot be read, or has more than ``limit`` bytes.
        """
        ...

    def stream(self, name: str, start: int) -> AbstractContextManager[Iterator[bytes]]:
        """Read a file from a byte on, for a thread; the caller retries.

        Raises:
            TransportFailed: on entering or while reading, it cannot be read.
        """
        ...

    async def close(self) -> None:
        """Close idle connections."""
        ...


def open_transport(cache: BinaryCache, authorities: bytes, patience: Patience) -> Transport:
    """Return the transport of a cache; connects to nothing yet.

    Raises:
        ValueError: a parameter of the cache's URL is wrong, or the authorities are no certificates.
    """
    match cache.scheme:
        case "file":
            return _Directory(Path(unquote(urlsplit(cache.name).path)))
        case "s3":
            return _Bucket(cache, patience)
        case _:
            return _HTTP(cache, authorities, patience)


class _Directory:
    concurrency = 8

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def read(self, name: str, limit: int) -> bytes:
        return await asyncio.to_thread(self._read, name, limit)

    def _read(self, name: str, limit: int) -> bytes:
        with _reading_files(), (self._directory / name).open("rb") as file:
            content = file.read(limit + 1)
        return _bounded(content, limit)

    @contextmanager
    def stream(self, name: str, start: int) -> Iterator[Iterator[bytes]]:
        with _reading_files(), (self._directory / name).open("rb", buffering=0) as file:
            file.seek(start)
            yield iter(lambda: file.read(_PIECE), b"")

    async def close(self) -> None:
        pass


@contextmanager
def _reading_files() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileMissing from error
    except OSError as error:
        raise TransportFailed(f"cannot be read: {error.strerror}", again=False) from error


class _Bucket:
    concurrency = 64

    def __init__(self, cache: BinaryCache, patience: Patience) -> None:
        given = cache.parameters
        split = urlsplit(cache.name)
        endpoint = given.get("endpoint")
        if endpoint and "://" not in endpoint:
            endpoint = f"{given.get('scheme', 'https')}://{endpoint}"
        options = _client_options(patience)
        options["allow_http"] = (endpoint or "").startswith("http://")
        config: S3Config = {"region": given.get("region", "us-east-1")}
        if endpoint:
            config["endpoint"] = endpoint
        try:
            self._store = S3Store(
                split.netloc,
                prefix=split.path.strip("/") or None,
                config=config,
                client_options=options,
                retry_config=_retries(patience),
            )
        except BaseError as error:
            reason = shortened(str(error).partition("\n")[0], _LONGEST_REASON)
            raise ValueError(f"{cache.name} cannot be used: {reason}") from error

    async def read(self, name: str, limit: int) -> bytes:
        with _reading_objects():
            found = await obstore.get_async(self._store, name)
            if found.meta["size"] > limit:
                raise TransportFailed(f"sends more than {limit:,} bytes", again=False)
            # Not more than the length that the answer announces.
            return bytes(await found.bytes_async())

    @contextmanager
    def stream(self, name: str, start: int) -> Iterator[Iterator[bytes]]:
        with _reading_objects():
            found = obstore.get(self._store, name, options={"range": {"offset": start}} if start else {})
            yield map(bytes, found.stream(_PIECE))

    async def close(self) -> None:
        pass


class _HTTP:
    def __init__(self, cache: BinaryCache, authorities: bytes, patience: Patience) -> None:
        self._url = f"{cache.name}/"
        self._schemes = {"https"} if cache.scheme == "https" else {"http", "https"}
        self._patience = patience
        headers = {"Accept-Encoding": "identity"}
        if cache.login is not None:
            headers["Authorization"] = f"Basic {b64encode(':'.join(cache.login).encode()).decode()}"
        context = _tls(authorities)
        self._client = httpx.Client(
            verify=context,
            headers=headers,
            timeout=httpx.Timeout(patience.silence, connect=patience.connect),
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=4),
        )
        # httpx looks at all connections of a client for each request, so many connections need many clients.
        self._lanes = [
            httpx.AsyncClient(
                verify=context,
                headers=headers,
                timeout=httpx.Timeout(patience.answer, connect=patience.connect),
                limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=30),
                http2=True,
            )
            for _ in range(_LANES)
        ]
        self._free = self._lanes[::-1]
        # Known from the first answer on.
        self._multiplexed = False

    @property
    def concurrency(self) -> int:
        return _STREAMS if self._multiplexed else _LANES

    async def read(self, name: str, limit: int) -> bytes:
        failures = 0
        try:
            async with asyncio.timeout(self._patience.answer):
                while True:
                    try:
                        with self._free_lane() as client:
                            return await self._read(name, limit, client)
                    except TransportFailed as error:
                        failures += 1
                        if not error.again or failures >= self._patience.attempts:
                            raise
                    await asyncio.sleep(self._patience.pause * 2 ** (failures - 1))
        except TimeoutError as error:
            raise TransportFailed("does not answer in time", again=True) from error

    @contextmanager
    def _free_lane(self) -> Iterator[httpx.AsyncClient]:
        """Take the lane that was used last, so that few connections are opened."""
        if self._multiplexed or not self._free:
            yield self._lanes[0]
            return
        lane = self._free.pop()
        try:
            yield lane
        finally:
            self._free.append(lane)

    async def _read(self, name: str, limit: int, client: httpx.AsyncClient) -> bytes:
        request = client.build_request("GET", f"{self._url}{name}")
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                async with aclosing(await client.send(request, stream=True)) as answer:
                    content = await _beginning(answer, limit + 1)
                    further = self._redirected(answer)
                if further is None:
                    _check(answer, 0)
                    self._multiplexed = answer.http_version == "HTTP/2"
                    return _bounded(content, limit)
                request = further
        except httpx.HTTPError as error:
            raise TransportFailed(_reason(error), again=True) from error
        raise _TooManyRedirects

    @contextmanager
    def stream(self, name: str, start: int) -> Iterator[Iterator[bytes]]:
        try:
            with closing(self._answer(name, start)) as answer:
                skipped = start if answer.status_code == httpx.codes.OK else 0
                yield _after(answer.iter_raw(), skipped)
        except httpx.HTTPError as error:
            raise TransportFailed(_reason(error), again=True) from error

    def _answer(self, name: str, start: int) -> httpx.Response:
        request = self._client.build_request(
            "GET", f"{self._url}{name}", headers={"Range": f"bytes={start}-"} if start else {}
        )
        for _ in range(_MOST_REDIRECTS + 1):
            answer = self._client.send(request, stream=True)
            try:
                further = self._redirected(answer)
                if further is None:
                    _check(answer, start)
                    return answer
            except TransportFailed:
                answer.close()
                raise
            answer.close()
            request = further
        raise _TooManyRedirects

    def _redirected(self, answer: httpx.Response) -> httpx.Request | None:
        # httpx has removed the login from a request to another host.
        request = answer.next_request
        if request is not None and request.url.scheme not in self._schemes:
            raise TransportFailed("redirects to another scheme", again=False)
        return request

    async def close(self) -> None:
        self._client.close()
        for client in self._lanes:
            await client.aclose()


async def _beginning(answer: httpx.Response, limit: int) -> bytes:
    """Read a body up to a limit; also that of an error, so that its connection can be used again."""
    content = bytearray()
    async for piece in answer.aiter_raw():
        content += piece[: limit - len(content)]
        if len(content) == limit:
            break
    return bytes(content)


def _tls(authorities: bytes) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if authorities:
        try:
            context.load_verify_locations(cadata=authorities.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise ValueError("ssl-cert-file, or NIX_SSL_CERT_FILE, has no certificates in PEM") from None
    return context


def _bounded(content: bytes, limit: int) -> bytes:
    if len(content) > limit:
        raise TransportFailed(f"sends more than {limit:,} bytes", again=False)
    return content


def _after(pieces: Iterator[bytes], skipped: int) -> Iterator[bytes]:
    """Leave out the first bytes, from a server that has no ranges."""
    for piece in pieces:
        if skipped < len(piece):
            yield piece[skipped:] if skipped else piece
        skipped = max(0, skipped - len(piece))


def _check(answer: httpx.Response, start: int) -> None:
    status = answer.status_code
    if status not in {httpx.codes.OK, httpx.codes.PARTIAL_CONTENT}:
        raise _wrong_status(status)
    if status == httpx.codes.PARTIAL_CONTENT and not answer.headers.get("Content-Range", "").startswith(
        f"bytes {start}-"
    ):
        raise TransportFailed("sends another part of the file than it was asked for", again=False)
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise TransportFailed("compresses its answers although it must not", again=False)


def _wrong_status(status: int) -> TransportFailed:
    if status in _MISSING:
        return FileMissing()
    if status in _LOGIN:
        return TransportFailed(
            "asks for another login: check the netrc-file of Nix's configuration", again=False
        )
    return TransportFailed(
        f"answers with status {status}",
        again=status in _TEMPORARY or status >= httpx.codes.INTERNAL_SERVER_ERROR,
    )


@contextmanager
def _reading_objects() -> Iterator[None]:
    try:
        yield
    except (NotFoundError, PermissionDeniedError, FileNotFoundError) as error:
        raise FileMissing from error
    except UnauthenticatedError as error:
        raise _wrong_status(httpx.codes.UNAUTHORIZED) from error
    except (BaseError, OSError, ValueError) as error:
        text = str(error)
        status = _STATUS.search(text)
        if status is not None:
            raise _wrong_status(int(status[1])) from error
        raise TransportFailed("cannot be reached, or breaks off its answers", again=True) from error


def _reason(error: httpx.HTTPError) -> str:
    match error:
        case httpx.ConnectTimeout() | httpx.ConnectError():
            return f"cannot be reached: {shortened(str(error) or 'no connection in time', _LONGEST_REASON)}"
        case httpx.TimeoutException():
            return "sends nothing for too long"
        case _:
            return f"breaks off its answer: {shortened(str(error), _LONGEST_REASON)}"


def _client_options(patience: Patience) -> ClientConfig:
    return {
        "connect_timeout": timedelta(seconds=patience.connect),
        "timeout": timedelta(seconds=patience.answer),
    }


def _retries(patience: Patience) -> RetryConfig:
    return {
        "max_retries": patience.attempts - 1,
        "retry_timeout": timedelta(seconds=patience.answer),
        "backoff": {
            "init_backoff": timedelta(seconds=patience.pause),
            "max_backoff": timedelta(seconds=patience.pause * 8),
            "base": 2,
        },
    }
