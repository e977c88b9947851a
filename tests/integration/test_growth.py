"""Clients cannot make a server write records for made-up names, nor unbounded numbers of other files.

``GROWTH=10 pytest`` asks for ten times as much.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.integration.test_upkeep import make_older
from tests.support.file_systems import small_file_system
from tests.support.nix import wait_until
from tests.support.server import Server
from tests.validator.image_validator import validate

pytestmark = pytest.mark.xdist_group("mounts")

EFFORT = int(os.environ.get("GROWTH", "1"))
TAGS, MISSING, UNIQUE = 200 * EFFORT, 200 * EFFORT, 30 * EFFORT

# Any number of them can be combined to an image.
PACKAGES = (
    "hello",
    "greeting",
    "left",
    "right",
    "a",
    "ab",
    "bc",
    "c",
    "bottom",
    "singlefile",
    "anotherfile",
    "emptyfile",
)

# Fewer than the files of the images, and more than their directories.
INODES = 330 + 320 * EFFORT


def count(server: Server) -> Counter[str]:
    """Count files by type: blobs, or records of a kind."""
    found: Counter[str] = Counter()
    for path in server.storage.rglob("*"):
        if path.is_file():
            parts = path.relative_to(server.storage).parts
            found["/".join(parts[:2]) if parts[0] == "records" else parts[0]] += 1
    return found


def ask(server: Server, names: list[tuple[str, str]]) -> Counter[int]:
    with ThreadPoolExecutor(8) as threads:
        return Counter(threads.map(lambda asked: server.client.manifest(*asked).status, names))


def unique(number: int) -> list[str]:
    """Return names of this many images."""
    sizes = range(2, len(PACKAGES))
    names = itertools.chain.from_iterable(itertools.combinations(PACKAGES, size) for size in sizes)
    return ["/".join(packages) for packages in itertools.islice(names, number)]


def test_made_up_names_are_not_stored(start_server: StartServer) -> None:
    server = start_server()
    image = server.client.pull("hello/greeting")
    before = count(server)
    del before["records/build-progress"]  # of the build while it ran
    assert ask(server, [("hello/greeting", f"made-up-{n}") for n in range(TAGS)]) == {200: TAGS}
    names = ["/".join(["hello"] * n + ["greeting"]) for n in range(1, 30)]
    assert ask(server, [(name, f"tag-{n}") for n, name in enumerate(names)]) == {200: len(names)}
    assert ask(server, [(f"missing{n}", "latest") for n in range(MISSING)]) == {404: MISSING}
    assert ask(server, [(f"hello/missing{n}", f"tag-{n}") for n in range(MISSING // 10)]) == {
        404: MISSING // 10
    }
    assert ask(server, [("hello", f"sha256-{n:064x}") for n in range(10)]) == {404: 10}
    assert ask(server, [("hello", f"sha256:{n:064x}") for n in range(10)]) == {404: 10}
    assert count(server) == before
    assert server.client.get("/v2/greeting/hello/tags/list").json()["tags"] == ["latest"]
    assert server.client.get("/v2/_catalog").json()["repositories"] == ["greeting/hello"]
    assert validate(server.client.pull("hello/greeting")) == image


def test_records_over_their_bounds_are_deleted(start_server: StartServer) -> None:
    server = start_server()
    image = server.client.pull("hello")
    assert server.stop() == 0
    builds = server.storage / "records" / "builds"
    for number in range(1500):
        path = builds / f"{number % 256:02x}" / f"{number % 256:02x}{number:018x}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"{}")
    server = start_server()
    wait_until(lambda: count(server)["records/builds"] <= 900, "the surplus records were deleted")
    assert validate(server.client.pull("hello")) == image


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "disk", 400 << 20, inodes=INODES) as directory:
        yield directory


def test_unique_images_do_not_use_up_the_inodes(start_server: StartServer, storage: Path) -> None:
    """With default settings. The server deletes the least recently used images to make room for others."""
    server = start_server(STORAGE_PATH=str(storage))
    names = unique(UNIQUE)
    statuses = Counter[int]()
    for name in names:
        statuses[server.client.manifest(name).status] += 1
        if used(storage) > 0.9:
            # As if these had been pulled a day ago.
            make_older(storage, 24 * 3600)
            wait_until(lambda: used(storage) <= 0.9, "inodes were freed", seconds=60)
    assert statuses == {200: UNIQUE}
    assert '"collected garbage"' in server.log


def used(storage: Path) -> float:
    status = os.statvfs(storage)
    return 1 - status.f_favail / status.f_files
