"""MB/s into and out of each backend, and the memory that a process needs for it.

A layer of random bytes is written as the packer writes it: once straight into the backend, once to the disk and from there into the
backend. Each measurement is a process of its own, so that its memory is its own. The servers are those of the tests; Azurite
and MinIO are measured where they are installed (docs/storage.md).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nixery.settings.storage import StorageSettings
from nixery.storage.opening import Storage, open_storage
from nixery.storage.store import StoredBlob
from tests.support.object_stores import AZURITE, MINIO, ObjectStore, azurite, gcs, minio, moto

_SIZE = 64 * 1024 * 1024
_CHUNK = 256 * 1024
_ROUNDS = 2
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


async def _read(storage: Storage, blob: StoredBlob) -> None:
    async for _ in storage.blobs.stream(blob, 0, blob.size - 1):
        pass


def _open(settings: Mapping[str, str], directory: Path) -> Storage:
    temporary = directory / "temporary"
    temporary.mkdir(exist_ok=True)
    return open_storage(
        StorageSettings.model_validate({"STORAGE_PATH": str(directory), **settings}), temporary, settings
    )


def measure(seed: int, way: str) -> None:
    """Measure one way in this process; print seconds of writing and reading, and MB of memory."""
    with tempfile.TemporaryDirectory() as name:
        storage = _open(os.environ, Path(name))
        before = time.perf_counter()
        if way == "straight":
            blob = _write(storage, seed)
        else:
            disk = _open({"NIXERY_STORAGE_BACKEND": "filesystem"}, Path(name))
            blob = asyncio.run(_copy(disk, storage, _write(disk, seed)))
        written = time.perf_counter() - before
        asyncio.run(_read(storage, blob))
        read = time.perf_counter() - before - written
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(json.dumps([written, read, memory]))


def _best(settings: Mapping[str, str], way: str, seed: int) -> tuple[float, float, float]:
    """The fastest of several runs, alike for all: what else the machine does only makes them slower."""
    runs = []
    for number in range(_ROUNDS):
        arguments = [sys.executable, "-m", "scripts.bench_storage", str(seed + number), way]
        ended = subprocess.run(
            arguments, env=os.environ | dict(settings), stdout=subprocess.PIPE, timeout=_TIMEOUT, check=True
        )
        runs.append(json.loads(ended.stdout))
    return min(run[0] for run in runs), min(run[1] for run in runs), max(run[2] for run in runs)


def main() -> None:
    """Measure all there are."""
    table = Table("backend", "straight MB/s", "disk plus upload MB/s", "reading MB/s", "memory MB")
    servers = [("s3 (moto)", moto), ("gcs (moto behind a proxy)", gcs)]
    servers += [("azure (Azurite)", azurite)] if AZURITE.exists() else []
    servers += [("s3 (MinIO)", minio)] if MINIO.exists() else []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        started = [("filesystem", ObjectStore({"NIXERY_STORAGE_BACKEND": "filesystem"}, 0))]
        for number, (label, server) in enumerate(servers):
            directory = Path(name) / str(number)
            directory.mkdir()
            started.append((label, stack.enter_context(server(directory))))
        for number, (label, running) in enumerate(started):
            straight, read, memory = _best(running.settings, "straight", 100 * number)
            later, _, _ = _best(running.settings, "disk", 100 * number + 50)
            speeds = (f"{_SIZE / 1e6 / seconds:.0f}" for seconds in (straight, later, read))
            table.add_row(label, *speeds, f"{memory:.0f}")
    Console().print(table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]), sys.argv[2])
    else:
        main()
