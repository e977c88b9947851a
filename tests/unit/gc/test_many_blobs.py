"""Many blobs in bounded memory: separate processes collect and scrub them, and the kernel reports their peak.

``make test`` uses more blobs than a batch of deletions holds; ``make gc-many`` uses a hundred thousand
(``GC_BLOBS``).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nixery.oci.documents import canonical_json

BLOBS = int(os.environ.get("GC_BLOBS", "10000"))
LAYERS = 4
IMAGES = BLOBS // (LAYERS + 2) // 2
DAY = 24 * 3600

# MiB above the memory of a process that only imports everything: for a batch, and for the state of each blob
# and image.
ALLOWED = 16 + BLOBS * 512 // 2**20


def write_blob(storage: Path, content: bytes, modified: float) -> dict[str, Any]:
    """Write a blob as a store would, but without waiting for the disk."""
    encoded = hashlib.sha256(content).hexdigest()
    path = storage / "blobs" / "sha256" / encoded[:2] / encoded
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.with_name(f"{encoded}.size").write_bytes(b"%d" % len(content))
    os.utime(path, (modified, modified))
    return {"digest": f"sha256:{encoded}", "size": len(content)}


def write_record(storage: Path, kind: str, key: str, content: bytes, modified: float) -> None:
    path = storage / "records" / kind / key[:2] / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (modified, modified))


def write_image(storage: Path, number: int, used: float) -> None:
    layers = [write_blob(storage, b"layer %d of %d" % (n, number), used) for n in range(LAYERS)]
    for layer in layers:
        record = canonical_json({**layer, "diff_id": layer["digest"]})
        write_record(storage, "layers", layer["digest"].removeprefix("sha256:"), record, used)
    config = write_blob(storage, b"config %d" % number, used)
    manifest = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers}
    key = write_blob(storage, canonical_json(manifest), used)["digest"].removeprefix("sha256:")
    write_record(storage, "uses", key, key.encode(), used)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the blobs belong to images in use, a third to unused images, and the rest to no image."""
    storage = tmp_path_factory.mktemp("storage")
    now = time.time()
    for number in range(2 * IMAGES):
        write_image(storage, number, now - DAY if number % 2 else now - 40 * DAY)
    for number in range(BLOBS - 2 * IMAGES * (LAYERS + 2)):
        write_blob(storage, b"nobody's %d" % number, now - DAY)
    return storage


def nixery(storage: Path, *arguments: str) -> tuple[dict[str, Any], int]:
    """Run a command; return its output, and its peak of resident memory in MiB."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom nixery.cli import app\n"
        "try:\n    app(sys.argv[1:])\n"
        # Not ru_maxrss, which starts at the memory of the parent.
        "finally:\n    print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "NIXERY_STORAGE_BACKEND": "filesystem", "STORAGE_PATH": str(storage)},
        capture_output=True,
        text=True,
        timeout=1800,
        check=True,
    )
    answer, peak = completed.stdout.splitlines()
    return json.loads(answer), int(peak) // 1024


def test_many_blobs_are_collected_and_scrubbed_in_bounded_memory(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, at_rest = nixery(tmp_path, "gc", "--json")
    start = time.monotonic()
    scrubbed, scrub_peak = nixery(storage, "scrub", "--json")
    scrub_seconds, start = time.monotonic() - start, time.monotonic()
    collected, peak = nixery(storage, "gc", "--json", "--max-age", "30d")
    seconds = time.monotonic() - start
    with capsys.disabled():
        print(  # noqa: T201 -- figures for docs/reference/performance.md
            f"\n{BLOBS} blobs, at rest {at_rest} MiB: scrub {scrub_seconds:.0f} s, {scrub_peak} MiB;"
            f" gc of half of them {seconds:.0f} s, {peak} MiB"
        )
    assert scrubbed["broken"] == []
    assert scrubbed["read"] >= BLOBS
    assert collected["kept"] == IMAGES * (LAYERS + 2)
    assert collected["deleted"] == BLOBS - collected["kept"]
    assert peak - at_rest < ALLOWED
    assert scrub_peak - at_rest < ALLOWED
