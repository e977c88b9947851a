import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard

from nixery.closure.store_path import StorePath
from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.packing.compression import Compression, compression
from nixery.packing.entries import Directory, Entry, GeneratedFile, RegularFile, Symlink
from nixery.packing.layer_packer import LayerPacker
from nixery.packing.store_tree import store_entries


def pack(entries: Iterable[Entry], way: Compression | None = None) -> tuple[bytes, Digest]:
    sink = io.BytesIO()
    diff_id = LayerPacker(way or compression("gzip")).pack(entries, sink, lambda: None)
    return sink.getvalue(), diff_id


def file_of(path: Path, content: bytes) -> RegularFile:
    path.write_bytes(content)
    return RegularFile(path.name.encode(), 0o444, len(content), os.fsencode(path))


def test_the_diff_id_is_of_the_uncompressed_archive(tmp_path: Path) -> None:
    compressed, diff_id = pack([Directory(b"d"), file_of(tmp_path / "f", os.urandom(3_000_000))])
    assert hashlib.sha256(gzip.decompress(compressed)).hexdigest() == diff_id.hex


def test_the_diff_id_is_that_of_any_compression(tmp_path: Path) -> None:
    entries: list[Entry] = [Directory(b"d"), file_of(tmp_path / "f", os.urandom(1_000_000) * 3)]
    _, diff_id = pack(entries)
    for way in (compression("gzip", 0), compression("zstd"), compression("zstd", 7)):
        assert pack(entries, way)[1] == diff_id
    blob, _ = pack(entries, compression("zstd"))
    assert zstandard.ZstdDecompressor().decompressobj().decompress(blob) == gzip.decompress(pack(entries)[0])


def test_content_comes_back(tmp_path: Path) -> None:
    contents = {
        f"f{size}": os.urandom(size)
        for size in (
            0,
            1,
            511,
            512,
            513,
            1 << 15,
            (1 << 15) + 1,
            (1 << 20) - 512,
            1 << 20,
            (1 << 20) + 1,
            2_500_000,
        )
    }
    compressed, _ = pack([file_of(tmp_path / name, content) for name, content in contents.items()])
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(compressed))) as archive:
        for member in archive:
            extracted = archive.extractfile(member)
            assert extracted is not None
            assert extracted.read() == contents[member.name]


def test_same_entries_give_same_bytes() -> None:
    entries: list[Entry] = [
        Directory(b"etc"),
        GeneratedFile(b"etc/passwd", b"root" * 100_000),
        Symlink(b"bin", b"usr/bin"),
    ]
    assert pack(entries) == pack(entries)


def test_a_store_with_hard_links_gives_the_same_bytes(tmp_path: Path) -> None:
    path = StorePath("a" * 32 + "-p")
    (tmp_path / path.base_name).mkdir()
    first, second = tmp_path / path.base_name / "1", tmp_path / path.base_name / "2"
    first.write_bytes(b"same" * 1000)
    second.write_bytes(b"same" * 1000)
    plain = pack(store_entries([path], os.fsencode(tmp_path)))
    second.unlink()
    os.link(first, second)
    assert pack(store_entries([path], os.fsencode(tmp_path))) == plain


def test_gzip_has_neither_time_nor_name() -> None:
    compressed, _ = pack([])
    assert compressed[:4] == b"\x1f\x8b\x08\x00"
    assert compressed[4:8] == bytes(4)


@pytest.mark.parametrize("actual", [b"", b"12", b"1234"])
def test_a_file_that_changed_is_an_error(tmp_path: Path, actual: bytes) -> None:
    file = file_of(tmp_path / "f", b"123")
    (tmp_path / "f").write_bytes(actual)
    with pytest.raises(StorageError, match="changed"):
        pack([file])


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize("size", [1 << 15, (1 << 15) + 1, (1 << 20) - 513, (1 << 20) - 512, 3 << 20])
def test_so_is_a_large_one_wherever_it_ends(tmp_path: Path, size: int, more: int) -> None:
    file = file_of(tmp_path / "f", bytes(size))
    (tmp_path / "f").write_bytes(bytes(size + more))
    with pytest.raises(StorageError, match="changed"):
        pack([file])


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        pack([RegularFile(b"f", 0o444, 1, os.fsencode(tmp_path / "gone"))])


def test_the_check_can_end_it() -> None:
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LayerPacker(compression("gzip")).pack([], io.BytesIO(), check)


def test_the_identity_has_that_of_the_compression() -> None:
    way = compression("gzip")
    assert LayerPacker(way).identity == LayerPacker(compression("gzip")).identity
    assert way.identity in LayerPacker(way).identity


class FullDisk(io.BytesIO):
    def write(self, _: object, /) -> int:
        raise StorageError("no space left")


def test_a_sink_that_fails_ends_it(tmp_path: Path) -> None:
    file = file_of(tmp_path / "f", os.urandom(5 << 20))
    with pytest.raises(StorageError, match="no space"):
        LayerPacker(compression("gzip")).pack([file], FullDisk(), lambda: None)
