"""Measure reading and writing in MB/s, and memory, for each storage backend.

A layer of random bytes is written as the packer writes it: once straight into the backend, once to the disk
and from there into the backend, and once to the disk and from there by a bare upload, without a check whether
the blob exists and without verification. Each measurement is a separate process, to measure its memory. The
servers are those of the tests; Azurite and MinIO are measured if ``make acceptance`` has installed them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import obstore
from rich.console import Console
from rich.table import Table

from nixery.settings import StorageSettings
from nixery.storage.blobs import StoredBlob, StoredFile
from nixery.storage.bucket import CONCURRENCY, PART, BucketDriver
from nixery.storage.opening import Storage, open_storage
from tests.support.object_stores import AZURITE, MINIO, ObjectStore, azurite, gcs, minio, moto

_SIZE = 64 * 1024 * 1024
_CHUNK = 256 * 1024
_ROUNDS = 4
_WAYS = ("straight", "disk", "bare")
_TIMEOUT = 300


def _write(storage: Storage, seed: int) -> StoredBlob:
    source = random.Random(seed)  # noqa: S311 -- the same bytes each time
    with storage.blobs.create() as writer:
        for _ in range(_SIZE // _CHUNK):
            writer.write(source.randbytes(_CHUNK))
        return writer.commit()


async def _copy(source: Storage, target: Storage, blob: StoredBlob) -> StoredBlob:
    with target.blobs.create() as writer:
        async for chunk in source.blobs.stream(blob, 0, blob.size - 1):
            writer.write(chunk)
        return writer.commit()


async def _upload(disk: Storage, target: Storage, blob: StoredBlob) -> None:
    file = await disk.blobs.find(blob.digest)
    if isinstance(file, StoredFile) and isinstance(target.driver, BucketDriver):
        store, name = target.driver.bucket.store, f"uploads/{blob.digest.hex}"
        await obstore.put_async(store, name, file.path, chunk_size=PART, max_concurrency=CONCURRENCY)


async def _read(storage: Storage, blob: StoredBlob) -> None:
    async for _ in storage.blobs.stream(blob, 0, blob.size - 1):
        pass


def _open(settings: Mapping[str, str], directory: Path) -> Storage:
    temporary = directory / "temporary"
    temporary.mkdir(exist_ok=True)
    given = StorageSettings.model_validate({"STORAGE_PATH": str(directory), **settings})
    return open_storage(given.storage_options, temporary, settings)


def measure(seed: int, way: str) -> None:
    """Measure one way in this process; print seconds of writing and reading, and MB of memory."""
    with tempfile.TemporaryDirectory() as name:
        storage = _open(os.environ, Path(name))
        before = time.perf_counter()
        if way == "straight":
            blob = _write(storage, seed)
        else:
            disk = _open({"NIXERY_STORAGE_BACKEND": "filesystem"}, Path(name))
            blob = _write(disk, seed)
            if way == "disk":
                asyncio.run(_copy(disk, storage, blob))
            else:
                asyncio.run(_upload(disk, storage, blob))
        written = time.perf_counter() - before
        if way != "bare":
            asyncio.run(_read(storage, blob))
        read = time.perf_counter() - before - written
        sys.stdout.write(json.dumps([written, read, _peak()]))


def _peak() -> float:
    """Return the peak memory of this process in MB; getrusage would start at the memory of the parent."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024 / 1e6


def _run(settings: Mapping[str, str], way: str, seed: int) -> tuple[float, float, float]:
    ended = subprocess.run(
        [sys.executable, "-m", "scripts.bench_storage", str(seed), way],
        env=os.environ | dict(settings),
        stdout=subprocess.PIPE,
        timeout=_TIMEOUT,
        check=True,
    )
    written, read, memory = json.loads(ended.stdout)
    return written, read, memory


def _best(settings: Mapping[str, str], first_seed: int) -> tuple[list[float], float, float]:
    """Return the seconds of writing in each way and of reading, and the memory.

    The fastest of several alternating runs counts: other load on the machine only makes them slower.
    """
    runs: dict[str, list[tuple[float, float, float]]] = {way: [] for way in _WAYS}
    for number in range(_ROUNDS):
        for place, way in enumerate(_WAYS):
            runs[way].append(_run(settings, way, first_seed + number * len(_WAYS) + place))
    straight = runs["straight"]
    written = [min(run[0] for run in runs[way]) for way in _WAYS]
    return written, min(run[1] for run in straight), max(run[2] for run in straight)


def main() -> None:
    """Measure all available backends."""
    table = Table(
        "backend", "straight", "disk, then the same", "disk, then bare", "reading", "memory", title="MB/s, MB"
    )
    servers = [("s3 (moto)", moto), ("gcs (fake-gcs-server)", gcs)]
    servers += [("azure (Azurite)", azurite)] if AZURITE.exists() else []
    servers += [("s3 (MinIO)", minio)] if MINIO.exists() else []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        started = [("filesystem", ObjectStore({"NIXERY_STORAGE_BACKEND": "filesystem"}, 0))]
        for number, (label, server) in enumerate(servers):
            directory = Path(name) / str(number)
            directory.mkdir()
            started.append((label, stack.enter_context(server(directory))))
        for number, (label, running) in enumerate(started):
            written, read, memory = _best(running.settings, 100 * number)
            speeds = (f"{_SIZE / 1e6 / seconds:.0f}" for seconds in (*written, read))
            table.add_row(label, *speeds, f"{memory:.0f}")
    Console().print(table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]), sys.argv[2])
        # As nixery.cli.main does, for the same reason: obstore's threads may abort an interpreter that is
        # being finalised.
        sys.stdout.flush()
        os._exit(0)
    else:
        main()
