"""A store optimised by ``nix-store --optimise`` has hard links instead of equal files."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

from nixery.closure import PathInfo, StorePath
from nixery.packing.compression import compression
from nixery.packing.contents import add_store_paths
from nixery.packing.local_store import LocalStore
from nixery.packing.packer import LayerPacker

STORE_PATHS = [PathInfo(StorePath(f"{digit * 32}-package-{digit}"), "", 1 << 20, ()) for digit in "012"]


def make_store(directory: Path, *, optimised: bool) -> Path:
    first: Path | None = None
    for info in STORE_PATHS:
        (directory / info.path.base_name / "share").mkdir(parents=True)
        for name in ("one", "two"):
            path = directory / info.path.base_name / "share" / name
            if optimised and first is not None:
                os.link(first, path)
                continue
            path.write_bytes(b"equal content\n" * 1000)
            path.chmod(0o444)
            first = first or path
    return directory


def packed(store: Path) -> tuple[str, str]:
    blob = io.BytesIO()
    with LocalStore(os.fsencode(store)) as contents:
        diff_id = LayerPacker(compression("gzip")).pack(
            lambda archive: add_store_paths(archive, STORE_PATHS, contents), blob, lambda: None
        )
    return str(diff_id), hashlib.sha256(blob.getvalue()).hexdigest()


def test_hard_links_between_files_leave_no_trace(tmp_path: Path) -> None:
    plain = make_store(tmp_path / "plain", optimised=False)
    optimised = make_store(tmp_path / "optimised", optimised=True)
    linked = optimised / STORE_PATHS[0].path.base_name / "share" / "one"
    assert linked.stat().st_nlink == 2 * len(STORE_PATHS)
    assert packed(optimised) == packed(plain)
