"""Measure the hot path: ``python -m scripts.bench``, run by ``make bench``.

Nixery, nginx and docker-registry serve the same bytes on the loopback interface, and wrk requests them in
turn; nixery without access rules, and with them and a bearer token. Takes about five minutes, once Nix has the packages. A missed goal is reported; only a failed
measurement is an error.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from scripts.bench.contents import NAME, compare, hand_over, prepare
from scripts.bench.goals import goals
from scripts.bench.hot_path import Results, cases, run
from scripts.bench.load import BenchError
from scripts.bench.output import description, document, show
from scripts.bench.packing import Packing, measure_packing
from scripts.peers.docker_registry import docker_registry
from scripts.peers.nginx import nginx
from scripts.peers.nixery import nixery
from scripts.peers.nixery_with_rules import line_of, nixery_with_rules, with_token
from scripts.peers.process import PeerError

_PACKAGE_SET = "packagesets/debian"
_RESULT = Path("var/bench/hot-path.json")
_WIDTH = 150

# A user with a right by group, after rules that are for others: the token outlives the measurement.
_USER = "alice"
_RULES = """\
[tokens]
lifetime = 3600

[groups]
team = ["alice"]

[[rule]]
who = ["user:other"]
packages = ["python3*", "git"]
may = ["pull"]

[[rule]]
who = ["group:team"]
may = ["pull", "build"]
"""


def main() -> int:
    """Measure, print and save the results; returns the exit status."""
    # SIGTERM must not leave servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(highlight=False, soft_wrap=True)
    # Output that is not a terminal has no width.
    console.width = max(console.width, _WIDTH)
    started = time.monotonic()
    machine = description()
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir="var") as name:
        directory = Path(name).resolve()
        results: Results = {}
        packing: Packing | None = None
        status = 0
        # Complete measurements are reported even if an error or an interruption ends the others.
        try:
            for rounds_so_far in _hot_path(console, directory):
                results = rounds_so_far
            with console.status("/v2/ while layers are packed"):
                packing = measure_packing(directory, _PACKAGE_SET)
        except (BenchError, PeerError) as error:
            console.print(f"[red]{escape(str(error))}[/red]")
            status = 1
        except KeyboardInterrupt:
            status = 128 + signal.SIGINT
    if results:
        reached = list(goals(results, packing))
        show(console, results, packing, reached)
        _RESULT.write_text(json.dumps({"machine": machine, **document(results, packing, reached)}, indent=2))
        console.print(f"{machine}\n{time.monotonic() - started:.0f} s; {_RESULT}")
    return status


def _hot_path(console: Console, directory: Path) -> Iterator[Results]:
    with (
        console.status("setting up") as status,
        nixery(directory / "nixery", _PACKAGE_SET) as ours,
        docker_registry(directory / "docker-registry") as registry,
    ):
        storage = directory / "nixery" / "storage"
        contents = prepare(ours, storage)
        hand_over(contents, ours, registry)
        with (
            nginx(directory / "nginx", contents.files) as static,
            # On loopback, sendfile moves the work to the receiver; see docs/reference/performance.md.
            nginx(directory / "nginx-copying", contents.files, sendfile=False) as copying,
            # On the same storage.
            nixery_with_rules(
                directory / "nixery-with-rules",
                _PACKAGE_SET,
                _RULES,
                # The other server makes the package index.
                {"STORAGE_PATH": str(storage), "NIXERY_INDEX": "0"},
                {_USER: line_of(_USER)},
            ) as guarded,
        ):
            peers = [ours, static, copying, registry]
            compare(contents.files, peers)
            token = with_token(guarded, _USER, NAME)
            # A blob of the others is part of no image, and so is answered to no user.
            compare(contents.manifests, [token])
            peers.append(token)
            yield from run(cases(contents), peers, status.update)


if __name__ == "__main__":
    sys.exit(main())
