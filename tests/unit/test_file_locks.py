from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nixery.errors import StorageError, StorageFull, storage_error
from nixery.locks import FileLocks

HOLDS = """
import pathlib, sys, time
from nixery.locks import FileLocks
with FileLocks(pathlib.Path(sys.argv[1])).attempt("one") as is_ours:
    print(is_ours, flush=True)
    time.sleep(60)
"""


def held_by_another_process(directory: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(directory)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"True\n"
    return process


def test_one_holds_it_and_it_leaves_nothing(tmp_path: Path) -> None:
    one, two = FileLocks(tmp_path), FileLocks(tmp_path)
    with one.attempt("a") as first, two.attempt("a") as second, two.attempt("b") as other:
        assert (first, second, other) == (True, False, True)
    assert list(tmp_path.iterdir()) == []
    with two.attempt("a") as again:
        assert again


def test_a_lock_goes_with_a_process_that_is_killed(tmp_path: Path) -> None:
    process = held_by_another_process(tmp_path)
    locks = FileLocks(tmp_path)
    with locks.attempt("one") as is_ours:
        assert not is_ours
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    process.kill()
    process.wait(10)
    with locks.attempt("one") as is_ours:
        assert is_ours


def test_what_a_killed_process_left_is_swept_and_what_is_held_is_not(tmp_path: Path) -> None:
    process = held_by_another_process(tmp_path)
    (tmp_path / "left-behind").touch()
    FileLocks(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    process.kill()
    process.wait(10)
    FileLocks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_removed_while_it_was_opened_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = FileLocks(tmp_path)
    opened: list[int] = []
    real_open = os.open

    def open_late(path: Path, *arguments: int) -> int:
        descriptor = real_open(path, *arguments)
        if not opened:
            path.unlink()  # as the one does that held it
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr("nixery.locks.os.open", open_late)
    with locks.attempt("a") as first:
        assert first
        assert len(opened) == 2
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_directory_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        FileLocks(tmp_path / "file")


def test_a_directory_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path / "storage" / "locks")
    (tmp_path / "storage" / "locks").rmdir()
    (tmp_path / "storage").rmdir()
    with locks.attempt("name") as held:
        assert held


def test_what_cannot_be_locked_is_told_without_its_place(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path / "locks")
    (tmp_path / "locks" / "name").mkdir()
    with (
        pytest.raises(StorageError, match="cannot make a lock in the storage: ") as caught,
        locks.attempt("name"),
    ):
        pass
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EACCES, StorageError)],
)
def test_no_room_for_a_lock_is_a_full_storage(number: int, kind: type[StorageError]) -> None:
    assert type(storage_error("it cannot be", OSError(number, "why"))) is kind


def test_what_is_no_lock_is_neither_followed_nor_in_the_way(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    (locks / "directory").mkdir(parents=True)
    (locks / "symlink").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(locks / "fifo")
    held = FileLocks(locks)
    with pytest.raises(StorageError), held.attempt("symlink"):
        raise AssertionError("nothing can be locked there")
    assert not (tmp_path / "elsewhere").exists()
    with held.attempt("another") as is_ours:
        assert is_ours
