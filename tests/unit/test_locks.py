from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nixery.errors import StorageError, StorageFull, storage_error
from nixery.locks import FileLocks, ProcessDirectory

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


def test_a_lock_has_one_holder_and_leaves_no_file(tmp_path: Path) -> None:
    one, two = FileLocks(tmp_path), FileLocks(tmp_path)
    with one.attempt("a") as first, two.attempt("a") as second, two.attempt("b") as other:
        assert (first, second, other) == (True, False, True)
    assert list(tmp_path.iterdir()) == []
    with two.attempt("a") as again:
        assert again


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    process = held_by_another_process(tmp_path)
    locks = FileLocks(tmp_path)
    with locks.attempt("one") as is_ours:
        assert not is_ours
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    process.kill()
    process.wait(10)
    with locks.attempt("one") as is_ours:
        assert is_ours


def test_only_directories_of_killed_processes_are_removed(tmp_path: Path) -> None:
    process = held_by_another_process(tmp_path)
    (tmp_path / "left-behind").touch()
    FileLocks(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    process.kill()
    process.wait(10)
    FileLocks(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_removed_by_its_holder_is_recreated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = FileLocks(tmp_path)
    opened: list[int] = []
    real_open = os.open

    def open_late(path: Path, *arguments: int) -> int:
        descriptor = real_open(path, *arguments)
        if not opened:
            path.unlink()  # like the holder of the lock
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr("nixery.locks.os.open", open_late)
    with locks.attempt("a") as first:
        assert first
        assert len(opened) == 2
        assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_unusable_parent_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        FileLocks(tmp_path / "file")


def test_a_deleted_directory_is_recreated(tmp_path: Path) -> None:
    locks = FileLocks(tmp_path / "storage" / "locks")
    (tmp_path / "storage" / "locks").rmdir()
    (tmp_path / "storage").rmdir()
    with locks.attempt("name") as held:
        assert held


def test_a_lock_that_cannot_be_created_is_reported_without_its_path(tmp_path: Path) -> None:
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
def test_no_space_for_a_lock_is_a_full_storage(number: int, kind: type[StorageError]) -> None:
    assert type(storage_error("it cannot be", OSError(number, "why"))) is kind


def test_a_foreign_file_among_the_locks_is_not_followed_and_blocks_no_lock(tmp_path: Path) -> None:
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


def test_closing_removes_the_directory_with_its_contents(tmp_path: Path) -> None:
    directory = ProcessDirectory(tmp_path)
    (directory.path / "file").write_text("x")
    directory.close()
    assert not directory.path.exists()


def test_only_lock_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    script = "import os, sys; from pathlib import Path; from nixery.locks import ProcessDirectory\n"
    script += "print(ProcessDirectory(Path(sys.argv[1])).path, flush=True); os.kill(os.getpid(), 9)"
    living = ProcessDirectory(tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False
    )
    left_behind = Path(killed.stdout.strip())
    assert left_behind.is_dir()
    ProcessDirectory(tmp_path).close()
    assert not left_behind.exists()
    assert living.path.is_dir()
    living.close()


@pytest.fixture
def removed(tmp_path: Path) -> Iterator[Path]:
    """A directory that `rm` removes after the test, since pytest cannot remove deep trees."""
    yield tmp_path
    subprocess.run(["rm", "-rf", "--", *tmp_path.iterdir()], check=True)


def deep_tree(directory: Path) -> None:
    """Deeper than the interpreter's stack and the usual limit on open files."""
    descriptor = os.open(directory, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=descriptor)
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor))
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)


def test_a_deep_tree_is_removed(removed: Path) -> None:
    directory = ProcessDirectory(removed)
    deep_tree(directory.path)
    directory.close()
    assert not directory.path.exists()


def test_a_deep_leftover_does_not_keep_a_process_from_starting(removed: Path) -> None:
    left_behind = removed / "server-left"
    left_behind.mkdir()
    deep_tree(left_behind)
    ProcessDirectory(removed).close()
    assert not left_behind.exists()


def test_symlinks_in_a_removed_directory_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    directory = ProcessDirectory(tmp_path / "parent")
    (directory.path / "link").symlink_to(tmp_path / "kept")
    (directory.path / "1" / "2").mkdir(parents=True)
    (directory.path / "1" / "link").symlink_to(tmp_path / "kept")
    directory.close()
    assert not directory.path.exists()
    assert (tmp_path / "kept" / "file").exists()


def test_processes_that_start_together_do_not_remove_each_others_directories(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        directories = list(pool.map(lambda _: ProcessDirectory(tmp_path), range(40)))
    assert all(directory.path.is_dir() for directory in directories)
    for directory in directories:
        directory.close()


def test_a_file_in_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "gc-roots").write_text("")
    with pytest.raises(StorageError, match="gc-roots"):
        ProcessDirectory(tmp_path / "gc-roots")


@pytest.mark.parametrize("what", ["a file", "a symlink", "a FIFO", "gone"])
def test_other_files_in_the_parent_do_not_keep_a_process_from_starting(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, planted = tmp_path / "elsewhere", tmp_path / "parent" / "server-planted"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    planted.parent.mkdir()
    match what:
        case "a file":
            planted.write_text("")
        case "a symlink":
            planted.symlink_to(elsewhere)
        case "a FIFO":
            os.mkfifo(planted)
        case "gone":
            # Another process lists the file, and its holder removes it before the other process opens it.
            monkeypatch.setattr(Path, "glob", lambda parent, _: [parent / "server-gone"])
    directory = ProcessDirectory(planted.parent)
    assert directory.path.is_dir()
    directory.close()
    assert (elsewhere / "file").exists()


def test_processes_that_end_do_not_disturb_those_that_start(tmp_path: Path) -> None:
    def live(_: int) -> None:
        for _ in range(100):
            ProcessDirectory(tmp_path).close()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(live, range(3)))
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_directory_is_recreated_and_locked(tmp_path: Path) -> None:
    directory = ProcessDirectory(tmp_path)
    directory.path.rmdir()
    directory.restore()
    ProcessDirectory(tmp_path).close()  # removes unlocked files
    assert directory.path.is_dir()
    directory.close()


@pytest.mark.security
def test_a_deep_commit_is_removed(tmp_path: Path) -> None:
    """The author of a commit chooses the depth; a server that could not remove the tree would not start again."""
    left = tmp_path / "server-left"
    left.mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (left / "link").symlink_to(tmp_path / "kept")
    deep = "/".join(["d"] * 1500)
    (left / "one").mkdir()
    subprocess.run(["mkdir", "-p", deep, f"one/{deep}"], cwd=left, check=True, timeout=60)
    (left / deep / "file").touch()
    ProcessDirectory(tmp_path).close()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").exists()
