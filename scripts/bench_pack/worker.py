"""One measurement in a separate process: ``python -m scripts.bench_pack.worker``, run by ``scripts.bench_pack``.

Reads a job as JSON from standard input and writes the result as JSON to standard output. The process runs
nothing else, so its resident memory is that of the measurement.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import zstandard

from nixery.closure import PathInfo, StorePath
from nixery.oci.documents import MediaType
from nixery.packing.compression import Compression, Compressor, compression
from nixery.packing.contents import add_store_paths
from nixery.packing.local_store import LocalStore
from nixery.packing.nar_contents import NarContents
from nixery.packing.packer import LayerPacker

# Of the NARs: the level that caches use, and the bytes of a piece.
_NAR_LEVEL = 3
_PIECE = 1 << 17


@dataclass(frozen=True)
class Job:
    """A measurement to make.

    Attributes:
        what: packing in threads or in processes; from NARs in memory, as a binary cache serves them with zstd; or the
            same bytes from memory.
        layers: base names of the store paths in each.
        workers: number of threads or processes.
        name: of the compression.
        level: of the compression; ``None`` for the default.
    """

    what: Literal["threads", "processes", "nars", "memory"]
    layers: list[list[str]]
    workers: int
    name: Literal["gzip", "zstd"] = "gzip"
    level: int | None = None


@dataclass(frozen=True)
class Outcome:
    """A result; times in seconds, sizes in bytes.

    Attributes:
        resident: peak memory.
        uncompressed: known if everything is in memory, else 0.
        digest: of the digests of all layers, compressed and not.
    """

    seconds: float
    processor: float
    resident: int
    uncompressed: int
    compressed: int
    digest: str


class _Counted:
    """Digests and counts bytes as the blob store's writer does, without a disk."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        self.hash.update(data)
        self.size += len(data)


class _Kept:
    """A "compressor" that keeps the chunks it is given: the bytes of a layer, cut as the packer cuts them."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def compress(self, data: bytes | memoryview, /) -> bytes:
        self.chunks.append(bytes(data))
        return b""

    def flush(self) -> bytes:
        return b""


_Layer = tuple[int, str]  # compressed bytes, digests


def _pack(way: Compression, paths: Sequence[str]) -> _Layer:
    sink = _Counted()
    store_paths = [PathInfo(StorePath(path), "", sys.maxsize, ()) for path in paths]
    with LocalStore() as store:
        diff_id = LayerPacker(way).pack(
            lambda archive: add_store_paths(archive, store_paths, store), sink, lambda: None
        )
    return sink.size, f"{diff_id.hex} {sink.hash.hexdigest()}"


def _pack_nars(way: Compression, infos: Sequence[PathInfo], nars: Mapping[StorePath, bytes]) -> _Layer:
    @contextmanager
    def opened(path: StorePath) -> Iterator[Iterator[bytes]]:
        yield iter(zstandard.ZstdDecompressor().read_to_iter(nars[path], write_size=_PIECE))

    contents, sink = NarContents(infos, {}, opened), _Counted()
    diff_id = LayerPacker(way).pack(
        lambda archive: add_store_paths(archive, infos, contents), sink, lambda: None
    )
    return sink.size, f"{diff_id.hex} {sink.hash.hexdigest()}"


def _dumped(layer: Sequence[str], nars: dict[StorePath, bytes]) -> list[PathInfo]:
    infos = []
    for path in map(StorePath, layer):
        nar = subprocess.run(("nix-store", "--dump", str(path)), capture_output=True, check=True).stdout
        infos.append(PathInfo(path, hashlib.sha256(nar).hexdigest(), len(nar), ()))
        nars[path] = zstandard.ZstdCompressor(_NAR_LEVEL).compress(nar)
    return infos


def _pack_alone(name: Literal["gzip", "zstd"], level: int | None, paths: Sequence[str]) -> _Layer:
    return _pack(compression(name, level), paths)


def _chunks(paths: Sequence[str]) -> list[bytes]:
    kept = _Kept()

    def start() -> Compressor:
        return kept

    _pack(Compression(MediaType.OCI_LAYER_GZIP, start, ""), paths)
    return kept.chunks


def _from_memory(way: Compression, chunks: Sequence[bytes]) -> _Layer:
    uncompressed, sink, compressor = hashlib.sha256(), _Counted(), way.start()
    for chunk in chunks:
        uncompressed.update(chunk)
        sink.write(compressor.compress(chunk))
    sink.write(compressor.flush())
    return sink.size, f"{uncompressed.hexdigest()} {sink.hash.hexdigest()}"


def _measure(job: Job) -> Outcome:
    way, n = compression(job.name, job.level), len(job.layers)
    pool = (ProcessPoolExecutor if job.what == "processes" else ThreadPoolExecutor)(job.workers)
    with pool:
        list(pool.map(len, [b""] * job.workers))  # start the workers before the clock
        contents = [_chunks(layer) for layer in job.layers] if job.what == "memory" else []
        nars: dict[StorePath, bytes] = {}
        infos = [_dumped(layer, nars) for layer in job.layers] if job.what == "nars" else []
        uncompressed = sum(len(chunk) for chunks in contents for chunk in chunks)
        before, began = _processor(), time.perf_counter()
        if job.what == "memory":
            layers = list(pool.map(_from_memory, [way] * n, contents))
        elif job.what == "nars":
            layers = list(pool.map(_pack_nars, [way] * n, infos, [nars] * n))
        elif job.what == "threads":
            layers = list(pool.map(_pack, [way] * n, job.layers))
        else:
            layers = list(pool.map(_pack_alone, [job.name] * n, [job.level] * n, job.layers))
        seconds = time.perf_counter() - began
    digest = hashlib.sha256("\n".join(digests for _, digests in layers).encode()).hexdigest()
    return Outcome(
        seconds=seconds,
        processor=_processor() - before,
        resident=_resident(job),
        uncompressed=uncompressed,
        compressed=sum(size for size, _ in layers),
        digest=digest,
    )


def _processor() -> float:
    """Return the processor seconds of this process and its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _resident(job: Job) -> int:
    """Return the peak memory; each process counts as the largest."""
    # Not from getrusage, whose value is inherited from the parent process.
    status = Path("/proc/self/status").read_text()
    own = int(status.partition("VmHWM:")[2].split()[0])
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return 1024 * (own + children * job.workers if job.what == "processes" else own)


if __name__ == "__main__":
    json.dump(asdict(_measure(Job(**json.load(sys.stdin)))), sys.stdout)
