import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nixery.errors import StorageError
from nixery.packing.archive import CHUNK, Archive

# Sizes around the limits of a single read, of gathering, and of a chunk.
SIZES = (0, 1, 511, 512, 513, 1 << 15, (1 << 15) + 1, 1 << 16, CHUNK - 512, CHUNK, CHUNK + 1, 2_500_000)


class Taken:
    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.archive = Archive(lambda chunk: self.chunks.append(bytes(chunk)))

    def end(self) -> bytes:
        self.chunks.append(bytes(self.archive.end()))
        return b"".join(self.chunks)


@contextmanager
def open_file(path: Path, content: bytes) -> Iterator[int]:
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def in_pieces(content: bytes) -> Iterator[memoryview]:
    """Yield pieces in one buffer."""
    buffer = bytearray(70_001)
    for start in range(0, len(content), len(buffer)):
        piece = content[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        yield memoryview(buffer)[: len(piece)]


def test_contents_of_files_and_of_memory_are_archived(tmp_path: Path) -> None:
    contents = {f"f{size}": os.urandom(size) for size in SIZES}
    taken = Taken()
    for name, content in contents.items():
        with open_file(tmp_path / name, content) as descriptor:
            taken.archive.file_from(descriptor, name.encode(), 0o444, len(content))
        taken.archive.file(b"memory/" + name.encode(), 0o644, content)
        taken.archive.file_of(b"pieces/" + name.encode(), 0o644, len(content), in_pieces(content))
    with tarfile.open(fileobj=io.BytesIO(taken.end())) as reader:
        members = reader.getmembers()
        assert len(members) == 3 * len(contents)
        for member in members:
            extracted = reader.extractfile(member)
            assert extracted is not None
            assert extracted.read() == contents[member.name.rpartition("/")[2]]


@pytest.mark.parametrize("size", [700, 50_000, 3_000_000])
def test_all_chunks_but_the_last_have_one_size(tmp_path: Path, size: int) -> None:
    taken = Taken()
    with open_file(tmp_path / "f", bytes(size)) as descriptor:
        for number in range(5_000_000 // size):
            taken.archive.symlink(b"l%d" % number, b"f")
            taken.archive.file_from(descriptor, b"f%d" % number, 0o444, size)
    taken.end()
    *whole, last = map(len, taken.chunks)
    assert len(whole) >= 2
    assert set(whole) == {CHUNK}
    assert last < CHUNK


def test_a_chunk_stays_valid_until_the_next_one_is_full() -> None:
    views: list[memoryview] = []
    copies: list[bytes] = []

    def take(chunk: memoryview) -> None:
        if views:
            assert views[-1] == copies[-1]
        views.append(chunk)
        copies.append(bytes(chunk))

    archive = Archive(take)
    for number in range(40):
        archive.file(b"f%d" % number, 0o444, os.urandom(100_000))
    archive.end()
    assert len(views) == 3


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_file_is_read_from_its_beginning(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    taken = Taken()
    with open_file(tmp_path / "f", content) as descriptor:
        os.lseek(descriptor, 3, os.SEEK_SET)
        taken.archive.file_from(descriptor, b"f", 0o444, size)
    assert taken.end()[512 : 512 + size] == content


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, size: int) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(StorageError, match="cannot read f: Is a directory"):
            Taken().archive.file_from(descriptor, b"f", 0o444, size)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize("size", [1, 1 << 15, (1 << 15) + 1, CHUNK - 513, CHUNK - 512, 3 << 20])
def test_a_file_of_another_size_is_an_error(tmp_path: Path, size: int, more: int) -> None:
    with (
        open_file(tmp_path / "f", bytes(size + more)) as descriptor,
        pytest.raises(StorageError, match="f changed"),
    ):
        Taken().archive.file_from(descriptor, b"f", 0o444, size)


@pytest.mark.parametrize("pieces", [[], [b"12"], [b"12", b"34"], [b"1234"]])
def test_pieces_of_another_size_are_refused(pieces: list[bytes]) -> None:
    with pytest.raises(ValueError, match="f does not have 3 bytes"):
        Taken().archive.file_of(b"f", 0o444, 3, pieces)
