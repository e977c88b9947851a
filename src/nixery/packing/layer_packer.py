"""One pass from entries to a compressed layer: read, archive, digest, compress, write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.packing import tar
from nixery.packing.compression import Compression
from nixery.packing.entries import Entry, GeneratedFile, RegularFile

# Version of the archive's format: raise it with any change to the bytes of a layer, so that layers packed before
# are not taken for layers packed after.
_FORMAT = "nixery layer 1"

# Bytes handed to digest and compressor at a time. Always exactly this many but for the last: the compressor's
# output may depend on how its input is cut. Large enough for both to work without the interpreter lock most of the time.
_CHUNK = 1 << 20


class Sink(Protocol):
    """Takes the compressed layer."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""
        ...


class LayerPacker:
    """Packs layers; holds no state of any one of them, so one packer serves any number of threads.

    Attributes:
        media_type: of the layers.
        identity: of format and compressor. Same entries and same identity give the same bytes.
    """

    def __init__(self, compression: Compression) -> None:
        self._compression = compression
        self.media_type = compression.media_type
        self.identity = f"{_FORMAT}, {compression.identity}"

    def pack(self, entries: Iterable[Entry], sink: Sink, check: Callable[[], None]) -> Digest:
        """Write the entries to the sink as one compressed tar.

        Args:
            entries: in the order of the archive, directories before what they hold.
            sink: where the compressed bytes go.
            check: called once a chunk; whatever it raises ends the packing.

        Returns:
            The diff id: the digest of the uncompressed tar.

        Raises:
            StorageError: a file cannot be read, or is not what it was when the tree was walked.
        """
        uncompressed = hashlib.sha256()
        compressor = self._compression.start()
        for chunk in _chunks(_archive(entries)):
            check()
            uncompressed.update(chunk)
            sink.write(compressor.compress(chunk))
        sink.write(compressor.flush())
        return Digest(uncompressed.hexdigest())


def _archive(entries: Iterable[Entry]) -> Iterator[bytes]:
    for entry in entries:
        yield tar.header(entry)
        match entry:
            case RegularFile(size=size):
                yield from _read(entry)
                yield tar.padding(size)
            case GeneratedFile(content=content):
                yield content
                yield tar.padding(len(content))
    yield tar.END_OF_ARCHIVE


def _read(file: RegularFile) -> Iterator[bytes]:
    left = file.size
    try:
        with open(file.source, "rb", buffering=0) as source:
            while left:
                data = source.read(min(left, _CHUNK))
                if not data:
                    break
                left -= len(data)
                yield data
            changed = left or source.read(1)
    except OSError as error:
        raise StorageError(f"cannot read {file.name.decode(errors='replace')}: {error.strerror}") from error
    if changed:
        raise StorageError(f"{file.name.decode(errors='replace')} changed while it was packed")


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a stream into chunks of equal size, the last one excepted."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= _CHUNK:
            yield bytes(buffer[:_CHUNK])
            del buffer[:_CHUNK]
    if buffer:
        yield bytes(buffer)
