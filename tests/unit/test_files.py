from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nixery import files
from nixery.files import (
    ASK,
    LIST,
    READ,
    Beneath,
    make_private_directory,
    open_regular,
    read_beginning,
    read_descriptor,
    read_regular,
)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def link_to_a_file(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"secret")
    path.symlink_to(target)


IRREGULAR: list[Callable[[Path], None]] = [
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.symlink_to(path),
    lambda path: path.symlink_to("nowhere"),
    link_to_a_file,
    os.mkfifo,
    Path.mkdir,
    bind,
    lambda _: None,
]
NAMES = ["a device", "a loop", "nowhere", "a file", "a FIFO", "a directory", "a socket", "nothing"]


@pytest.mark.parametrize("make", IRREGULAR, ids=NAMES)
def test_a_name_that_is_no_regular_file_counts_as_missing(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets have to be short
    make(Path("name"))
    with pytest.raises(FileNotFoundError):
        open_regular("name")
    assert read_regular("name", 1 << 20) is None


@pytest.mark.parametrize(
    ("size", "is_read"), [(0, True), (999, True), (1000, True), (1001, False), (9999, False)]
)
def test_a_file_over_the_limit_is_not_read(
    size: int,
    is_read: bool,  # noqa: FBT001 -- a parameter of the test
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert read_regular(path, 1000) == (b"x" * size if is_read else None)


def test_a_file_that_grows_over_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "file", os.pread
    path.write_bytes(b"1")
    with path.open("ab", buffering=0) as file:

        def grow(descriptor: int, size: int, offset: int) -> bytes:
            content = read(descriptor, size, offset)
            if content:
                file.write(b"x" * 10)
            return content

        monkeypatch.setattr(os, "pread", grow)
        assert read_regular(path, 1000) is None


def test_private_directories_are_closed_to_other_users(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private_directory(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    make_private_directory(tmp_path / "a" / "b")
    for directory in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_symlink_is_no_private_directory(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(NotADirectoryError):
        make_private_directory(tmp_path / "link")


def test_directories_that_root_makes_belong_to_the_owner_of_their_parent(tmp_path: Path) -> None:
    owner = 12345 if os.geteuid() == 0 else os.geteuid()
    os.chown(tmp_path, owner, -1)
    make_private_directory(tmp_path / "a" / "b")
    assert {(tmp_path / "a").stat().st_uid, (tmp_path / "a" / "b").stat().st_uid} == {owner}


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "file").write_text("content")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("secret")
    return top


@pytest.fixture(params=["openat2", "by hand"])
def below(request: pytest.FixtureRequest, top: Path) -> Iterator[Beneath]:
    with Beneath(bytes(top), emulated=request.param == "by hand") as below:
        assert below._emulated == (request.param == "by hand"), "tests need a kernel that has openat2"
        yield below


def read(below: Beneath, name: bytes, limit: int = 100) -> bytes:
    descriptor = below.open(name, READ)
    try:
        return read_descriptor(descriptor, limit)
    finally:
        os.close(descriptor)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_beneath_opens_names_below_its_directory(below: Beneath) -> None:
    before = open_descriptors()
    assert read(below, b"a/b/file") == b"content"
    descriptor = below.open(b"a/b", LIST)
    with os.scandir(descriptor) as children:
        assert [child.name for child in children] == ["file"]
    os.close(descriptor)
    with pytest.raises(FileNotFoundError):
        below.open(b"a/x/file", READ)
    assert open_descriptors() == before


@pytest.mark.parametrize("target", ["../outside", "b", "/proc/self/root"])
@pytest.mark.parametrize("flags", [LIST, READ, ASK])
def test_beneath_follows_no_symlink(below: Beneath, top: Path, target: str, flags: int) -> None:
    (top / "a" / "link").symlink_to(target)
    before = open_descriptors()
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        below.open(b"a/link/file", flags)
    if flags == ASK:
        descriptor = below.open(b"a/link", flags)
        assert os.readlink(b"", dir_fd=descriptor) == target.encode()
        os.close(descriptor)
    else:
        with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
            below.open(b"a/link", flags)
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "name", [b"..", b"../outside/file", b"a/../../outside/file", b"a/./b", b"a//b", b"a/", b"", b"a\0b"]
)
def test_beneath_refuses_names_that_could_lead_out(below: Beneath, name: bytes) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        below.open(name, ASK)


def test_beneath_refuses_absolute_names(below: Beneath, top: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        below.open(bytes(top / "a"), ASK)


@pytest.mark.parametrize("failure", [errno.ENOSYS, errno.EPERM])
def test_beneath_works_without_openat2(top: Path, monkeypatch: pytest.MonkeyPatch, failure: int) -> None:
    def refuse(*_: object) -> int:
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(files, "_openat2", refuse)
    with Beneath(bytes(top)) as below:
        assert read(below, b"a/b/file") == b"content"


def test_openat2_is_repeated_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([-1, 7])
    monkeypatch.setattr(files, "_syscall", lambda *_: next(calls))
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EINTR)
    assert files._openat2(3, b"x", ASK) == 7


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for file in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            read_beginning(str(file), 100)


def test_no_more_than_the_limit_is_read(top: Path) -> None:
    file = top / "a" / "b" / "file"
    assert read_beginning(str(file), 3) == b"con"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    assert read_beginning(str(file), 1000) == bytes(1000)
