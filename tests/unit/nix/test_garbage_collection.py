import fcntl
import shutil
from pathlib import Path

import pytest

from nixery.nix.garbage_collection import NixGarbageCollector


@pytest.mark.parametrize(
    ("held", "running"), [(fcntl.LOCK_EX, True), (fcntl.LOCK_SH, False), (fcntl.LOCK_UN, False)]
)
def test_a_running_collector_is_detected_by_its_lock(tmp_path: Path, held: int, running: bool) -> None:  # noqa: FBT001
    with (tmp_path / "gc.lock").open("w") as lock:
        fcntl.flock(lock, held)
        assert NixGarbageCollector(tmp_path, tmp_path / "roots").is_running() is running


def test_without_a_lock_file_no_collector_is_running(tmp_path: Path) -> None:
    assert not NixGarbageCollector(tmp_path, tmp_path / "roots").is_running()


def test_roots_last_as_long_as_their_context(tmp_path: Path) -> None:
    collector = NixGarbageCollector(tmp_path / "state", tmp_path)
    with collector.root() as root, collector.root() as other:
        root.symlink_to("/nix/store")
        other.symlink_to("/nix/store")
        assert len(list(tmp_path.glob("build-*/result"))) == 2
    assert not list(tmp_path.iterdir())


def test_roots_that_were_deleted_with_the_storage_are_no_error(tmp_path: Path) -> None:
    collector = NixGarbageCollector(tmp_path / "state", tmp_path / "roots")
    with collector.root():
        shutil.rmtree(tmp_path / "roots")
    assert not list(tmp_path.iterdir())
