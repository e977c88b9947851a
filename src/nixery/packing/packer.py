"""Pack a layer in one pass: read, archive, digest, compress, write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from nixery.oci.digest import Digest
from nixery.packing.archive import Archive
from nixery.packing.compression import Compression

# Version of the archive's format: raise it with every change to the bytes of a layer, so that older layers
# are not reused.
_FORMAT = "nixery layer 1"

# Adds the contents of a layer to an archive.
AddContents = Callable[[Archive], None]

Piece = TypeVar("Piece")


class Sink(Protocol):
    """Receives the compressed layer."""

    def write(self, data: bytes, /) -> object:
        """Append bytes."""
        ...


class LayerPacker:
    """Packs layers; any number of threads may share a packer.

    Attributes:
        media_type: of the layers.
        identity: of format and compressor. Same contents and same identity give the same bytes.
    """

    def __init__(self, compression: Compression) -> None:
        self._compression = compression
        self.media_type = compression.media_type
        self.identity = f"{_FORMAT}, {compression.identity}"

    def pack(self, contents: AddContents, sink: Sink, check: Callable[[], None]) -> Digest:
        """Write a layer to the sink as a compressed tar.

        Args:
            contents: adds the contents in the order of the archive; called once, in this thread.
            sink: receives the compressed bytes.
            check: called for each chunk, and while contents are waited for; an exception from it ends the packing.

        Returns:
            The diff id: the digest of the uncompressed tar.

        Raises:
            StorageError: a file cannot be read, or changed after it was opened.
            UnsafeContents: the contents are not allowed in an image.
        """
        uncompressed = hashlib.sha256()
        compressor = self._compression.start()

        def take(chunk: memoryview) -> None:
            check()
            uncompressed.update(chunk)
            sink.write(compressor.compress(chunk))

        with BackgroundStage(take) as stage:
            archive = Archive(stage.give, check)
            contents(archive)
            rest = archive.end()
            stage.wait()
        take(rest)
        sink.write(compressor.flush())
        return Digest(uncompressed.hexdigest())


class BackgroundStage(Generic[Piece]):
    """Processes one piece after the other in its own thread, while the caller makes the next piece.

    A context manager; at its end, no work is left running. The first piece starts the thread.

    Args:
        work: processes a piece.
    """

    def __init__(self, work: Callable[[Piece], None]) -> None:
        self._work = work
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="background-stage")
        self._running: Future[None] | None = None

    def give(self, piece: Piece) -> None:
        """Start work on a piece, after waiting for the one before it, whose memory is free then.

        Raises:
            Exception: of the work on the piece before.
        """
        self.wait()
        self._running = self._thread.submit(self._work, piece)

    def wait(self) -> None:
        """Wait until all pieces are done.

        Raises:
            Exception: of the work on the last piece.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()
