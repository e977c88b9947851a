"""How long a trivial answer takes while layers are being packed."""

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

# Large files and 60,000 small ones: two workers pack for some seconds, on a fast machine too.
IMAGE = "shell/git/python3/gcc/default-jdk-headless/papirus-icon-theme"
WORKERS = 2

# Seconds of load that have to fall within packing, and how many empty storages may be filled for that.
_ENOUGH = 4.0
_MOST_ROUNDS = 8

# Four clients, each of which asks every ten milliseconds: the question is how late an answer is, not how many there can be.
_LOAD = Load("/v2/", connections=4, pause=10)
_SLICE = 1

# Seconds.
_BUILD = 600.0
_IDLE = 3


@dataclass(frozen=True)
class Packing:
    """Latencies of ``/v2/``.

    Attributes:
        idle: while the server has nothing else to do.
        busy: while it packs.
    """

    idle: Measurement
    busy: Measurement


@dataclass
class _Pull:
    """A request for a manifest that goes on in the background."""

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
    """Fill one empty storage after the other until enough load fell within packing.

    Raises:
        BenchError: the image cannot be built, or packing ended too early each time.
        PeerError: the server does not start.
    """
    idle, busy = _nothing(), _nothing()
    # Nix fetches missing packages before anything is packed, so that time is not measured.
    for number in range(_MOST_ROUNDS):
        settings = {"NIXERY_PACKING_WORKERS": str(WORKERS), "NIX_TIMEOUT": str(int(_BUILD))}
        with nixery(directory / f"packing-{number}", package_set, settings) as peer:
            if number == 0:
                idle += measure(peer, _LOAD, _IDLE)
            busy += _while_packing(peer, directory / f"packing-{number}" / "storage")
        if busy.seconds >= _ENOUGH:
            break
    if not busy.requests:
        raise BenchError(f"packing {IMAGE} ended within {_SLICE} s in each of {_MOST_ROUNDS} rounds")
    return Packing(idle, busy)


def _while_packing(peer: Peer, storage: Path) -> Measurement:
    pull = _Pull(peer)
    thread = pull.start()
    while thread.is_alive() and not _being_packed(storage):
        time.sleep(0.01)
    total = _nothing()
    while _being_packed(storage):
        part = measure(peer, _LOAD, _SLICE)
        # Only what was measured while layers were packed from beginning to end.
        if _being_packed(storage):
            total += part
    thread.join(_BUILD)
    if pull.status != http.client.OK:
        raise BenchError(f"{IMAGE} could not be pulled: {pull.status}")
    return total


def _being_packed(storage: Path) -> bool:
    """Whether as many layers are being written as there are workers."""
    return len(list(storage.glob("temporary/*/*"))) >= WORKERS


def _nothing() -> Measurement:
    return Measurement(0, 0, 0.0, Counter())
