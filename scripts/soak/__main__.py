"""Run a mixed load of a few hundred clients, and check the server for leaks.

    SOAK_SECONDS=600 python -m scripts.soak

The server has its own Nix store and storage. The exit status is 1 if a response was wrong or anything has
grown.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path

from scripts.soak.clients import WARM, Clients
from scripts.soak.footprint import Footprint, at_rest
from scripts.soak.probe import probing
from tests.support.nix import PACKAGE_SETS
from tests.support.private_nix import PrivateNix
from tests.support.server import HOST, Server, running_server

_CLIENTS = 200
_SEED = 7

# Share of the time for filling pools and caches; later measurements are compared with the state after it.
_WARMING = 0.25

_PACKAGE_SET = """\
arguments:
let
  some = prefix: script: builtins.listToAttrs (builtins.genList (number: rec {{
    name = prefix + toString number;
    value = derivation {{
      inherit name;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-c" script ];
      PATH = "/usr/bin:/bin";
    }};
  }}) 20000);
in
some "cold" "mkdir $out; echo $name > $out/$name"
// some "failing" "echo it fails; exit 1"
// import {tests} arguments
"""


async def _load(clients: Clients, server: Server, seconds: float) -> tuple[Footprint, Footprint, int]:
    await clients.warm_up()
    await clients.run(_CLIENTS, seconds * _WARMING)
    before = await asyncio.to_thread(at_rest, server.process.pid, server.storage)
    print(f"after warming up: {before}", flush=True)
    built = clients.built
    with probing(server.port):
        await clients.run(_CLIENTS, seconds * (1 - _WARMING))
    built = clients.built - built
    after = await asyncio.to_thread(at_rest, server.process.pid, server.storage, before, built)
    print(f"afterwards:       {after}", flush=True)
    return before, after, built


def soak(seconds: float, directory: Path) -> list[str]:
    """Put the load on a server; return descriptions of what has grown.

    Raises:
        ExceptionGroup: of wrong responses.
    """
    nix = PrivateNix.create(directory / "private")
    package_set = directory / "set"
    package_set.mkdir()
    (package_set / "default.nix").write_text(_PACKAGE_SET.format(tests=PACKAGE_SETS))
    settings = {**nix.environment(), "NIXERY_PKGS_PATH": str(package_set)}
    # No more builds than can finish at the end.
    settings["NIXERY_MAX_QUEUED"] = "40"
    # To the server, all clients have the same address.
    settings["NIXERY_MAX_QUEUED_PER_CLIENT"] = "40"
    settings["NIXERY_MAX_CONNECTIONS_PER_CLIENT"] = "1024"
    try:
        with ExitStack() as stack:
            server = stack.enter_context(
                running_server(directory / "server", settings, launcher=nix.launcher)
            )
            clients = Clients(HOST, server.port, _SEED)
            before, after, built = asyncio.run(_load(clients, server, seconds))
            found = after.grown(before, built)
            found += [f"no {kind} pulls" for kind, number in clients.numbers().items() if not number]
            print(f"{clients.built} images built, {clients.busy} times answered 429\n\n{clients.table()}\n")
            print(f"by the server's own clock: {_slowest(server.log)}\n")
            if server.stop() != 0:
                found.append("the server did not stop with status 0")
            if "Traceback" in server.log:
                found.append("its log has a traceback")
            if not found:
                with redirect_stdout(StringIO()):  # the log is useful only after a failure
                    stack.close()
    finally:
        nix.remove()
    return found


def _slowest(log: str) -> str:
    """Describe the longest responses by the server's own clock: clients also wait for a processor."""
    found: dict[str, list[float]] = {"manifests of warm pulls": [], "other manifests": [], "blobs": []}
    for path, seconds in _responses(log):
        if "/blobs/" in path:
            kind = "blobs"
        elif any(path == f"/v2/{name}/manifests/latest" for name in WARM):
            kind = "manifests of warm pulls"
        else:
            kind = "other manifests"
        found[kind].append(seconds)
    return "; ".join(
        f"{len(seconds)} {kind}, the longest {max(seconds) * 1000:,.0f} ms"
        for kind, seconds in found.items()
        if seconds
    )


def _responses(log: str) -> Iterator[tuple[str, float]]:
    for line in log.splitlines():
        if '"event": "request"' in line:
            entry = json.loads(line)
            if entry["method"] == "GET":
                yield entry["path"], entry["seconds"]


def main() -> None:
    """Run the load for ``SOAK_SECONDS`` (600 by default)."""
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
    with tempfile.TemporaryDirectory(prefix="nixery-soak-") as directory:
        grown = soak(seconds, Path(directory))
    for line in grown:
        print(f"grown: {line}", file=sys.stderr)
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
