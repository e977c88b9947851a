"""One pass from what a layer holds to its compressed bytes: read, archive, digest, compress, write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from nixery.oci.digest import Digest
from nixery.packing.archive import Archive
from nixery.packing.compression import Compression
from nixery.packing.one_behind import OneBehind

# Version of the archive's format: raise it with any change to the bytes of a layer, so that layers packed before
# are not taken for layers packed after.
_FORMAT = "nixery layer 1"

# What a layer holds: adds all of it to an archive.
Contents = Callable[[Archive], None]


class Sink(Protocol):
    """Takes the compressed layer."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""
        ...


class LayerPacker:
    """Packs layers; holds no state of any one of them, so one packer serves any number of threads.

    Attributes:
        media_type: of the layers.
        identity: of format and compressor. Same contents and same identity give the same bytes.
    """

    def __init__(self, compression: Compression) -> None:
        self._compression = compression
        self.media_type = compression.media_type
        self.identity = f"{_FORMAT}, {compression.identity}"

    def pack(self, contents: Contents, sink: Sink, check: Callable[[], None]) -> Digest:
        """Write a layer to the sink as one compressed tar.

        Args:
            contents: adds what the layer holds, in the order of the archive. It is called once, in this thread.
            sink: where the compressed bytes go.
            check: called once a chunk; whatever it raises ends the packing.

        Returns:
            The diff id: the digest of the uncompressed tar.

        Raises:
            StorageError: a file cannot be read, or is not what it was when it was opened.
        """
        uncompressed = hashlib.sha256()
        compressor = self._compression.start()

        def take(chunk: memoryview) -> None:
            check()
            uncompressed.update(chunk)
            sink.write(compressor.compress(chunk))

        with OneBehind(take) as behind:
            archive = Archive(behind.give)
            contents(archive)
            rest = archive.end()
            behind.wait()
        take(rest)
        sink.write(compressor.flush())
        return Digest(uncompressed.hexdigest())
