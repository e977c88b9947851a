from typing import Literal

import isal
import pytest
import zstandard

from nixery.packing.compression import compression

WAYS: list[tuple[Literal["gzip", "zstd"], int]] = [("gzip", 1), ("gzip", 2), ("zstd", 1), ("zstd", 3)]


def test_the_identity_has_name_version_level_and_a_fingerprint() -> None:
    # Recorded once. A different last part means that digests differ between machines.
    zstd = ".".join(map(str, zstandard.ZSTD_VERSION))
    assert compression("gzip").identity == f"gzip isa-l {isal.ISAL_VERSION} 2 08b34179a369bd87"
    assert compression("zstd").identity == f"zstd libzstd {zstd} 3 d556e68676084d64"


def test_every_compression_has_its_own_identity() -> None:
    assert len({compression(name, level).identity for name, level in WAYS}) == len(WAYS)


@pytest.mark.parametrize(("name", "level"), WAYS)
def test_concurrent_streams_give_the_same_bytes(name: Literal["gzip", "zstd"], level: int) -> None:
    way = compression(name, level)
    first, second = way.start(), way.start()
    chunks = [bytes(range(256)) * 4096, b"nixery" * 100_000, b"end"]
    outputs = [(first.compress(chunk), second.compress(memoryview(chunk))) for chunk in chunks]
    outputs.append((first.flush(), second.flush()))
    assert b"".join(one for one, _ in outputs) == b"".join(two for _, two in outputs)


@pytest.mark.parametrize(("name", "last"), [("gzip", 3), ("zstd", 19)])
def test_all_levels_work(name: Literal["gzip", "zstd"], last: int) -> None:
    assert f" {last} " in compression(name, last).identity
