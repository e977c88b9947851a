import os
from pathlib import Path

import pytest

from nixery.closure.store_path import StorePath
from nixery.errors import StorageError
from nixery.packing.entries import Directory, RegularFile, Symlink
from nixery.packing.store_tree import store_entries

PATH = StorePath("a" * 32 + "-p")
IN_IMAGE = b"nix/store/" + PATH.base_name.encode()


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / PATH.base_name
    path.mkdir()
    return path


def walk(content: Path) -> list[Directory | Symlink | RegularFile]:
    entries = list(store_entries([PATH], str(content.parent).encode()))
    assert all(isinstance(entry, Directory | Symlink | RegularFile) for entry in entries)
    return entries  # type: ignore[return-value]


def test_directories_come_first_and_names_are_sorted(content: Path) -> None:
    for name in ("b", "a", "B", "a.d"):
        (content / name).mkdir()
    (content / "a" / "z").write_text("")
    names = [entry.name.removeprefix(IN_IMAGE) for entry in walk(content)]
    assert names == [b"nix", b"nix/store", b"", b"/B", b"/a", b"/a/z", b"/a.d", b"/b"]


def test_modes_are_those_of_a_store_whatever_the_hosts_are(content: Path) -> None:
    for name, mode in (("plain", 0o600), ("program", 0o4711), ("writable", 0o666)):
        (content / name).write_text("x")
        (content / name).chmod(mode)
    (content / "directory").mkdir(mode=0o700)
    modes = {e.name.rpartition(b"/")[2]: e.mode for e in walk(content) if not isinstance(e, Symlink)}
    assert modes[b"plain"] == modes[b"writable"] == 0o444
    assert modes[b"program"] == modes[b"directory"] == 0o555
    assert modes[b"nix"] == modes[b"store"] == 0o755


def test_hard_links_are_files_of_their_own(content: Path) -> None:
    (content / "one").write_text("same")
    (content / "two").write_text("same")
    before = [(type(e), e.name) for e in walk(content)]
    (content / "two").unlink()
    os.link(content / "one", content / "two")
    assert [(type(e), e.name) for e in walk(content)] == before


def test_names_that_are_not_utf_8(content: Path) -> None:
    (content / os.fsdecode(b"\xff")).mkdir()
    assert IN_IMAGE + b"/\xff" in [entry.name for entry in walk(content)]


def test_symlinks_are_not_followed(content: Path) -> None:
    (content / "loop").symlink_to(".")
    (content / "dangling").symlink_to("/nowhere")
    assert {e.name.rpartition(b"/")[2]: e.target for e in walk(content) if isinstance(e, Symlink)} == {
        b"loop": b".",
        b"dangling": b"/nowhere",
    }


def test_what_cannot_be_in_a_store_is_refused(content: Path) -> None:
    os.mkfifo(content / "pipe")
    with pytest.raises(StorageError, match="neither file"):
        walk(content)


def test_a_path_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=str(PATH)):
        list(store_entries([PATH], str(tmp_path).encode()))
