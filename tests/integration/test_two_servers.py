"""Two servers on one storage: killing one never disturbs the clients of the other."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.crash.rounds import require_true_blobs
from tests.integration.conftest import StartServer
from tests.integration.test_observability import value
from tests.support.client import InBackground, RegistryClient
from tests.support.nix import wait_until
from tests.support.packing_gate import PackingGate
from tests.validator.image_validator import validate

# Images with common and with separate layers.
NAMES = [
    "many",
    "many/hello",
    "shell/many",
    "big/outputs",
    "big/left",
    "diamond",
    "slow/many",
    "users/right",
]


def test_a_server_serves_while_the_other_is_killed_repeatedly(start_server: StartServer) -> None:
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
            server.kill()

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


def test_each_layer_is_packed_once(start_server: StartServer) -> None:
    servers = [start_server(), start_server()]
    with ThreadPoolExecutor(2) as threads:
        images = list(threads.map(lambda server: validate(server.client.pull("big")), servers))
    assert images[0].digest == images[1].digest
    assert packed_layers(servers[0].storage) == len(images[0].layers)


def packed_layers(storage: Path) -> int:
    return len(list((storage / "records" / "layers").glob("*/*")))


def test_a_layer_of_a_killed_server_is_packed_by_the_waiting_one(
    start_server: StartServer, tmp_path: Path
) -> None:
    gate = PackingGate.install(tmp_path / "gate")
    first, second = start_server(NIXERY_PACKING_WORKERS="1", **gate.environment()), start_server()
    InBackground(first.client, "/v2/big/manifests/latest").start()
    gate.wait()
    locks = first.storage / "locks"
    assert list(locks.iterdir())
    request = InBackground(second.client, "/v2/big/manifests/latest").start()
    wait_until(lambda: value(second, "nixery_builds_running") == 1, "the second server builds")
    assert request.is_running
    first.kill()
    assert request.result().status == 200
    assert list(locks.iterdir()) == []
    validate(second.client.pull("big"))
