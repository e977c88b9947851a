import gzip
import hashlib
import io
import os
import threading
from pathlib import Path

import pytest
import zstandard

from nixery.closure import PathInfo, StorePath
from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.packing.archive import Archive
from nixery.packing.compression import Compression, compression
from nixery.packing.contents import add_store_paths
from nixery.packing.local_store import LocalStore
from nixery.packing.packer import AddContents, BackgroundStage, LayerPacker


def pack(contents: AddContents, way: Compression | None = None) -> tuple[bytes, Digest]:
    sink = io.BytesIO()
    diff_id = LayerPacker(way or compression("gzip")).pack(contents, sink, lambda: None)
    return sink.getvalue(), diff_id


def nothing(_: Archive) -> None:
    """Add nothing."""


def file_of(content: bytes) -> AddContents:
    def add(archive: Archive) -> None:
        archive.directory(b"d")
        archive.file(b"d/f", 0o444, content)

    return add


def test_the_diff_id_is_of_the_uncompressed_archive() -> None:
    compressed, diff_id = pack(file_of(os.urandom(3_000_000)))
    assert hashlib.sha256(gzip.decompress(compressed)).hexdigest() == diff_id.hex


def test_the_diff_id_is_that_of_any_compression() -> None:
    contents = file_of(os.urandom(1_000_000) * 3)
    _, diff_id = pack(contents)
    for way in (compression("gzip", 0), compression("zstd"), compression("zstd", 7)):
        assert pack(contents, way)[1] == diff_id
    blob, _ = pack(contents, compression("zstd"))
    assert zstandard.ZstdDecompressor().decompressobj().decompress(blob) == gzip.decompress(pack(contents)[0])


def test_same_contents_give_same_bytes() -> None:
    def add(archive: Archive) -> None:
        archive.directory(b"etc")
        archive.file(b"etc/passwd", 0o644, b"root" * 100_000)
        archive.symlink(b"bin", b"usr/bin")

    assert pack(add) == pack(add)


def test_a_store_with_hard_links_gives_the_same_bytes(tmp_path: Path) -> None:
    path = PathInfo(StorePath("a" * 32 + "-p"), "", 1 << 20, ())
    directory = tmp_path / path.path.base_name
    directory.mkdir()
    first, second = directory / "1", directory / "2"
    first.write_bytes(b"same" * 1000)
    second.write_bytes(b"same" * 1000)

    def add(archive: Archive) -> None:
        with LocalStore(os.fsencode(tmp_path)) as contents:
            add_store_paths(archive, [path], contents)

    plain = pack(add)
    second.unlink()
    os.link(first, second)
    assert pack(add) == plain


def test_gzip_has_neither_time_nor_name() -> None:
    compressed, _ = pack(nothing)
    assert compressed[:4] == b"\x1f\x8b\x08\x00"
    assert compressed[4:8] == bytes(4)


def test_the_check_can_end_the_packing() -> None:
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LayerPacker(compression("gzip")).pack(nothing, io.BytesIO(), check)


def test_the_packers_identity_includes_that_of_the_compression() -> None:
    way = compression("gzip")
    assert LayerPacker(way).identity == LayerPacker(compression("gzip")).identity
    assert way.identity in LayerPacker(way).identity


class FullDisk(io.BytesIO):
    def write(self, _: object, /) -> int:
        raise StorageError("no space left")


def test_a_failing_sink_ends_the_packing() -> None:
    with pytest.raises(StorageError, match="no space"):
        LayerPacker(compression("gzip")).pack(file_of(os.urandom(5 << 20)), FullDisk(), lambda: None)


TIMEOUT = 10


def test_pieces_are_processed_in_order() -> None:
    done: list[int] = []
    with BackgroundStage[int](done.append) as behind:
        for number in range(100):
            behind.give(number)
            # So the memory of all pieces but the last is free again.
            assert done[:number] == list(range(number))
        behind.wait()
        assert done == list(range(100))


def test_a_piece_is_processed_while_the_caller_makes_the_next() -> None:
    made = threading.Event()
    seen: list[bool] = []
    with BackgroundStage[int](lambda _: seen.append(made.wait(TIMEOUT))) as behind:
        behind.give(1)
        made.set()
    assert seen == [True]


def test_a_failure_is_raised_with_the_next_piece() -> None:
    def fail(piece: int) -> None:
        raise ValueError(piece)

    with BackgroundStage[int](fail) as behind:
        behind.give(1)
        with pytest.raises(ValueError, match="1"):
            behind.give(2)
        behind.wait()


def test_a_failure_of_the_last_piece_is_raised_by_waiting() -> None:
    def fail(piece: int) -> None:
        raise ValueError(piece)

    with BackgroundStage[int](fail) as behind:
        behind.give(1)
        with pytest.raises(ValueError, match="1"):
            behind.wait()


def test_a_background_stage_leaves_no_thread_running() -> None:
    threads = threading.active_count()
    done: list[int] = []
    with BackgroundStage[int](done.append) as behind:
        behind.give(1)
    assert done == [1]
    assert threading.active_count() == threads
