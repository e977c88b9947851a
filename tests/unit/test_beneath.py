import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixery import files as beneath
from nixery.files import ASK, LIST, READ, Beneath, read_beginning
from nixery.files import read_descriptor as read_regular


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
    with Beneath(bytes(top), by_hand=request.param == "by hand") as below:
        assert below._by_hand == (request.param == "by hand"), "tests need a kernel that has openat2"
        yield below


def read(below: Beneath, name: bytes, limit: int = 100) -> bytes:
    descriptor = below.open(name, READ)
    try:
        return read_regular(descriptor, limit)
    finally:
        os.close(descriptor)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_is_below_is_opened(below: Beneath) -> None:
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
def test_no_symlink_is_followed(below: Beneath, top: Path, target: str, flags: int) -> None:
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
def test_names_that_could_lead_out_are_none(below: Beneath, name: bytes) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        below.open(name, ASK)


def test_absolute_names_are_none(below: Beneath, top: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        below.open(bytes(top / "a"), ASK)


@pytest.mark.parametrize("failure", [errno.ENOSYS, errno.EPERM])
def test_a_kernel_or_a_filter_without_openat2(
    top: Path, monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(beneath, "_openat2", refuse)
    with Beneath(bytes(top)) as below:
        assert read(below, b"a/b/file") == b"content"


def test_a_call_that_a_signal_interrupts_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([-1, 7])
    monkeypatch.setattr(beneath, "_syscall", lambda *_: next(calls))
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EINTR)
    assert beneath._openat2(3, b"x", ASK) == 7


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for file in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            read_beginning(str(file), 100)
    with pytest.raises(OSError, match="symbolic links"):
        read_beginning(str(tmp_path / "link"), 100)


def test_no_more_is_read_than_asked_for(top: Path) -> None:
    file = top / "a" / "b" / "file"
    assert read_beginning(str(file), 3) == b"con"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    assert read_beginning(str(file), 1000) == bytes(1000)
