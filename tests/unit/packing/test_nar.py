import hashlib
import itertools
import os
import subprocess
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixery.closure import PathInfo
from nixery.errors import NarRefused, UnsafeContents
from nixery.packing import nar as nar_module
from nixery.packing.archive import Archive
from nixery.packing.local_store import LocalStore
from nixery.packing.nar import Piece, add_nar, list_nar, read_nar
from tests.support.nar import (
    PATH,
    Executable,
    Symlink,
    Tree,
    cut,
    directory,
    entry,
    file,
    info_of,
    nar_of,
    string,
    strings,
    symlink,
    whole,
    write_tree,
)

_NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."} and b".wh." not in name
)
_TREES: st.SearchStrategy[Tree] = st.recursive(
    st.binary(max_size=40)
    | st.sampled_from([b"x" * 300, bytes(70_000)])
    | st.builds(Executable, st.binary(max_size=40))
    | st.builds(Symlink, st.binary(min_size=1, max_size=120).filter(lambda target: b"\0" not in target)),
    lambda below: st.dictionaries(_NAMES, below, max_size=6),
    max_leaves=20,
)


def packed(add: Callable[[Archive], object]) -> bytes:
    content = bytearray()
    archive = Archive(content.extend)
    add(archive)
    content.extend(archive.end())
    return bytes(content)


def from_nar(nar: bytes, size: int = 1 << 16) -> bytes:
    return packed(lambda archive: add_nar(archive, info_of(nar), cut(nar, size)))


def dumped(path: Path) -> bytes:
    return subprocess.run(("nix-store", "--dump", str(path)), capture_output=True, check=True).stdout


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(_TREES, st.sampled_from([1, 7, 64, 1000, 1 << 16, 1 << 20]))
def test_an_archive_from_a_nar_equals_one_from_the_store(tree: Tree, size: int) -> None:
    with tempfile.TemporaryDirectory() as store:
        place = Path(store, PATH.base_name)
        write_tree(place, tree)
        nar = dumped(place)
        assert nar == nar_of(tree)
        with LocalStore(os.fsencode(store)) as contents:
            expected = packed(lambda archive: contents.add(archive, info_of(nar)))
    assert from_nar(nar, size) == expected


def test_a_tree_deeper_than_the_recursion_limit_is_read() -> None:
    node = file(b"x")
    for _ in range(1500):
        node = directory(entry(b"d", node))
    listing = list_nar(info_of(whole(node)), cut(whole(node)))
    assert [name for name, _ in listing.directory(b"/".join([b"d"] * 1499)).names()] == [b"d"]


@pytest.mark.parametrize("size", [1, 8, 511, 1 << 16])
def test_the_cuts_between_pieces_change_nothing(size: int) -> None:
    nar = nar_of(
        {b"a" * 200: Symlink(b"t" * 4000), b"b": {b"c": bytes(range(256)) * 100}, b"d": {}, b"e": b""}
    )
    assert from_nar(nar, size) == from_nar(nar, len(nar))


def test_empty_pieces_change_nothing() -> None:
    nar = nar_of({b"a": b"content"})
    pieces = itertools.chain.from_iterable((b"", nar[at : at + 5]) for at in range(0, len(nar), 5))
    assert packed(lambda archive: add_nar(archive, info_of(nar), pieces)) == from_nar(nar)


def refused(pieces: Iterable[Piece], info: PathInfo) -> str:
    messages = []
    for read in (list_nar, lambda info, pieces: add_nar(Archive(lambda _: None), info, pieces)):
        pieces, copy = itertools.tee(pieces)
        with pytest.raises(NarRefused) as caught:
            read(info, copy)
        assert str(PATH) in str(caught.value)
        messages.append(caught.value.reason)
    assert messages[0] == messages[1]
    return messages[0]


_VALID = nar_of({b"a": b"content", b"b": Symlink(b"a"), b"c": {b"d": Executable(b"program")}})


def test_every_cut_nar_is_refused() -> None:
    for length in range(len(_VALID)):
        reason = refused([_VALID[:length]], info_of(_VALID))
        assert "ends" in reason or "does not begin" in reason


def test_a_cut_nar_is_refused_even_if_it_is_registered_so() -> None:
    for length in range(len(_VALID)):
        refused([_VALID[:length]], info_of(_VALID[:length]))


def test_every_changed_bit_is_refused() -> None:
    for position in range(len(_VALID)):
        changed = bytearray(_VALID)
        changed[position] ^= 1
        refused([bytes(changed)], info_of(_VALID))


def test_an_endless_nar_is_refused_once_it_exceeds_its_size() -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        yield strings(b"nix-archive-1", b"(", b"type", b"regular", b"contents") + (1 << 62).to_bytes(
            8, "little"
        )
        while True:
            taken += 1
            yield bytes(1 << 16)

    with pytest.raises(NarRefused, match=r"larger than the registered size|more than the 1,000,000 bytes"):
        list_nar(PathInfo(PATH, "0" * 64, 1_000_000, ()), endless())
    assert taken < 17


def test_an_endless_nar_of_entries_is_refused_once_it_exceeds_its_size() -> None:
    def endless() -> Iterator[bytes]:
        yield strings(b"nix-archive-1", b"(", b"type", b"directory")
        for number in itertools.count():
            yield entry(b"%020d" % number, file(b""))

    with pytest.raises(NarRefused, match="more than the 1,000,000 bytes"):
        list_nar(PathInfo(PATH, "0" * 64, 1_000_000, ()), endless())


def test_the_hash_is_checked() -> None:
    info = PathInfo(PATH, hashlib.sha256(b"other").hexdigest(), len(_VALID), ())
    assert refused([_VALID], info) == "its hash is not the registered one"


_BAD_NAMES = (b"", b".", b"..", b"/", b"a/b", b"../a", b"\0", b"a\0b", b"x" * 256)

_HOSTILE = {
    "nothing": b"",
    "no magic": _VALID[24:],
    "other magic": string(b"nix-archive-2") + _VALID[24:],
    "twice": _VALID + _VALID,
    "trailing zeros": _VALID + bytes(8),
    "trailing byte": _VALID + b"x",
    "another node": _VALID + file(b""),
    "another store path": _VALID + string(b")") + string(b"entry"),
    "entry after the end": whole(directory()) + string(b")") + entry(b"b" * 32 + b"-q", file(b"")),
    "ends of the store": whole(directory()) + strings(b")", b")", b")"),
    **{f"name {name!r}"[:40]: whole(directory(entry(name, file(b"")))) for name in _BAD_NAMES},
    "duplicates": whole(directory(entry(b"a", file(b"")), entry(b"a", file(b"")))),
    "unsorted": whole(directory(entry(b"b", file(b"")), entry(b"a", file(b"")))),
    "sorted as text": whole(
        directory(entry("\U00010000".encode(), file(b"")), entry("\uffff".encode(), file(b"")))
    ),
    "duplicate after a directory": whole(directory(entry(b"a", directory()), entry(b"a", file(b"")))),
    "unsorted after a directory": whole(directory(entry(b"b", directory()), entry(b"a", file(b"")))),
    "unknown type": whole(strings(b"(", b"type", b"fifo", b")")),
    "no type": whole(strings(b"(", b")")),
    "no contents": whole(strings(b"(", b"type", b"regular", b")")),
    "executable is something": whole(
        strings(b"(", b"type", b"regular", b"executable", b"x", b"contents", b"", b")")
    ),
    "executable after contents": whole(
        strings(b"(", b"type", b"regular", b"contents", b"", b"executable", b"", b")")
    ),
    "contents twice": whole(strings(b"(", b"type", b"regular", b"contents", b"", b"contents", b"", b")")),
    "two types": whole(strings(b"(", b"type", b"directory", b"type", b"directory", b")")),
    "node before name": whole(
        directory(strings(b"entry", b"(", b"node") + file(b"") + strings(b"name", b"a", b")"))
    ),
    "entry without node": whole(directory(strings(b"entry", b"(", b"name", b"a", b")"))),
    "empty target": whole(symlink(b"")),
    "target with a zero": whole(symlink(b"a\0b")),
    "long target": whole(symlink(b"a" * 4096)),
    "padding of a name": whole(directory(entry(b"a", file(b"")))).replace(
        b"a" + bytes(7), b"a" + bytes(6) + b"x"
    ),
    "padding of a content": whole(file(b"content")).replace(b"content\0", b"contentx"),
    "padding of a target": whole(symlink(b"content")).replace(b"content\0", b"contentx"),
    "padding of a keyword": _VALID.replace(b"regular\0", b"regularx"),
    "unaligned length": whole(file(b"content")).replace(
        b"\x07" + bytes(7) + b"content", b"\x06" + bytes(7) + b"content"
    ),
    **{
        f"{what} of {number} bytes": nar.replace(
            b"\x0b" + bytes(7) + b"hello world", number.to_bytes(8, "little") + b"hello world"
        )
        for what, nar in {
            "content": whole(file(b"hello world")),
            "name": whole(directory(entry(b"hello world", file(b"")))),
            "target": whole(symlink(b"hello world")),
        }.items()
        for number in ((1 << 32) + 11, (1 << 63) - 1, (1 << 63) + 11, (1 << 64) - 1)
    },
}


@pytest.mark.parametrize("nar", _HOSTILE.values(), ids=_HOSTILE)
@pytest.mark.parametrize("size", [13, 1 << 20])
def test_a_malformed_nar_is_refused_even_if_it_is_registered(nar: bytes, size: int) -> None:
    refused([nar[at : at + size] for at in range(0, len(nar), size)], info_of(nar))


def test_names_that_delete_files_are_refused() -> None:
    with pytest.raises(UnsafeContents, match=r"\.wh\."):
        from_nar(nar_of({b".wh.a": b""}))


def test_long_names_are_refused() -> None:
    node = file(b"")
    for _ in range(20):
        node = directory(entry(b"d" * 255, node))
    nar = whole(node)
    with pytest.raises(UnsafeContents, match="more than 4,095 bytes"):
        list_nar(info_of(nar), cut(nar))


def many(count: int, target: bytes) -> Iterator[bytes]:
    """Yield the pieces of a directory with symlinks."""
    yield strings(b"nix-archive-1", b"(", b"type", b"directory")
    for number in range(count):
        yield entry(b"%08d" % number, symlink(target))
    yield string(b")")


@pytest.mark.parametrize(("count", "target"), [(1 << 10, b"x"), (20, b"x" * 4095)])
def test_a_listing_is_bounded(monkeypatch: pytest.MonkeyPatch, count: int, target: bytes) -> None:
    monkeypatch.setattr(nar_module, "MOST_BYTES", 1 << 16)
    info = PathInfo(PATH, "0" * 64, 1 << 40, ())
    with pytest.raises(UnsafeContents, match="very long ones"):
        list_nar(info, many(count, target))


def test_the_memory_does_not_grow_with_the_size() -> None:
    chunk = os.urandom(1 << 18)
    size = len(chunk) << 9
    head = strings(
        b"nix-archive-1", b"(", b"type", b"directory", b"entry", b"(", b"name", b"a", b"node", b"(", b"type"
    )
    head += strings(b"regular", b"contents") + size.to_bytes(8, "little")
    tail = strings(b")", b")", b")")

    def pieces() -> Iterator[Piece]:
        yield head
        yield from itertools.repeat(memoryview(chunk), 1 << 9)
        yield tail

    digest = hashlib.sha256()
    for piece in pieces():
        digest.update(piece)
    info = PathInfo(PATH, digest.hexdigest(), len(head) + size + len(tail), ())
    archive = Archive(lambda _: None)
    tracemalloc.start()
    try:
        add_nar(archive, info, pieces())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20 < size


@pytest.mark.parametrize("size", [5, 1 << 16])
def test_the_beginning_of_a_file_is_read(size: int) -> None:
    nar = nar_of({b"a": {b"b": b"small", b"c": bytes(1000) + b"x" * 100_000}, b"b": b"other"})
    for name, limit, expected in (
        (b"a/b", 5, b"small"),
        (b"a/b", 3, b"sma"),
        (b"b", 5, b"other"),
        (b"a/c", 1001, bytes(1000) + b"x"),
        (b"a/c", 101_000, bytes(1000) + b"x" * 100_000),
    ):
        assert read_nar(info_of(nar), cut(nar, size), name, limit) == expected
    single = nar_of(b"content")
    assert read_nar(info_of(single), cut(single, size), b"", 4) == b"cont"
    with pytest.raises(NarRefused, match="no file a/d"):
        read_nar(info_of(nar), cut(nar, size), b"a/d", 5)


def test_an_error_names_the_cache_if_it_is_known() -> None:
    assert str(NarRefused(str(PATH), "it ends early", "https://cache.example")) == (
        f"the binary cache https://cache.example serves a NAR of {PATH} that is refused: it ends early; retry, or "
        "remove the cache from the substituters of Nix's configuration"
    )
