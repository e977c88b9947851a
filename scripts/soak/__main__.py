"""A mixed load of a few hundred clients, and whether anything has grown.

    SOAK_SECONDS=600 python -m scripts.soak

Everything is on loopback, with a Nix store and a storage of its own. Ends with 1 if an answer was wrong or something has grown.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path

from scripts.soak.clients import Clients
from scripts.soak.footprint import Footprint, at_rest
from scripts.soak.probe import probing
from scripts.soak.server_log import slowest
from tests.support.nix import PACKAGE_SETS
from tests.support.private_nix import PrivateNix
from tests.support.server import HOST, Server, running_server

_CLIENTS = 200
_SEED = 7

# The part of the time that is for warming up: pools and caches fill, and what is measured afterwards is compared with that.
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
    """Put the load on a server; return what has grown.

    Raises:
        ExceptionGroup: of wrong answers.
    """
    nix = PrivateNix.create(directory / "private")
    package_set = directory / "set"
    package_set.mkdir()
    (package_set / "default.nix").write_text(_PACKAGE_SET.format(tests=PACKAGE_SETS))
    settings = {**nix.environment(), "NIXERY_PKGS_PATH": str(package_set)}
    # Who waits at the end is waited for.
    settings["NIXERY_MAX_QUEUED"] = "40"
    # All clients have one address here.
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
            print(
                f"{clients.built} images built, {clients.busy} times told to come back\n\n{clients.table()}\n"
            )
            print(f"by the server's own clock: {slowest(server.log)}\n")
            if server.stop() != 0:
                found.append("it did not stop as it should")
            if "Traceback" in server.log:
                found.append("there is a traceback in its log")
            if not found:
                with redirect_stdout(StringIO()):  # its log, which is of no interest then
                    stack.close()
    finally:
        nix.remove()
    return found


def main() -> None:
    """See the module."""
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
    with tempfile.TemporaryDirectory(prefix="nixery-soak-") as directory:
        grown = soak(seconds, Path(directory))
    for line in grown:
        print(f"grown: {line}", file=sys.stderr)
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
