import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from nixery.closure import StorePath
from nixery.errors import StorageError, UnsafeContents
from nixery.packing import closure_files
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.contents import Name
from nixery.packing.local_store import LocalStore

PATH = StorePath("a" * 32 + "-p")
OTHER = StorePath("b" * 32 + "-other")
# In the store, but in no image.
FOREIGN = StorePath("c" * 32 + "-foreign")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    for path in (PATH, OTHER, FOREIGN):
        (store / path.base_name / "d").mkdir(parents=True)
        (store / path.base_name / "d" / "file").write_text(path.name)
    (tmp_path / "secret").write_text("secret")
    return store


@pytest.fixture(params=["openat2", "by hand"])
def contents(request: pytest.FixtureRequest, store: Path) -> Iterator[LocalStore]:
    with LocalStore(bytes(store), emulated=request.param == "by hand") as contents:
        yield contents


@pytest.fixture
def files(contents: LocalStore) -> ClosureFiles:
    return ClosureFiles([PATH, OTHER], contents)


def link(store: Path, target: str, name: str = "link") -> bytes:
    place = store / PATH.base_name / name
    place.symlink_to(target)
    return f"{PATH}/{name}".encode()


def read(files: ClosureFiles, name: bytes) -> bytes | None:
    return files.read(name, 100)


def test_files_and_directories_of_the_closure(files: ClosureFiles) -> None:
    directory, file = f"{PATH}/d".encode(), f"{PATH}/d/file".encode()
    assert files.exists(directory)
    assert files.is_directory(directory)
    assert files.names(directory) == [Name(b"file", is_directory=False)]
    assert files.names(str(PATH).encode()) == [Name(b"d", is_directory=True)]
    assert read(files, file) == b"p"
    assert (files.exists(file), files.is_directory(file)) == (True, False)
    assert read(files, f"{PATH}/d/none".encode()) is None


@pytest.mark.parametrize(
    "target",
    [
        "d/file",
        "./d//./file",
        "../" + PATH.base_name + "/d/file",
        "d/../d/file",
        f"{OTHER}/../{PATH.base_name}/d/file",
        f"/nix/../nix/./store//{PATH.base_name}/d/file",
        f"/../..{PATH}/d/file",
        "../../../.." + str(PATH) + "/d/file",
        "loop/loop/loop/d/file",
        "second",
    ],
)
def test_links_that_stay_in_the_closure_are_followed(files: ClosureFiles, store: Path, target: str) -> None:
    link(store, ".", "loop")
    link(store, "d/file", "second")
    assert read(files, link(store, target)) == b"p"


def test_links_to_another_path_of_the_closure_are_followed(files: ClosureFiles, store: Path) -> None:
    assert read(files, link(store, f"{OTHER}/d/file")) == b"other"
    assert read(files, link(store, f"../{OTHER.base_name}", "whole") + b"/d/file") == b"other"
    assert files.are_one(f"{PATH}/whole/d".encode(), f"{OTHER}/d".encode())
    assert not files.are_one(f"{PATH}/whole/none".encode(), f"{OTHER}/none".encode())


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/self/root" + str(PATH) + "/d/file",
        "/proc/self/cwd",
        "/dev/zero",
        "/",
        "/nix",
        "/nix/store",
        "..",
        "../..",
        "../../secret",
        f"{FOREIGN}/d/file",
        f"../{FOREIGN.base_name}/d/file",
        f"/nix/store/.links/../{PATH.base_name}/d/file",
        f"{PATH}/d/file/",
        f"{PATH}/d/file/.",
        f"{PATH}/d/file/../file",
        "nowhere",
        "nowhere/../d/file",
        "link",
        "x" * 300,
        "d/" * 2000 + "file",
    ],
)
def test_symlinks_out_of_the_closure_count_as_missing(files: ClosureFiles, store: Path, target: str) -> None:
    name = link(store, target)
    assert not files.exists(name)
    assert not files.is_directory(name)
    assert read(files, name) is None
    with pytest.raises(StorageError, match="not a directory of the image's closure"):
        files.names(name)


def test_symlinks_of_this_machine_are_not_followed(files: ClosureFiles, store: Path, tmp_path: Path) -> None:
    """The build machine has a symlink into the closure that the image does not have."""
    (tmp_path / "way").symlink_to(store / PATH.base_name)
    name = link(store, str(tmp_path / "way" / "d" / "file"))
    assert (store / PATH.base_name / "link").read_text() == "p"
    assert not files.exists(name)


def test_names_outside_of_the_store_count_as_missing(files: ClosureFiles, tmp_path: Path) -> None:
    for name in (
        b"/etc/passwd",
        b"etc/passwd",
        b"",
        b"/",
        bytes(tmp_path / "secret"),
        b"a" * 32 + b"-p/d/file",
    ):
        assert not files.exists(name)


def test_a_store_path_can_be_a_link_itself(store: Path) -> None:
    whole, out = StorePath("d" * 32 + "-whole"), StorePath("f" * 32 + "-out")
    (store / whole.base_name).symlink_to(f"{PATH}/d/file")
    (store / out.base_name).symlink_to("/etc/passwd")
    with LocalStore(bytes(store)) as contents:
        files = ClosureFiles([PATH, whole, out], contents)
        assert read(files, str(whole).encode()) == b"p"
        assert read(files, str(out).encode()) is None


@pytest.mark.parametrize("length", [39, 40])
def test_chains_of_symlinks_are_limited(files: ClosureFiles, store: Path, length: int) -> None:
    (store / PATH.base_name / "0").symlink_to("d/file")
    for number in range(length):
        (store / PATH.base_name / str(number + 1)).symlink_to(str(number))
    last = store / PATH.base_name / str(length)
    # As many symlinks as the kernel follows.
    assert files.exists(f"{PATH}/{length}".encode()) == last.exists() == (length < 40)


def test_names_that_are_not_utf_8(files: ClosureFiles, store: Path) -> None:
    (store / PATH.base_name / "d" / os.fsdecode(b"\xff")).write_text("odd")
    assert Name(b"\xff", is_directory=False) in files.names(f"{PATH}/d".encode())
    assert read(files, f"{PATH}/d/".encode() + b"\xff") == b"odd"


def test_only_regular_files_are_opened(
    files: ClosureFiles, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = store / PATH.base_name
    os.mkfifo(directory / "pipe")
    monkeypatch.chdir(directory)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    for name in ("pipe", "socket", "d", "link"):
        if name == "link":
            link(store, "pipe")
        with pytest.raises(UnsafeContents, match=rf"{name} cannot be in an image: .* regular file"):
            read(files, f"{PATH}/{name}".encode())
        assert files.read_beginning(f"{PATH}/{name}".encode(), 1) is None


def test_a_file_is_read_up_to_a_size(files: ClosureFiles, store: Path) -> None:
    file = store / PATH.base_name / "d" / "file"
    file.write_bytes(b"beginning")
    name = f"{PATH}/d/file".encode()
    assert [files.read_beginning(name, size) for size in (0, 5, 9, 10)] == [
        b"",
        b"begin",
        b"beginning",
        b"beginning",
    ]
    assert files.read_beginning(f"{PATH}/d/none".encode(), 5) is None
    assert files.read_beginning(f"{FOREIGN}/d/file".encode(), 5) is None


def test_a_large_file_is_not_read(files: ClosureFiles, store: Path) -> None:
    file = store / PATH.base_name / "d" / "file"
    file.write_bytes(bytes(100))
    assert read(files, f"{PATH}/d/file".encode()) == bytes(100)
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(UnsafeContents, match="more than 100 bytes"):
        read(files, f"{PATH}/d/file".encode())


def swapped(
    monkeypatch: pytest.MonkeyPatch, contents: LocalStore, after: int, swap: Callable[[], object]
) -> None:
    """Run an action after a number of calls of ``open``."""
    real, calls = contents._beneath.open, 0

    def opened(name: bytes, flags: int) -> int:
        nonlocal calls
        calls += 1
        descriptor = real(name, flags)
        if calls == after:
            swap()
        return descriptor

    monkeypatch.setattr(contents._beneath, "open", opened)


def test_a_name_that_becomes_a_link_between_stat_and_open(
    files: ClosureFiles, contents: LocalStore, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = store / PATH.base_name / "d"

    def swap() -> None:
        directory.rename(tmp_path / "moved")
        (tmp_path / "file").write_text("secret")
        directory.symlink_to(tmp_path)

    swapped(monkeypatch, contents, 1, swap)
    with pytest.raises(StorageError, match=r"cannot read .*d/file: "):
        read(files, f"{PATH}/d/file".encode())


def test_a_file_that_becomes_a_pipe_between_stat_and_open(
    files: ClosureFiles, contents: LocalStore, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = store / PATH.base_name / "d" / "file"

    def swap() -> None:
        file.unlink()
        os.mkfifo(file)

    swapped(monkeypatch, contents, 1, swap)
    with pytest.raises(StorageError, match="not a regular file"):
        read(files, f"{PATH}/d/file".encode())


def test_a_directory_that_becomes_a_link_between_stat_and_listing(
    files: ClosureFiles, contents: LocalStore, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = store / PATH.base_name / "d"

    def swap() -> None:
        directory.rename(tmp_path / "moved")
        directory.symlink_to(tmp_path)

    swapped(monkeypatch, contents, 1, swap)
    with pytest.raises(StorageError, match="cannot read"):
        files.names(f"{PATH}/d".encode())


def test_listings_of_one_large_directory_are_bounded(
    files: ClosureFiles, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closure_files, "_MOST_LISTED", 10)
    for number in range(10):
        (store / PATH.base_name / "d" / str(number)).touch()
    with pytest.raises(UnsafeContents, match="more than 10 names"):
        files.names(f"{PATH}/d".encode())


def test_the_bytes_of_names_are_bounded(
    files: ClosureFiles, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = f"{PATH}/d".encode()
    monkeypatch.setattr(closure_files, "_MOST_BYTES", 2 * len(directory) + len("file") + 100)
    files.names(directory)
    (store / PATH.base_name / "d" / ("x" * 101)).touch()
    with pytest.raises(UnsafeContents, match="bytes together"):
        files.names(directory)


@pytest.mark.parametrize("step", ["d/../", "./", "/", "../"])
def test_look_ups_are_bounded(
    files: ClosureFiles, store: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(closure_files, "_MOST_LOOK_UPS", 50)
    name = link(store, step * 100 + "d")
    with pytest.raises(UnsafeContents, match="more than 50 look-ups"):
        files.exists(name)


def test_a_long_name_counts_as_many_look_ups(
    files: ClosureFiles, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each step of such a link walks all directories of the steps before.
    monkeypatch.setattr(closure_files, "_MOST_LOOK_UPS", 2000)
    deep = "/".join(["a"] * 500)
    (store / PATH.base_name / deep).mkdir(parents=True)
    assert files.exists(link(store, "d/file", "usual"))
    with pytest.raises(UnsafeContents, match="take more than 2,000 look-ups"):
        files.is_directory(link(store, deep))


@pytest.mark.parametrize("failure", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_a_failed_look_up_does_not_count_as_missing(
    files: ClosureFiles, contents: LocalStore, monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    """Otherwise an image without the file would be built and cached."""

    def fail(*_: object) -> int:
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(contents._beneath, "open", fail)
    with pytest.raises(StorageError, match=os.strerror(failure)):
        files.exists(f"{PATH}/d".encode())


def test_an_unreadable_symlink_does_not_count_as_missing(
    files: ClosureFiles, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    name = link(store, "d")
    monkeypatch.setattr(os, "readlink", fail)
    with pytest.raises(StorageError, match=r"cannot read .*link: "):
        files.exists(name)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("closure", [[], [PATH]])
def test_no_descriptor_is_left_open(store: Path, closure: Sequence[StorePath]) -> None:
    before = open_descriptors()
    with LocalStore(bytes(store)) as contents:
        files = ClosureFiles(closure, contents)
        files.exists(link(store, f"{OTHER}/d/file"))
        read(files, f"{PATH}/d/file".encode())
    assert open_descriptors() == before


def test_a_missing_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*none: No such file"):
        LocalStore(bytes(tmp_path / "none"))
