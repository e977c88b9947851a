"""Compare the times of refusals with those of answers about what does not exist: ``make bench-refusals``.

A server with access rules has images that a user may not pull. For each kind of request, the script asks for something
that exists and is refused, and for something that is missing, in a random order on one connection: a slower phase of
the machine affects both alike. It prints both medians, their ratio, and how often a refusal takes longer than an answer
about something missing: 0.50 if the time tells nothing. Ends with status 1 if an answer itself differs.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import statistics
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bcrypt
from rich.console import Console
from rich.table import Table

from scripts.peers.nixery_with_rules import PASSWORD, basic, line_of, nixery_with_rules
from scripts.peers.process import HOST, Peer, PeerError

_PACKAGE_SET = "packagesets/debian"
_RESULT = Path("var/bench/refusals.json")

# Of each kind, for each side; a log-in takes as long as its hash.
_REQUESTS, _LOGINS = 1000, 100
_WARM = 50

# Seconds.
_TIMEOUT = 160.0

# Images that are built by one who may. The reader may pull the first; the second at a tag that no image was pulled by;
# and the last ones not at all.
_OPEN, _PARTLY, _HIDDEN = "hello", "which", ("tree", "shell/hello")
# Packages that the set has and no image was built of, and names that it does not have.
_ABSENT = ("trea", "shell/hellp")

_RULES = f"""\
[[rule]]
who = ["user:builder"]
may = ["pull", "build"]

[[rule]]
who = ["user:reader", "anonymous"]
packages = ["{_OPEN}"]
may = ["pull"]

[[rule]]
who = ["user:reader", "anonymous"]
packages = ["{_PARTLY}"]
tags = ["another"]
may = ["pull"]
"""

_OK = 200


class RefusalsError(Exception):
    """The measurement failed."""


@dataclass(frozen=True)
class Kind:
    """Requests to compare: one of ``refused`` and one of ``missing`` at a time, in turn."""

    name: str
    refused: Sequence[str]
    missing: Sequence[str]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Times:
    """Seconds of each answer."""

    refused: Sequence[float]
    missing: Sequence[float]

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return statistics.median(self.refused) / statistics.median(self.missing)

    @property
    def longer(self) -> float:
        """The share of pairs of which the refusal takes longer; half of those that take the same."""
        missing = sorted(self.missing)
        below = sum((bisect_left(missing, one) + bisect_right(missing, one)) / 2 for one in self.refused)
        return below / (len(self.refused) * len(missing))


class _Client:
    """One connection."""

    def __init__(self, peer: Peer) -> None:
        self._connection = http.client.HTTPConnection(HOST, peer.port, timeout=_TIMEOUT)

    def get(self, path: str, headers: Mapping[str, str]) -> tuple[int, bytes, float]:
        """Return status, body and seconds."""
        begin = time.perf_counter()
        self._connection.request("GET", path, headers=dict(headers))
        response = self._connection.getresponse()
        body = response.read()
        return response.status, body, time.perf_counter() - begin


def main() -> int:
    """Measure, print and save the results; returns the exit status."""
    console = Console(highlight=False, width=130)
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    users = {user: line_of(user) for user in ("builder", "reader")}
    # Few attempts at each: later ones have to wait.
    known = {f"argon{number}": line_of(f"argon{number}") for number in range(_LOGINS // 2)}
    rounds = bcrypt.gensalt(8)
    hashed = bcrypt.hashpw(PASSWORD.encode(), rounds).decode()
    quick = {f"bcrypt{number}": f"bcrypt{number}:{hashed}" for number in range(_LOGINS // 2)}
    settings = {"NIXERY_TRUSTED_PROXIES": HOST, "NIXERY_INDEX": "0"}
    results: dict[str, Times] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="refusals-", dir="var") as name:
            directory = Path(name).resolve()
            with nixery_with_rules(directory / "images", _PACKAGE_SET, _RULES, settings, users) as peer:
                for kind in _kinds(peer):
                    console.print(f"{kind.name} ...")
                    results[kind.name] = _compare(peer, kind)
            for scheme, lines in (("argon2id", known), ("bcrypt", quick)):
                console.print(f"log-ins, {scheme} ...")
                with nixery_with_rules(directory / scheme, _PACKAGE_SET, _RULES, settings, lines) as peer:
                    results[f"log-in with a wrong password, {scheme}"] = _log_ins(peer, list(lines))
    except (RefusalsError, PeerError) as error:
        console.print(str(error), markup=False)
        return 1
    table = Table(title="refused, and missing")
    for title in ("", "refused, ms", "missing, ms", "ratio", "refusal takes longer"):
        table.add_column(title, justify="right" if title else "left")
    for name, times in results.items():
        medians = (f"{statistics.median(side) * 1e3:.3f}" for side in (times.refused, times.missing))
        table.add_row(name, *medians, f"{times.ratio:.3f}", f"{times.longer:.2f}")
    console.print(table)
    document = {name: {"ratio": times.ratio, "longer": times.longer} for name, times in results.items()}
    _RESULT.write_text(json.dumps(document, indent=2))
    return 0


def _kinds(peer: Peer) -> list[Kind]:
    client, builder, reader = _Client(peer), basic("builder"), basic("reader")
    # Images share layers, which belong to each of them.
    shared = _digests(client, _OPEN, "latest", builder)
    hidden = [
        digest
        for name in _HIDDEN
        for digest in _digests(client, name, "latest", builder)
        if digest not in shared
    ]
    partly = _digests(client, _PARTLY, "latest", builder)
    absent = [f"sha256:{hashlib.sha256(bytes([number])).hexdigest()}" for number in range(len(hidden))]
    kinds = []
    for who, headers in (("user", reader), ("anonymous", {})):

        def add(title: str, refused: Sequence[str], missing: Sequence[str]) -> None:
            kinds.append(Kind(f"{title}, {who}", refused, missing, headers))  # noqa: B023 -- called at once

        add(
            "manifest by tag",
            [f"/v2/{name}/manifests/latest" for name in _HIDDEN],
            [f"/v2/{name}/manifests/latest" for name in _ABSENT],
        )
        add(
            "list of tags",
            [f"/v2/{name}/tags/list" for name in _HIDDEN],
            [f"/v2/{name}/tags/list" for name in _ABSENT],
        )
        for route in ("manifests", "blobs", "referrers"):
            add(
                f"{route} by digest, under an allowed name",
                [f"/v2/{_OPEN}/{route}/{digest}" for digest in hidden],
                [f"/v2/{_OPEN}/{route}/{digest}" for digest in absent],
            )
            add(
                f"{route} by digest of another tag",
                [f"/v2/{_PARTLY}/{route}/{digest}" for digest in partly],
                [f"/v2/{_PARTLY}/{route}/{digest}" for digest in absent],
            )
        add(
            "blob by digest, under its own name",
            [f"/v2/{_HIDDEN[0]}/blobs/{digest}" for digest in hidden],
            [f"/v2/{_ABSENT[0]}/blobs/{digest}" for digest in absent],
        )
        add(
            "image in the API",
            [f"/api/v1/images/{name}" for name in _HIDDEN],
            [f"/api/v1/images/{name}" for name in _ABSENT],
        )
    return kinds


def _digests(client: _Client, name: str, tag: str, headers: Mapping[str, str]) -> list[str]:
    """Have an image built; return the digests of its manifest and of its parts."""
    status, body, _ = client.get(f"/v2/{name}/manifests/{tag}", headers)
    if status != _OK:
        raise RefusalsError(f"cannot have {name} built: {status}, {body[:300]!r}")
    document = json.loads(body)
    parts = [document["config"]["digest"], *(layer["digest"] for layer in document["layers"])]
    return [f"sha256:{hashlib.sha256(body).hexdigest()}", *parts]


def _compare(peer: Peer, kind: Kind) -> Times:
    client = _Client(peer)
    times: dict[bool, list[float]] = {True: [], False: []}
    chooser = random.Random(0)  # noqa: S311 -- the same order each time
    statuses: dict[bool, set[int]] = {True: set(), False: set()}
    for number in range(_WARM + _REQUESTS):
        for is_refused in chooser.sample((True, False), 2):
            paths = kind.refused if is_refused else kind.missing
            status, _, seconds = client.get(paths[number % len(paths)], kind.headers)
            statuses[is_refused].add(status)
            if number >= _WARM:
                times[is_refused].append(seconds)
    if statuses[True] != statuses[False]:
        raise RefusalsError(f"{kind.name}: {statuses[True]} if refused, {statuses[False]} if missing")
    return Times(times[True], times[False])


def _log_ins(peer: Peer, users: Sequence[str]) -> Times:
    client = _Client(peer)
    times: dict[bool, list[float]] = {True: [], False: []}
    chooser = random.Random(0)  # noqa: S311 -- the same order each time
    statuses = set()
    for number in range(_LOGINS):
        for is_known in chooser.sample((True, False), 2):
            user = users[number % len(users)] if is_known else f"nobody{number % len(users)}"
            # Of its own: later attempts from an address have to wait.
            address = {"X-Forwarded-For": f"{'192.0.2' if is_known else '198.51.100'}.{number}"}
            status, _, seconds = client.get("/v2/", {**basic(user, f"wrong {number}"), **address})
            statuses.add(status)
            times[is_known].append(seconds)
    if statuses != {401}:
        raise RefusalsError(f"log-in with a wrong password: {statuses}")
    return Times(times[True], times[False])


if __name__ == "__main__":
    sys.exit(main())
