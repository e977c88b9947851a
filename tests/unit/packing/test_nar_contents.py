import errno
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from nixery.closure import StorePath
from nixery.errors import NarRefused
from nixery.packing.archive import Archive
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.contents import JoinedContents, add_store_paths
from nixery.packing.listing import Listing
from nixery.packing.local_store import LocalStore
from nixery.packing.nar import Piece
from nixery.packing.nar_contents import NarContents
from tests.support.nar import PATH, Executable, Symlink, Tree, cut, info_of, nar_of, write_tree

OTHER = StorePath("b" * 32 + "-other")
FILE = StorePath("c" * 32 + "-file")
TREES: Mapping[StorePath, Tree] = {
    PATH: {
        b"bin": {
            b"sh": Symlink(f"{OTHER}/bin/bash".encode()),
            b"out": Symlink(b"/etc/passwd"),
            b"loop": Symlink(b"loop"),
        },
        b"etc": {b"passwd": b"root", b"empty": b"", b"large": b"x" * 100_000},
        b"lib": Symlink(b"etc"),
        b"many": {b"%d" % number: b"" for number in range(2000)},
    },
    OTHER: {b"bin": {b"bash": Executable(b"program" * 5000)}, b"\xff": {}},
    FILE: b"itself" * 10_000,
}


class Cache:
    """A binary cache, with what is asked of it."""

    def __init__(self, trees: Mapping[StorePath, Tree] = TREES) -> None:
        self.nars = {path: nar_of(tree) for path, tree in trees.items()}
        self.infos = [info_of(nar, path) for path, nar in self.nars.items()]
        self.listings: dict[StorePath, Listing] = {}
        self.fetched: list[StorePath] = []
        self.errors: list[BaseException] = []
        self.contents = NarContents(self.infos, self.listings, self.open)

    @contextmanager
    def open(self, path: StorePath) -> Iterator[Iterator[Piece]]:
        self.fetched.append(path)
        try:
            yield cut(self.nars[path], 1000)
        except NarRefused as error:
            self.errors.append(error)
            raise


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    for path, tree in TREES.items():
        write_tree(tmp_path / path.base_name, tree)
    with LocalStore(bytes(tmp_path)) as store:
        yield store


def layer(contents: NarContents | LocalStore | JoinedContents, cache: Cache) -> bytes:
    content = bytearray()
    archive = Archive(content.extend)
    add_store_paths(archive, cache.infos, contents)
    content.extend(archive.end())
    return bytes(content)


def test_a_layer_equals_that_of_the_store(cache: Cache, store: LocalStore) -> None:
    assert layer(cache.contents, cache) == layer(store, cache)
    assert cache.fetched == [PATH, OTHER, FILE]


def test_a_mixed_layer_equals_that_of_the_store(cache: Cache, store: LocalStore) -> None:
    mixed = JoinedContents(store, {OTHER.base_name.encode()}, cache.contents)
    assert layer(mixed, cache) == layer(store, cache)
    assert cache.fetched == [PATH, FILE]
    files = ClosureFiles(TREES, mixed)
    assert files.program(f"{PATH}/bin/sh".encode()) == f"{OTHER}/bin/bash".encode()
    with pytest.raises(OSError, match="No such file"):
        mixed.look(b"d" * 32 + b"-none")


def test_listings_of_packed_paths_are_known(cache: Cache) -> None:
    layer(cache.contents, cache)
    files = ClosureFiles(TREES, cache.contents)
    assert files.program(f"{PATH}/bin/sh".encode()) == f"{OTHER}/bin/bash".encode()
    assert files.read(f"{PATH}/etc/passwd".encode(), 100) == b"root"
    assert cache.fetched == [PATH, OTHER, FILE]
    assert cache.listings.keys() == TREES.keys()


def names_of(tree: Tree, name: bytes) -> Iterator[bytes]:
    yield name
    if isinstance(tree, Mapping):
        for child, below in tree.items():
            yield from names_of(below, name + b"/" + child)


def answers(contents: LocalStore | NarContents, name: bytes) -> list[object]:
    """All that the contents say of a name, with the errors."""
    found: list[object] = []
    for ask in (
        lambda: normal(*contents.look(name)),
        lambda: sorted(contents.names(name)),
        lambda: contents.read(name, 50_000),
        lambda: contents.read(name, 3),
    ):
        try:
            found.append(ask())
        except OSError as error:
            # A name that is no directory or no file: the kernel's errors depend on the call.
            found.append(
                "refused" if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EINVAL} else error.errno
            )
    return found


def normal(mode: int, target: bytes) -> tuple[int, int, bytes]:
    return stat.S_IFMT(mode), (mode & stat.S_IXUSR if stat.S_ISREG(mode) else 0), target


def test_every_answer_equals_that_of_the_store(cache: Cache, store: LocalStore) -> None:
    for path, tree in TREES.items():
        for name in names_of(tree, path.base_name.encode()):
            for asked in (name, name + b"/none", name + b"/none/none"):
                assert answers(cache.contents, asked) == answers(store, asked), asked


def test_a_missing_listing_is_fetched_once(cache: Cache) -> None:
    files = ClosureFiles(TREES, cache.contents)
    assert files.exists(f"{PATH}/bin/sh".encode())
    assert not files.exists(f"{PATH}/bin/out".encode())
    assert not files.exists(f"{PATH}/bin/loop".encode())
    assert cache.fetched == [PATH, OTHER]


def test_a_content_that_is_not_kept_is_fetched_once(cache: Cache) -> None:
    name = f"{PATH.base_name}/etc/large".encode()
    assert cache.contents.read(name, 100) == b"x" * 100
    assert cache.contents.read(name, 50) == b"x" * 50
    assert cache.fetched == [PATH] * 2
    assert cache.contents.read(name, 200_000) == b"x" * 100_000
    assert cache.fetched == [PATH] * 3
    assert cache.contents.read(f"{PATH.base_name}/etc/empty".encode(), 10) == b""
    assert cache.fetched == [PATH] * 3


def test_a_listing_that_is_being_fetched_is_waited_for(cache: Cache) -> None:
    """The root file system is planned while layers are packed."""
    began, may_end = threading.Event(), threading.Event()
    opened = cache.open

    @contextmanager
    def slow(path: StorePath) -> Iterator[Iterator[Piece]]:
        with opened(path) as pieces:
            began.set()
            may_end.wait(10)
            yield pieces

    contents = NarContents(cache.infos, cache.listings, slow)
    info = cache.infos[0]
    packing = threading.Thread(target=contents.add, args=(Archive(lambda _: None), info))
    packing.start()
    assert began.wait(10)
    found: list[tuple[int, bytes]] = []
    planning = threading.Thread(target=lambda: found.append(contents.look(PATH.base_name.encode())))
    planning.start()
    may_end.set()
    packing.join()
    planning.join()
    assert found == [(stat.S_IFDIR | 0o555, b"")]
    assert cache.fetched == [PATH]


def test_a_refused_nar_leaves_no_listing(cache: Cache) -> None:
    cache.nars[PATH] = cache.nars[PATH][:-8] + b"\1" * 8
    for _ in range(2):
        with pytest.raises(NarRefused):
            cache.contents.add(Archive(lambda _: None), cache.infos[0])
        with pytest.raises(NarRefused):
            cache.contents.look(PATH.base_name.encode())
    assert not cache.listings
    assert len(cache.errors) == 4


def test_a_listing_that_differs_from_its_nar_is_noticed(cache: Cache) -> None:
    other = Cache({PATH: {b"share": {b"file": b"content" * 10_000}}})
    other.contents.look(PATH.base_name.encode())
    cache.listings[PATH] = other.listings[PATH]
    with pytest.raises(NarRefused, match="no file share/file"):
        cache.contents.read(f"{PATH.base_name}/share/file".encode(), 100_000)
