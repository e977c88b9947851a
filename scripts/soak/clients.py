"""Clients that pull cached, new, missing and failing images, and that disconnect midway."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import count

WARM = ("hello", "shell/hello", "many", "diamond/outputs", "big")

# Share of each kind of pull, in per cent.
_MIX = {"warm": 70, "cold": 8, "missing": 6, "failing": 4, "broken off": 12}

# The longest pause between two pulls of a client, in seconds.
_PAUSE = 1.0

_OK, _NOT_FOUND, _UNPROCESSABLE, _BUSY = 200, 404, 422, 429


# Seconds for one response, which may wait in the queue and for a build.
_TIMEOUT = 120

# Bytes to read ahead. With a small buffer, a large blob takes hundreds of turns of an event loop with
# hundreds of clients, and the loop would be measured instead of the server.
_READ_AHEAD = 4 * 1024 * 1024

_ACCEPT = "application/vnd.oci.image.manifest.v1+json"


class WrongAnswer(Exception):
    """The server gave a wrong response."""


class Clients:
    """The clients of one server, and their results.

    Attributes:
        seconds: latencies by kind of pull.
        busy: how often the server answered 429.
        built: how many images were built.
    """

    def __init__(self, host: str, port: int, seed: int) -> None:
        self._host = host
        self._port = port
        self._draw = random.Random(seed)  # noqa: S311 -- for a test
        self._numbers = count()
        self._digests: dict[str, str] = {}
        self._stop = asyncio.Event()
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.busy = 0
        self.built = 0

    async def warm_up(self) -> None:
        """Pull the images that the warm pulls repeat."""
        for name in WARM:
            await self._pull(name)

    async def run(self, clients: int, seconds: float) -> None:
        """Pull for some time.

        Raises:
            ExceptionGroup: with the first WrongAnswer.
        """
        self._stop.clear()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client())
            await asyncio.sleep(seconds)
            self._stop.set()

    async def _client(self) -> None:
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "warm": lambda: self._pull(self._draw.choice(WARM)),
            "cold": lambda: self._pull(f"cold{next(self._numbers)}"),
            "missing": lambda: self._expect(f"nosuch{next(self._numbers)}", _NOT_FOUND),
            "failing": lambda: self._expect(f"failing{next(self._numbers)}", _UNPROCESSABLE),
            "broken off": self._break_off,
        }
        while not self._stop.is_set():
            (kind,) = self._draw.choices(list(kinds), [_MIX[kind] for kind in kinds])
            begin = time.monotonic()
            await kinds[kind]()
            self.seconds[kind].append(time.monotonic() - begin)
            await asyncio.sleep(self._draw.uniform(0, _PAUSE))

    async def _pull(self, name: str) -> None:
        connection = await Connection.open(self._host, self._port)
        try:
            answer = await self._manifest(connection, name)
            if answer is None:
                return
            digest = answer.headers["docker-content-digest"]
            _require_digest(name, digest, answer.body)
            known = self._digests.setdefault(name, digest)
            if known != digest:
                raise WrongAnswer(f"{name} was {known} and is {digest}")
            self.built += name.startswith("cold")
            manifest = json.loads(answer.body)
            parts = [manifest["config"], *manifest["layers"]]
            # All blobs of a new image, some blobs of a cached one.
            for part in parts if name.startswith("cold") else self._draw.sample(parts, 2):
                blob = await connection.get(f"/v2/{name}/blobs/{part['digest']}")
                if blob.status != _OK:
                    raise WrongAnswer(f"{part['digest']} of {name}: {blob.status} {blob.body!r}")
                _require_digest(name, part["digest"], blob.body)
        finally:
            connection.abort()

    async def _expect(self, name: str, status: int) -> None:
        connection = await Connection.open(self._host, self._port)
        try:
            answer = await self._manifest(connection, name)
            if answer is not None and answer.status != status:
                raise WrongAnswer(f"{name}: {answer.status} {answer.body!r}")
        finally:
            connection.abort()

    async def _manifest(self, connection: Connection, name: str) -> Answer | None:
        answer = await connection.get(f"/v2/{name}/manifests/latest")
        if answer.status == _BUSY:
            self.busy += 1
            await asyncio.sleep(min(5, int(answer.headers["retry-after"])))
            return None
        if answer.status != _OK and not name.startswith(("nosuch", "failing")):
            raise WrongAnswer(f"{name}: {answer.status} {answer.body!r}")
        return answer

    async def _break_off(self) -> None:
        connection = await Connection.open(self._host, self._port)
        try:
            if self._draw.random() < 0.3:  # noqa: PLR2004 -- some of them
                await connection.send(f"/v2/cold{next(self._numbers)}/manifests/latest")
                await asyncio.sleep(self._draw.uniform(0, 0.5))
                return
            answer = await connection.get("/v2/big/manifests/latest")
            largest = max(json.loads(answer.body)["layers"], key=lambda layer: int(layer["size"]))
            await connection.send(f"/v2/big/blobs/{largest['digest']}")
            await connection.read_some(10_000)
        finally:
            connection.abort()

    def table(self) -> str:
        """Latencies in milliseconds, in Markdown."""
        lines = ["| pull | number | median | 90 % | 99 % | longest |", "|---|--:|--:|--:|--:|--:|"]
        for kind in _MIX:
            values = sorted(self.seconds[kind])
            if values:
                shown = (values[min(len(values) - 1, len(values) * p // 100)] for p in (50, 90, 99, 100))
                cells = " | ".join(f"{value * 1000:,.0f} ms" for value in shown)
                lines.append(f"| {kind} | {len(values)} | {cells} |")
        return "\n".join(lines)

    def numbers(self) -> Counter[str]:
        """How many pulls of each kind."""
        return Counter({kind: len(values) for kind, values in self.seconds.items()})


@dataclass(frozen=True)
class Answer:
    """A response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """A persistent HTTP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        """Connect."""
        return cls(*await asyncio.open_connection(host, port, limit=_READ_AHEAD))

    async def get(self, path: str) -> Answer:
        """Request a path and read the whole response."""
        async with asyncio.timeout(_TIMEOUT):
            await self.send(path)
            head = await self._reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(int(status.split()[1]), headers, body)

    async def send(self, path: str) -> None:
        """Send a request without reading the response."""
        request = f"GET {path} HTTP/1.1\r\nHost: registry\r\nAccept: {_ACCEPT}\r\n\r\n"
        self._writer.write(request.encode())
        await self._writer.drain()

    async def read_some(self, size: int) -> None:
        """Read the beginning of a response."""
        await self._reader.read(size)

    def abort(self) -> None:
        """Close the connection abruptly."""
        self._writer.transport.abort()


def _require_digest(name: str, digest: str, body: bytes) -> None:
    if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
        raise WrongAnswer(f"{name}: {len(body)} bytes are not {digest}")
