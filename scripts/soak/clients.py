"""Clients that pull what there is, what there is not, and what they do not wait for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from itertools import count

from scripts.soak.connection import Answer, Connection

WARM = ("hello", "shell/hello", "many", "diamond/outputs", "big")

# How often each kind of pull is made, of a hundred.
_MIX = {"warm": 70, "cold": 8, "missing": 6, "failing": 4, "broken off": 12}

# Seconds between two pulls of a client, at most.
_PAUSE = 1.0

_OK, _NOT_FOUND, _UNPROCESSABLE, _BUSY = 200, 404, 422, 429


class WrongAnswer(Exception):
    """The server has answered something else than it has to."""


class Clients:
    """Clients of one server, and what they have seen.

    Attributes:
        seconds: what an answer took, by kind of pull.
        busy: how often the server had too much to do.
        built: how many images it had to build.
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
        """Have built what is pulled again and again."""
        for name in WARM:
            await self._pull(name)

    async def run(self, clients: int, seconds: float) -> None:
        """Pull for some time.

        Raises:
            WrongAnswer: by the first client that had one.
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
            # All of what is new; some of what every client has asked for already.
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


def _require_digest(name: str, digest: str, body: bytes) -> None:
    if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
        raise WrongAnswer(f"{name}: {len(body)} bytes are not {digest}")
