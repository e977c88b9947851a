"""Two servers on one storage, of which one is killed again and again: the other one's clients never notice."""

from __future__ import annotations

import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.crash.rounds import require_true_blobs
from tests.integration.conftest import StartServer
from tests.support.client import InBackground, RegistryClient
from tests.support.nix import wait_until
from tests.support.server import Server
from tests.validator.image_validator import validate

# Layers that they share, and such as only one has.
NAMES = [
    "many",
    "many/hello",
    "shell/many",
    "big/outputs",
    "big/left",
    "diamond",
    "slow/many",
    "users/slower",
]


def kill(server: Server) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.wait()


def test_one_is_killed_again_and_again(start_server: StartServer) -> None:
    living = start_server(NIXERY_MAX_BUILDS="2")
    draw = random.Random(7)  # noqa: S311 -- the same each time
    done = threading.Event()

    def pull(name: str) -> str:
        return validate(living.client.pull(name)).digest

    def others() -> None:
        while not done.is_set():
            server = start_server(NIXERY_MAX_BUILDS="2")
            for name in draw.sample(NAMES, 4):
                InBackground(RegistryClient("127.0.0.1", server.port), f"/v2/{name}/manifests/latest").start()
            done.wait(draw.uniform(0.05, 1.5))
            kill(server)

    killer = threading.Thread(target=others)
    killer.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            digests = list(threads.map(pull, NAMES))
    finally:
        done.set()
        killer.join(60)
    require_true_blobs(living.storage, living.client)
    again = start_server()
    assert [again.client.digest(name) for name in NAMES] == digests
    assert list((living.storage / "locks").iterdir()) == []


def test_a_layer_is_packed_by_one_of_them(start_server: StartServer) -> None:
    servers = [start_server(), start_server()]
    with ThreadPoolExecutor(2) as threads:
        images = list(threads.map(lambda server: validate(server.client.pull("big")), servers))
    assert images[0].digest == images[1].digest
    assert packed_layers(servers[0].storage) == len(images[0].layers)


def packed_layers(storage: Path) -> int:
    return len(list((storage / "records" / "layers").glob("*/*")))


def test_who_waits_for_a_layer_goes_on_when_the_other_one_is_killed(start_server: StartServer) -> None:
    first, second = start_server(NIXERY_PACKING_WORKERS="1"), start_server()
    InBackground(first.client, "/v2/big/manifests/latest").start()
    locks = first.storage / "locks"
    wait_until(lambda: any(locks.iterdir()), "a layer is packed")
    # Stopped rather than killed at once, so that the second one has to wait.
    first.process.send_signal(signal.SIGSTOP)
    request = InBackground(second.client, "/v2/big/manifests/latest").start()
    held = [path.name for path in locks.iterdir()]
    kill(first)
    assert request.result().status == 200
    assert held
    assert list(locks.iterdir()) == []
    validate(second.client.pull("big"))
