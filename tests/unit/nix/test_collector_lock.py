import fcntl
from pathlib import Path

import pytest

from nixery.nix.garbage_collection import CollectorLock


@pytest.mark.parametrize(
    ("held", "at_work"), [(fcntl.LOCK_EX, True), (fcntl.LOCK_SH, False), (fcntl.LOCK_UN, False)]
)
def test_a_collector_that_is_at_work_is_seen(tmp_path: Path, held: int, at_work: bool) -> None:  # noqa: FBT001
    with (tmp_path / "gc.lock").open("w") as lock:
        fcntl.flock(lock, held)
        assert CollectorLock(tmp_path).is_at_work() is at_work


def test_where_there_is_no_lock_nobody_is_at_work(tmp_path: Path) -> None:
    assert not CollectorLock(tmp_path).is_at_work()
