"""Two steps of one task at the same time, the second always one piece behind the first.

One pass from what a layer holds to its compressed bytes: read, archive, digest, compress, write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from nixery.oci.digest import Digest
from nixery.packing.archive import Archive
from nixery.packing.compression import Compression

Piece = TypeVar("Piece")


class BackgroundStage(Generic[Piece]):
    """Does something with one piece after the other, in a thread of its own, while the caller makes the next piece.

    A context; when it ends, nothing goes on any more. The thread is started for the first piece.

    Args:
        work: what to do with a piece.
    """

    def __init__(self, work: Callable[[Piece], None]) -> None:
        self._work = work
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="one-behind")
        self._doing: Future[None] | None = None

    def give(self, piece: Piece) -> None:
        """Have a piece worked on, after waiting for the one before it, whose memory is free then.

        Raises:
            Exception: whatever the work on the piece before has raised.
        """
        self.wait()
        self._doing = self._thread.submit(self._work, piece)

    def wait(self) -> None:
        """Wait until all pieces are done.

        Raises:
            Exception: whatever the work on the last one has raised.
        """
        doing, self._doing = self._doing, None
        if doing is not None:
            doing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()


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

        with BackgroundStage(take) as behind:
            archive = Archive(behind.give)
            contents(archive)
            rest = archive.end()
            behind.wait()
        take(rest)
        sink.write(compressor.flush())
        return Digest(uncompressed.hexdigest())
