"""Names that lead somewhere else than they were left."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from nixery.files import make_private_directory, open_regular, read_regular


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
def test_what_is_no_regular_file_is_not_there(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    make(Path("name"))
    with pytest.raises(FileNotFoundError):
        open_regular("name")
    assert read_regular("name", 1 << 20) is None


@pytest.mark.parametrize(
    ("size", "is_read"), [(0, True), (999, True), (1000, True), (1001, False), (9999, False)]
)
def test_no_more_is_read_than_is_allowed(
    size: int,
    is_read: bool,  # noqa: FBT001 -- a parameter of the test
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert read_regular(path, 1000) == (b"x" * size if is_read else None)


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "file", os.read
    path.write_bytes(b"1")
    with path.open("ab", buffering=0) as file:

        def grow(descriptor: int, size: int) -> bytes:
            content = read(descriptor, size)
            if content:
                file.write(b"x" * 10)
            return content

        monkeypatch.setattr(os, "read", grow)
        assert read_regular(path, 1000) is None


def test_directories_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private_directory(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    make_private_directory(tmp_path / "a" / "b")
    for directory in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_symlink_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(NotADirectoryError):
        make_private_directory(tmp_path / "link")


def test_what_root_makes_belongs_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    owner = 12345 if os.geteuid() == 0 else os.geteuid()
    os.chown(tmp_path, owner, -1)
    make_private_directory(tmp_path / "a" / "b")
    assert {(tmp_path / "a").stat().st_uid, (tmp_path / "a" / "b").stat().st_uid} == {owner}
