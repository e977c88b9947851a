import errno
import io
import os
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from nixery.closure import PathInfo, StorePath
from nixery.errors import StorageError, UnsafeContents
from nixery.packing import local_store
from nixery.packing.archive import Archive
from nixery.packing.contents import add_store_paths
from nixery.packing.local_store import LocalStore

PATH = StorePath("a" * 32 + "-p")
# Of any size: other tests cover registered sizes.
INFO = PathInfo(PATH, "", sys.maxsize, ())
IN_IMAGE = "nix/store/" + PATH.base_name


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / PATH.base_name
    path.mkdir()
    return path


def add(archive: Archive, info: PathInfo, content: Path) -> None:
    with LocalStore(os.fsencode(content.parent)) as store:
        add_store_paths(archive, [info], store)


def archived(content: Path) -> bytes:
    whole = bytearray()
    archive = Archive(whole.extend)
    add(archive, INFO, content)
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


def test_modes_are_those_of_a_store_regardless_of_the_hosts(content: Path) -> None:
    for name, mode in (("plain", 0o600), ("program", 0o4711), ("writable", 0o666)):
        (content / name).write_text("x")
        (content / name).chmod(mode)
    (content / "large").write_bytes(bytes(100_000))
    (content / "directory").mkdir(mode=0o700)
    modes = {member.name: member.mode for member in members(content) if not member.issym()}
    assert modes["/plain"] == modes["/writable"] == modes["/large"] == 0o444
    assert modes["/program"] == modes["/directory"] == modes[""] == 0o555
    assert modes["nix"] == modes["nix/store"] == 0o755


def test_hard_links_become_separate_files(content: Path) -> None:
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
    """Add a file below more directories than the interpreter's stack allows; return its name."""
    above = [content]
    for _ in range(1200):
        above.append(above[-1] / "d")
        above[-1].mkdir()
    (above[-1] / "f").write_text("x")
    yield "/d" * 1200 + "/f"
    # Removed here, since pytest removes its temporary directory recursively.
    (above[-1] / "f").unlink()
    for directory in reversed(above[1:]):
        directory.rmdir()


def test_a_tree_deeper_than_the_recursion_limit_is_read(content: Path, deep: str) -> None:
    assert members(content)[-1].name == deep


def test_a_pipe_is_refused_without_blocking(content: Path) -> None:
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


@pytest.mark.parametrize("call", ["readlink", "open", "open a directory"])
def test_an_unreadable_file_is_named_in_printable_letters(
    content: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    odd = content / os.fsdecode(b"odd-\xff\n\xe2\x80\xae")
    if call == "readlink":
        odd.symlink_to("x")
    elif call == "open":
        odd.write_text("x")
    else:
        odd.mkdir()
    call = call.partition(" ")[0]
    real = getattr(os, call)

    def only_others(name: bytes, *arguments: int, dir_fd: int | None = None) -> object:
        if name == os.fsencode(odd.name):
            fail()
        return real(name, *arguments, dir_fd=dir_fd)

    monkeypatch.setattr(os, call, only_others)
    shown = re.escape(f"/{IN_IMAGE}/odd-\ufffd\\n\\u202e")
    with pytest.raises(StorageError, match=f"cannot read {shown}: Input/output error"):
        archived(content)


def test_a_directory_that_cannot_be_listed_is_named(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StorageError, match=f"cannot read /{IN_IMAGE}: Input/output error"):
        archived(content)


def test_errors_of_the_consumer_are_passed_on(content: Path) -> None:
    (content / "f").write_bytes(bytes(3 << 20))
    with pytest.raises(OSError, match="Input/output error"):
        add(Archive(fail), INFO, content)


def test_a_deleted_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=str(PATH.base_name)):
        archived(tmp_path / PATH.base_name)


def info(size: int) -> PathInfo:
    return PathInfo(PATH, "", size, ())


def pack(content: Path, size: int) -> None:
    archive = Archive(lambda _: None)
    add(archive, info(size), content)


def nar_size(path: Path) -> int:
    """Compute the NAR size as Nix does."""
    command = ("nix-store", "--dump", str(path))
    return len(subprocess.run(command, capture_output=True, check=True).stdout)


def test_no_more_is_packed_than_nix_has_registered(content: Path) -> None:
    for name in ("a", "b", "c" * 100, "d/e/f"):
        (content / name).parent.mkdir(parents=True, exist_ok=True)
        (content / name).write_text("x" * 1000)
    (content / "empty").touch()
    (content / "link").symlink_to("t" * 1000)
    size = nar_size(content)
    pack(content, size)
    (content / "a").write_text("x" * (1000 + size))
    with pytest.raises(
        StorageError, match=f"a was changed after it was built: .* {size:,} bytes .* --repair"
    ):
        pack(content, size)


@pytest.mark.parametrize("kind", ["file", "directory", "files", "links", "directories"])
def test_the_registered_size_suffices_for_every_tree(content: Path, kind: str) -> None:
    if kind == "file":
        content.rmdir()
        content.touch()
    for number in range(100 if kind.endswith("s") else 0):
        if kind == "files":
            (content / f"{number}").touch()
        elif kind == "links":
            (content / f"{number}").symlink_to("x")
        else:
            (content / f"{number}").mkdir()
    pack(content, nar_size(content))


def test_a_sparse_file_of_a_terabyte_is_not_read(content: Path) -> None:
    with (content / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StorageError, match="sparse was changed after it was built"):
        pack(content, 1 << 30)


def test_names_count_towards_the_registered_size(content: Path) -> None:
    for number in range(1000):
        (content / str(number)).touch()
    with pytest.raises(StorageError, match="was changed after it was built"):
        pack(content, 50_000)


def test_directories_are_bounded(content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_store, "_MOST_NAMES", 10)
    for directory in ("b", "a/b", "a/b/c"):
        for number in range(4):
            (content / directory).mkdir(parents=True, exist_ok=True)
            (content / directory / f"f{number}").touch()
    # Nested directories a and b count with their names; finished directories do not.
    with pytest.raises(UnsafeContents, match=r"a/b/c cannot be in an image: .* more than 10 names"):
        archived(content)
    for number in range(4):
        (content / "a" / "b" / "c" / f"f{number}").unlink()
    archived(content)
    for number in range(11):
        (content / "b" / f"g{number}").touch()
    with pytest.raises(UnsafeContents, match=r"b cannot be in an image: .* more than 10 names"):
        archived(content)


def test_names_longer_than_the_kernel_takes_are_refused(content: Path) -> None:
    above = os.open(content, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("c" * 250, dir_fd=above)
        below = os.open("c" * 250, os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)
    with pytest.raises(UnsafeContents, match="its name has more than 4,095 bytes"):
        archived(content)


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_few_files_are_open_at_the_same_time(
    content: Path, deep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, most, real = open_descriptors(), [0], os.open

    def opened(name: bytes, flags: int, *, dir_fd: int | None = None) -> int:
        descriptor = real(name, flags, dir_fd=dir_fd)
        # Listing takes one more descriptor.
        most[0] = max(most[0], len(open_descriptors() - before))
        return descriptor

    monkeypatch.setattr(os, "open", opened)
    assert members(content)[-1].name == deep
    assert 10 < most[0] < 50
    assert len(open_descriptors()) == len(before)


def test_entries_after_a_deep_directory_have_the_right_parent(content: Path) -> None:
    """The parent directories were closed meanwhile."""
    above = content
    for level in range(100):
        above /= "d"
        above.mkdir()
        for name in ("a", "z"):
            (above / name).write_text(f"{name} of {level}")
    with tarfile.open(fileobj=io.BytesIO(archived(content))) as reader:
        for level in range(100):
            for name in ("a", "z"):
                file = reader.extractfile(IN_IMAGE + "/d" * (level + 1) + "/" + name)
                assert file is not None
                assert file.read() == f"{name} of {level}".encode()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A directory outside of the store with the same names as the package."""
    secret = tmp_path / "outside" / "d"
    secret.mkdir(parents=True)
    (secret / "file").write_text("secret")
    (secret / "link").symlink_to("secret")
    return secret


@pytest.mark.parametrize("when", ["listed", "entered", "left and entered again"])
def test_a_directory_that_becomes_a_link_while_it_is_read(
    content: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A builder without a sandbox may continue after its output is registered."""
    directory, moved = content / "d", content.parent / "moved"
    below = directory
    if when == "left and entered again":
        below = directory.joinpath(*["c"] * 50)
    below.mkdir(parents=True)
    (below / "file").write_text("fine")
    (directory / "file").write_text("fine")
    (directory / "link").symlink_to("fine")
    real, listings = os.scandir, [0]
    at = {"listed": 1, "entered": 2, "left and entered again": 51}[when]

    def listed(descriptor: int) -> nullcontext[Iterator[os.DirEntry[str]]]:
        with real(descriptor) as found:
            entries = list(found)
        listings[0] += 1
        if listings[0] == at:
            directory.rename(moved)
            directory.symlink_to(secret)
        return nullcontext(iter(entries))

    monkeypatch.setattr(os, "scandir", listed)
    whole = bytearray()
    archive = Archive(whole.extend)
    # The descent stays in an entered directory even if it is moved, and does not enter it again.
    expected = nullcontext() if when == "entered" else pytest.raises(StorageError, match="cannot read")
    with expected:
        add(archive, INFO, content)
    whole.extend(archive.end())
    assert listings[0] >= at
    assert b"secret" not in whole


@pytest.mark.parametrize("name", [".wh.nix", ".wh..wh..opq", ".wh.", "d/.wh.x", "d/.wh.d/x"])
@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "large"])
def test_whiteouts_are_refused(content: Path, name: str, kind: str) -> None:
    file = content / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "directory":
        file.mkdir()
    elif kind == "symlink":
        file.symlink_to("x")
    else:
        file.write_bytes(bytes(100_000 if kind == "large" else 1))
    with pytest.raises(UnsafeContents, match=rf"/{IN_IMAGE}/(d/)?\.wh\..* cannot be in an image"):
        archived(content)


def test_names_that_only_look_like_whiteouts_stay(content: Path) -> None:
    for name in ("x.wh.nix", ".whiteout", ".wh", "wh.", ".WH.nix"):
        (content / name).touch()
    assert len(members(content)) == 3 + 5


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_store_path_that_is_neither_a_file_nor_a_directory_nor_a_symlink(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / PATH.base_name)
    else:
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(PATH.base_name)
    with pytest.raises(StorageError, match=f"/{IN_IMAGE} is neither file, directory nor symlink"):
        archived(tmp_path / PATH.base_name)


def test_a_store_that_cannot_be_listed_is_supported(content: Path) -> None:
    """Some operators hide the names of store paths from users of the machine."""
    (content / "file").write_text("x")
    content.parent.chmod(0o311)
    try:
        assert [member.name for member in members(content)][-1] == "/file"
    finally:
        content.parent.chmod(0o755)


def test_a_directory_with_many_names_is_in_the_order_of_bytes(
    content: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number * 7919 % 1000:03}" for number in range(50)]
    for name in names:
        (content / name).write_text(name)
    whole = archived(content)
    monkeypatch.setattr(local_store, "_SORTED_AT_ONCE", 7)
    assert archived(content) == whole
    assert [member.name for member in members(content)][3:] == [f"/{name}" for name in sorted(names)]


def test_other_threads_run_while_a_million_names_are_sorted() -> None:
    turns, is_over = 0, threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not is_over.is_set():
            turns += 1
            time.sleep(0)  # releases the interpreter's lock

    children = [(b"%07d" % (number * 7919 % (1 << 20)), 0) for number in range(1 << 20)]
    thread = threading.Thread(target=take_turns)
    thread.start()
    try:
        before = turns
        in_order = local_store._in_order(children)
        taken = turns - before
    finally:
        is_over.set()
        thread.join()
    assert in_order == sorted(children)
    assert taken > 10
