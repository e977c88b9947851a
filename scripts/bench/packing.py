"""The latency of a trivial response while layers are packed."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.load import BenchError, Load, Measurement, measure
from scripts.peers.nixery import nixery
from scripts.peers.process import HOST, Peer

# Large files and 60,000 small ones, which take two workers some seconds even on a fast machine.
IMAGE = "shell/git/python3/gcc/default-jdk-headless/papirus-icon-theme"
WORKERS = 2

# Seconds of load that must coincide with packing, and the number of empty storages to fill for that at most.
_ENOUGH = 4.0
_MOST_ROUNDS = 8

# Four clients with a request every ten milliseconds: this measures latency, not throughput.
_LOAD = Load("/v2/", connections=4, pause=10)
_SLICE = 1

# Seconds.
_BUILD = 600.0
_IDLE = 3


@dataclass(frozen=True)
class Packing:
    """Latencies of ``/v2/``.

    Attributes:
        idle: of an idle server.
        busy: of one that packs layers.
    """

    idle: Measurement
    busy: Measurement


@dataclass
class _Pull:
    """A request for the manifest in a separate thread."""

    peer: Peer
    status: int | None = None

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        connection = http.client.HTTPConnection(HOST, self.peer.port, timeout=_BUILD)
        try:
            connection.request("GET", f"/v2/{IMAGE}/manifests/latest")
            self.status = connection.getresponse().status
        finally:
            connection.close()


def measure_packing(directory: Path, package_set: str) -> Packing:
    """Fill empty storages until enough load has coincided with packing.

    Raises:
        BenchError: the image cannot be built, or packing ended too early each time.
        PeerError: the server does not start.
    """
    idle, busy = _nothing(), _nothing()
    # Nix fetches missing packages before layers are packed, which is not measured.
    for number in range(_MOST_ROUNDS):
        settings = {"NIXERY_PACKING_WORKERS": str(WORKERS), "NIX_TIMEOUT": str(int(_BUILD))}
        with nixery(directory / f"packing-{number}", package_set, settings) as peer:
            if number == 0:
                idle += measure(peer, _LOAD, _IDLE)
            busy += _measure_while_packing(peer, directory / f"packing-{number}" / "storage")
        if busy.seconds >= _ENOUGH:
            break
    if not busy.requests:
        raise BenchError(f"packing {IMAGE} ended within {_SLICE} s in each of {_MOST_ROUNDS} rounds")
    return Packing(idle, busy)


def _measure_while_packing(peer: Peer, storage: Path) -> Measurement:
    pull = _Pull(peer)
    thread = pull.start()
    while thread.is_alive() and not _layers_in_progress(storage):
        time.sleep(0.01)
    total = _nothing()
    while _layers_in_progress(storage):
        part = measure(peer, _LOAD, _SLICE)
        # Count only load that coincided with packing from its beginning to its end.
        if _layers_in_progress(storage):
            total += part
    thread.join(_BUILD)
    if pull.status != http.client.OK:
        raise BenchError(f"cannot pull {IMAGE}: {pull.status}")
    return total


def _layers_in_progress(storage: Path) -> bool:
    """Tell whether all workers are writing a layer."""
    return len(list(storage.glob("temporary/*/*"))) >= WORKERS


def _nothing() -> Measurement:
    return Measurement(0, 0, 0.0, Counter())
