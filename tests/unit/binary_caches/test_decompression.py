from __future__ import annotations

import contextlib
import gzip
import lzma
import tracemalloc
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nixery.binary_caches.decompression import PIECE, USUAL_MEMORY, NeedsMemory, decompressed
from nixery.binary_caches.narinfo import Compression
from tests.fuzz.effort import examples
from tests.support.binary_cache import COMPRESS

CONTENT = bytes(range(256)) * 4000
COMPRESSED = [name for name in COMPRESS if name != "none"]


def cut(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("size", [1 << 20, 1000, 7])
def test_streams_in_pieces_of_any_size(compression: Compression, size: int) -> None:
    pieces = list(decompressed(compression, cut(COMPRESS[compression](CONTENT), size)))
    assert b"".join(pieces) == CONTENT
    assert all(0 < len(piece) <= PIECE for piece in pieces)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("size", [1 << 20, 1])
def test_streams_of_several_members(compression: Compression, size: int) -> None:
    compress = COMPRESS[compression]
    content = compress(b"one") + compress(b"") + compress(b"two")
    assert b"".join(decompressed(compression, cut(content, size))) == b"onetwo"


def test_padding_between_members_of_xz() -> None:
    content = lzma.compress(b"one") + bytes(8) + lzma.compress(b"two") + bytes(4)
    assert b"".join(decompressed("xz", cut(content, 5))) == b"onetwo"


@pytest.mark.parametrize("compression", COMPRESSED)
def test_other_bytes_are_refused(compression: Compression) -> None:
    for content in (b"no stream at all" * 10, COMPRESS[compression](CONTENT) + b"rubbish at the end"):
        with pytest.raises(ValueError, match="cannot be decompressed"):
            list(decompressed(compression, cut(content, 100)))


@pytest.mark.parametrize("compression", ["xz", "bzip2", "gzip"])
def test_a_stream_that_is_cut_off_is_refused(compression: Compression) -> None:
    for content in (b"", COMPRESS[compression](CONTENT)[:-1], COMPRESS[compression](CONTENT)[:20]):
        with pytest.raises(ValueError, match="is cut off"):
            list(decompressed(compression, cut(content, 100)))


@pytest.mark.parametrize("compression", COMPRESS)
def test_memory_is_bounded_whatever_a_stream_becomes(compression: Compression) -> None:
    # One piece becomes all of it.
    content = COMPRESS[compression](bytes(200_000_000)) if compression != "none" else bytes(1000)
    pieces = decompressed(compression, iter([content]))
    tracemalloc.start()
    try:
        for piece in pieces:
            assert len(piece) <= PIECE
        # The window of xz has 8 MiB by default.
        assert tracemalloc.get_traced_memory()[1] < 64 * PIECE
    finally:
        tracemalloc.stop()


def test_a_window_that_is_too_large_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=30)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    content = compressor.compress(bytes(1000)) + compressor.flush()
    with pytest.raises(ValueError, match="cannot be decompressed"):
        list(decompressed("zstd", iter([content])))
    largest = lzma.compress(
        b"x", lzma.FORMAT_XZ, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 28}]
    )
    with pytest.raises(ValueError, match="cannot be decompressed"):
        list(decompressed("xz", iter([largest])))


@examples(200)
@given(st.sampled_from(COMPRESSED), st.binary(max_size=200), st.binary(max_size=60), st.integers(1, 100))
def test_any_bytes_are_decompressed_or_refused(
    compression: Compression, content: bytes, rubbish: bytes, size: int
) -> None:
    stream = COMPRESS[compression](content)
    for hostile in (rubbish, stream + rubbish, stream[: len(rubbish)], stream[:10] + rubbish + stream[10:]):
        with contextlib.suppress(ValueError):
            for piece in decompressed(compression, cut(hostile, size)):
                assert 0 < len(piece) <= PIECE


def test_gzip_of_other_levels() -> None:
    for level in (0, 1, 9):
        assert b"".join(decompressed("gzip", cut(gzip.compress(CONTENT, level), 4096))) == CONTENT


@pytest.mark.parametrize("compression", ["zstd", "xz"])
def test_a_stream_that_needs_much_memory_is_told_apart(compression: Compression) -> None:
    if compression == "zstd":
        parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        content = compressor.compress(CONTENT) + compressor.flush()
    else:
        content = lzma.compress(CONTENT, preset=9)
    assert b"".join(decompressed(compression, iter([content]))) == CONTENT
    with pytest.raises(NeedsMemory, match="with 16 MiB of memory"):
        list(decompressed(compression, iter([content]), USUAL_MEMORY))
