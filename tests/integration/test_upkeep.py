"""``nixery gc`` and ``nixery scrub`` beside servers that pull and build."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import RegistryClient
from tests.support.pulled_image import PulledImage
from tests.support.server import Server, clean_environment
from tests.validator.image_validator import validate

# Of different packages, and with layers in common.
NAMES = ("hello/greeting", "greeting/left", "left/right", "hello/right", "a/ab", "ab/bc")

# This image is always in use; the others are used from time to time.
ALWAYS = NAMES[0]

DAY = 24 * 3600
LOOKUP_TTL = 1.1

# Seconds: much longer than a pull takes, even on a loaded machine.
GRACE = 6


def nixery(storage: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"NIXERY_STORAGE_BACKEND": "filesystem", "STORAGE_PATH": str(storage), **settings}
    return subprocess.run(
        [sys.executable, "-m", "nixery", *arguments],
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def gc(storage: Path, *arguments: str, **settings: str) -> Any:  # noqa: ANN401 -- JSON is anything
    completed = nixery(storage, "gc", "--json", *arguments, **settings)
    assert completed.returncode == 0, completed
    return json.loads(completed.stdout)


def make_older(storage: Path, seconds: float) -> None:
    for path in storage.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the progress of a build that has just ended
            if path.is_file():
                status = path.stat()
                os.utime(path, (status.st_atime, status.st_mtime - seconds))


def blobs(storage: Path) -> set[str]:
    return {path.name for path in (storage / "blobs").rglob("*") if path.is_file() and path.suffix == ""}


def test_a_deleted_image_is_rebuilt_with_the_same_digest(start_server: StartServer) -> None:
    server = start_server()
    image = server.client.pull("hello")
    make_older(server.storage, 40 * DAY)
    other = server.client.pull("greeting")
    result = gc(server.storage, "--max-age", "30d")
    assert result["deleted"] > 0
    # The server had cached the image. A pull by digest reports that it is missing; a pull by tag rebuilds it.
    time.sleep(LOOKUP_TTL)
    assert server.client.pull("hello") == image
    assert validate(server.client.pull("greeting", other.digest)) == other
    assert gc(server.storage, "--max-age", "30d")["deleted"] == 0


def test_a_manifest_with_deleted_layers_is_not_served(start_server: StartServer) -> None:
    image = start_server().client.pull("hello")
    server = start_server()
    for digest in image.layer_digests:
        server.blob_path(digest).unlink()
    response = server.client.manifest("hello", image.digest)
    assert (response.status, response.error["code"]) == (404, "MANIFEST_UNKNOWN")
    assert server.client.pull("hello") == image
    assert server.client.manifest("hello", image.digest).status == 200


def test_a_pull_counts_as_use(start_server: StartServer) -> None:
    first = start_server()
    by_tag, by_digest = first.client.pull("hello"), first.client.pull("greeting")
    first.client.pull("a")
    assert first.stop() == 0
    make_older(first.storage, 40 * DAY)
    server = start_server()
    server.client.pull("hello")
    assert server.client.manifest("greeting", by_digest.digest).status == 200
    gc(server.storage, "--max-age", "30d")
    kept = blobs(server.storage)
    for image in (by_tag, by_digest):
        assert {digest.removeprefix("sha256:") for digest in (image.digest, *image.layer_digests)} <= kept
    assert server.client.get("/v2/a/tags/list").status == 404


def test_a_pull_of_an_index_counts_as_use(start_server: StartServer) -> None:
    platforms = {"NIXERY_PLATFORMS": "linux/amd64,linux/arm64"}
    index = "application/vnd.oci.image.index.v1+json"
    first = start_server(**platforms)
    response = first.client.get("/v2/hello/manifests/latest", {"Accept": index})
    digest = response.headers["docker-content-digest"]
    assert first.stop() == 0
    make_older(first.storage, 40 * DAY)
    server = start_server(**platforms)
    assert server.client.get(f"/v2/hello/manifests/{digest}", {"Accept": index}).status == 200
    gc(server.storage, "--max-age", "30d")
    for manifest in response.json()["manifests"]:
        validate(server.client.pull("hello", manifest["digest"]))


def test_a_tag_is_listed_again_after_it_was_deleted(start_server: StartServer) -> None:
    server = start_server()
    server.client.pull("hello")
    make_older(server.storage, 40 * DAY)
    gc(server.storage, "--max-age", "30d")
    assert server.stop() == 0
    again = start_server()
    again.client.pull("hello")
    assert again.client.get("/v2/hello/tags/list").json()["tags"] == ["latest"]


class Pulling:
    """Threads that pull until they are stopped or a check fails: one image all the time, the others in turn.

    A pull that takes longer than half of the grace period, as on a loaded machine, does not count as use.
    """

    def __init__(self, clients: Sequence[RegistryClient], expected: Mapping[str, PulledImage]) -> None:
        self._clients = clients
        self._expected = expected
        self._stop = threading.Event()
        self._random = random.Random(1)  # noqa: S311 -- the order of pulls
        self._threads = [threading.Thread(target=target) for target in (self._pull_steadily, self._in_turns)]
        self.wrong: list[str] = []
        self.pulls = 0
        # Times of the last pull of the image that is always in use, and of the start of its uninterrupted
        # use.
        self.pulled = self.since = time.monotonic()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _pull_steadily(self) -> None:
        while not self._stop.wait(GRACE / 20):
            start = time.monotonic()
            if start - self.pulled > GRACE / 2:
                self.since = start
            self._pull(self._clients[0], ALWAYS)
            self.pulled = start

    def _in_turns(self) -> None:
        """Pull from both at once, each image again after 1.5 times the grace period, more or less."""
        names = [name for name in self._expected if name != ALWAYS]
        with ThreadPoolExecutor(len(self._clients)) as executor:
            for name in itertools.cycle(names):
                list(executor.map(lambda client: self._pull(client, name), self._clients))  # noqa: B023 -- it is over here
                self.pulls += 1
                if self._stop.wait(self._random.uniform(0, 3 * GRACE / len(names))):
                    return

    def _pull(self, client: RegistryClient, name: str) -> None:
        start = time.monotonic()
        try:
            if client.pull(name) != self._expected[name]:
                self.wrong.append(f"{name} is another image")
        except (AssertionError, OSError, http.client.HTTPException) as error:
            if time.monotonic() - start < GRACE / 2:
                self.wrong.append(f"{name}: {error}")


def test_pulls_and_builds_while_garbage_is_collected_in_a_loop(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Two servers on one storage, and collections that delete everything that was not used within a few seconds.

    No test here changes the times of files: servers rely on the times of their own uses.
    """
    grace = {"NIXERY_STORAGE_GRACE": f"{GRACE}s", "NIXERY_PIN_TTL": "3600"}
    undisturbed = start_server(STORAGE_PATH=str(tmp_path / "undisturbed"))
    expected = {name: validate(undisturbed.client.pull(name)) for name in NAMES}
    assert undisturbed.stop() == 0
    servers = [start_server(**grace), start_server(**grace)]
    always = expected[ALWAYS]
    servers[0].client.pull(ALWAYS)
    # A file that is deleted and rewritten has a different time.
    files = [servers[0].blob_path(digest) for digest in (always.digest, *always.layer_digests)]
    times: list[int] = []
    kept_since = 0.0
    kept = 0.0
    deleting = 0
    with Pulling([server.client for server in servers], expected) as pulling:
        end = time.monotonic() + 150
        while time.monotonic() < end and not pulling.wrong and (deleting < len(NAMES) or kept < 3 * GRACE):
            deleting += gc(servers[0].storage, "--max-size", "0", **grace)["deleted"] > 0
            now, since = time.monotonic(), pulling.since
            if since != kept_since or now - pulling.pulled > GRACE / 2:
                kept_since, times = since, []
                continue
            found = [path.stat().st_mtime_ns if path.exists() else 0 for path in files]
            times = times or found
            assert found == times, "an image in use was deleted"
            kept = max(kept, now - since)
    assert pulling.wrong == []
    assert pulling.pulls > len(NAMES)
    assert deleting >= len(NAMES)
    assert kept >= 3 * GRACE
    for server in servers:
        assert "Traceback" not in server.log
    # The deleted images were rebuilt.
    assert sum(server.log.count('"event": "built"') for server in servers) > len(servers) * len(NAMES)


def test_a_pull_takes_longer_than_the_grace_period(start_server: StartServer) -> None:
    grace = {"NIXERY_STORAGE_GRACE": f"{GRACE}s"}
    server = start_server(**grace)
    other = server.client.pull("greeting")
    image = server.client.pull("many")
    asked, *rest = [layer["digest"] for layer in server.client.manifest("many").json()["layers"]]
    end = time.monotonic() + 2 * GRACE
    while time.monotonic() < end:
        # A slow client is still pulling the first layers.
        assert server.client.blob("many", asked).status == 200
        time.sleep(GRACE / 6)
    gc(server.storage, "--max-size", "0", **grace)
    assert {server.client.blob("many", digest).status for digest in rest} == {200}
    assert image.digest.removeprefix("sha256:") in blobs(server.storage)
    assert other.digest.removeprefix("sha256:") not in blobs(server.storage)


def write_garbage(storage: Path, number: int) -> None:
    """Write so many unreferenced blobs that deleting them takes a while."""
    for content in (b"garbage %d" % n for n in range(number)):
        encoded = hashlib.sha256(content).hexdigest()
        path = storage / "blobs" / "sha256" / encoded[:2] / encoded
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        path.with_name(f"{encoded}.size").write_bytes(b"%d" % len(content))


# A collector that stops itself after deleting some blobs, so that the outcome does not depend on timing.
STOPPING = """
import os, signal, sys
from nixery.cli import main
from nixery.storage.blobs import BlobStore

left = int(sys.argv.pop(1))
delete = BlobStore.delete

async def counted(store, digest):
    global left
    await delete(store, digest)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGSTOP)

BlobStore.delete = counted
main()
"""


def test_a_collector_killed_in_the_middle(start_server: StartServer) -> None:
    server = start_server()
    images = {name: server.client.pull(name) for name in NAMES}
    assert server.stop() == 0
    for deleted in (1, 500):
        write_garbage(server.storage, 1000)
        make_older(server.storage, 40 * DAY)
        before = blobs(server.storage)
        environment = {"NIXERY_STORAGE_BACKEND": "filesystem", "STORAGE_PATH": str(server.storage)}
        process = subprocess.Popen(
            [sys.executable, "-c", STOPPING, str(deleted), "gc", "--max-age", "30d"],
            env=clean_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), status
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        # The collection was going to delete everything.
        assert set() < blobs(server.storage) < before
        again = start_server()
        for name, image in images.items():
            assert again.client.pull(name) == image
        assert again.stop() == 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
def test_a_flipped_bit_is_found_and_heals(start_server: StartServer, part: str) -> None:
    server = start_server()
    image = server.client.pull("big")
    digests: dict[str, Callable[[], str]] = {
        "layer": lambda: max(image.manifest_document["layers"], key=lambda layer: int(layer["size"]))[
            "digest"
        ],
        "config": lambda: image.manifest_document["config"]["digest"],
        "manifest": lambda: image.digest,
    }
    digest = digests[part]()
    flip(server.blob_path(digest))
    completed = nixery(server.storage, "scrub")
    assert completed.returncode == 1
    assert completed.stderr.count(digest) == 1
    assert (server.storage / "quarantine" / digest.removeprefix("sha256:")).exists()
    time.sleep(LOOKUP_TTL)
    # The size is right, so only scrubbing can detect the damage.
    assert validate(server.client.pull("big")) == image
    assert nixery(server.storage, "scrub").returncode == 0


def test_scrub_prints_json(start_server: StartServer) -> None:
    server: Server = start_server()
    image = server.client.pull("hello")
    clean = json.loads(nixery(server.storage, "scrub", "--json").stdout)
    assert clean["broken"] == []
    assert clean["read"] > len(image.layer_digests)
    flip(server.blob_path(image.layer_digests[0]))
    (tag,) = (path for path in (server.storage / "records" / "tags-in-order").rglob("*") if path.is_file())
    tag.unlink()
    tag.write_bytes(b"{")
    completed = nixery(server.storage, "scrub", "--json")
    broken = {finding["what"] for finding in json.loads(completed.stdout)["broken"]}
    assert completed.returncode == 1
    assert broken == {image.layer_digests[0], f"tags-in-order/{tag.name}"}
    assert nixery(server.storage, "scrub", "--rate", "1").returncode == 0


def test_a_watermark_is_enforced_in_the_background(start_server: StartServer) -> None:
    first = start_server()
    old = first.client.pull("hello")
    assert first.stop() == 0
    make_older(first.storage, 40 * DAY)
    server = start_server(NIXERY_STORAGE_HIGH="100B")
    end = time.monotonic() + 15
    while blobs(server.storage) and time.monotonic() < end:
        time.sleep(0.05)
    assert blobs(server.storage) == set()
    assert server.client.pull("hello") == old


def test_gc_says_that_the_grace_period_kept_things(start_server: StartServer) -> None:
    server = start_server()
    server.client.pull("hello")
    assert "NIXERY_STORAGE_GRACE" in nixery(server.storage, "gc", "--max-age", "1m", "--dry-run").stderr
    assert not nixery(server.storage, "gc", "--max-age", "1d", "--dry-run").stderr
