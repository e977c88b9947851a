"""A copy of a blob while it is written."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import structlog

from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.storage.files import move_to_place, temporary_file, write_all

_log = structlog.get_logger("nixery.storage")


class PartialCopy:
    """Takes the bytes of a blob while somebody is sent them. When the disk does not take them, it is given up, and nobody is told but the log.

    Its methods block. Closing waits for a write that goes on in a thread while the one who asked for it was cancelled.

    Args:
        digest: of the blob.
        temporary: for unfinished files.
    """

    def __init__(self, digest: Digest, temporary: Path) -> None:
        self._digest = digest
        self._temporary = temporary
        self._hash = hashlib.sha256()
        self._file = ExitStack()
        self._opened: tuple[int, Path] | None = None
        self._given_up = False
        self._lock = threading.RLock()

    def write(self, data: bytes) -> None:
        """Append bytes."""
        with self._lock, self._giving_up():
            if self._given_up:
                return
            if self._opened is None:
                self._opened = self._file.enter_context(temporary_file(self._temporary))
            write_all(self._opened[0], data)
            self._hash.update(data)

    def finish(self, place: Path) -> bool:
        """Give the copy its name, and return whether it has it: what does not have its digest, or was given up, gets none."""
        finished = False
        with self._lock, self._giving_up():
            if self._opened is not None and not self._given_up and self._hash.hexdigest() == self._digest.hex:
                move_to_place(*self._opened, place)
                finished = True
        return finished

    def close(self) -> None:
        """Leave nothing behind but what has its name."""
        with self._lock, suppress(OSError):
            self._given_up = True
            self._file.close()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except (StorageError, OSError) as error:
            _log.warning("a blob is not copied", digest=str(self._digest), reason=str(error))
            # Now, and not when the blob was sent: others may need the room.
            self.close()
