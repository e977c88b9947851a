import errno
import io
import os
import socket
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixery.closure.graph import PathInfo
from nixery.closure.store_path import StorePath
from nixery.errors import StorageError
from nixery.packing.archive import Archive
from nixery.packing.store_tree import add_store_paths

PATH = StorePath("a" * 32 + "-p")
# Of any size: what is registered has tests of its own.
INFO = PathInfo(PATH, "", sys.maxsize, ())
IN_IMAGE = "nix/store/" + PATH.base_name


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / PATH.base_name
    path.mkdir()
    return path


def archived(content: Path) -> bytes:
    whole = bytearray()
    archive = Archive(whole.extend)
    add_store_paths(archive, [INFO], os.fsencode(content.parent))
    whole.extend(archive.end())
    return bytes(whole)


def members(content: Path) -> list[tarfile.TarInfo]:
    """Read with Python's own tar reader, names below the store path's own."""
    with tarfile.open(fileobj=io.BytesIO(archived(content)), errors="surrogateescape") as reader:
        found = reader.getmembers()
    for member in found:
        member.name = member.name.removeprefix(IN_IMAGE)
    return found


def test_directories_come_first_and_names_are_sorted(content: Path) -> None:
    for name in ("b", "a", "B", "a.d"):
        (content / name).mkdir()
    (content / "a" / "z").write_text("")
    names = [member.name for member in members(content)]
    assert names == ["nix", "nix/store", "", "/B", "/a", "/a/z", "/a.d", "/b"]


def test_modes_are_those_of_a_store_whatever_the_hosts_are(content: Path) -> None:
    for name, mode in (("plain", 0o600), ("program", 0o4711), ("writable", 0o666)):
        (content / name).write_text("x")
        (content / name).chmod(mode)
    (content / "large").write_bytes(bytes(100_000))
    (content / "directory").mkdir(mode=0o700)
    modes = {member.name: member.mode for member in members(content) if not member.issym()}
    assert modes["/plain"] == modes["/writable"] == modes["/large"] == 0o444
    assert modes["/program"] == modes["/directory"] == modes[""] == 0o555
    assert modes["nix"] == modes["nix/store"] == 0o755


def test_hard_links_are_files_of_their_own(content: Path) -> None:
    (content / "one").write_text("same")
    (content / "two").write_text("same")
    before = archived(content)
    (content / "two").unlink()
    os.link(content / "one", content / "two")
    assert archived(content) == before


def test_names_that_are_not_utf_8(content: Path) -> None:
    (content / os.fsdecode(b"\xff")).mkdir()
    assert "/" + os.fsdecode(b"\xff") in [member.name for member in members(content)]


def test_symlinks_are_not_followed(content: Path) -> None:
    (content / "loop").symlink_to(".")
    (content / "dangling").symlink_to("/nowhere")
    assert {member.name: member.linkname for member in members(content) if member.issym()} == {
        "/loop": ".",
        "/dangling": "/nowhere",
    }


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_a_store_path_need_not_be_a_directory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / PATH.base_name
    if kind == "file":
        path.write_text("x")
    else:
        path.symlink_to("elsewhere")
    *_, member = members(path)
    assert (member.name, member.isfile(), member.issym()) == ("", kind == "file", kind == "symlink")


@pytest.fixture
def deep(content: Path) -> Iterator[str]:
    """Below the content, a file in more directories than the interpreter's stack has room for; tells its name."""
    above = [content]
    for _ in range(1200):
        above.append(above[-1] / "d")
        above[-1].mkdir()
    (above[-1] / "f").write_text("x")
    yield "/d" * 1200 + "/f"
    # By us, for whoever removes the temporary directory does it recursively.
    (above[-1] / "f").unlink()
    for directory in reversed(above[1:]):
        directory.rmdir()


def test_a_tree_deeper_than_the_interpreter_would_go(content: Path, deep: str) -> None:
    assert members(content)[-1].name == deep


def test_a_pipe_is_refused_and_not_waited_for(content: Path) -> None:
    os.mkfifo(content / "pipe")
    with pytest.raises(StorageError, match="pipe is neither file"):
        archived(content)


def test_a_socket_is_named(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(content)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(StorageError, match=r"/socket is neither file"):
            archived(content)


def fail(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("call", ["readlink", "open", "scandir"])
def test_what_cannot_be_read_is_named_in_printable_letters(
    content: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    odd = content / os.fsdecode(b"odd-\xff")
    if call == "readlink":
        odd.symlink_to("x")
    elif call == "open":
        odd.write_text("x")
    monkeypatch.setattr(os, call, fail)
    name = PATH.base_name if call == "scandir" else "odd-\ufffd"
    with pytest.raises(StorageError, match=f"cannot read .*{name}: Input/output error"):
        archived(content)


def test_errors_of_whoever_takes_the_archive_stay_what_they_are(content: Path) -> None:
    (content / "f").write_bytes(bytes(3 << 20))
    with pytest.raises(OSError, match="Input/output error"):
        add_store_paths(Archive(fail), [INFO], os.fsencode(content.parent))


def test_a_path_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=str(PATH.base_name)):
        archived(tmp_path / PATH.base_name)
