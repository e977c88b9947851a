"""A copy of a blob while it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import structlog

from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.storage.files import move_to_place, temporary_file, write_all

_log = structlog.get_logger("nixery.storage")


class UnfinishedCopy:
    """Takes the bytes of a blob while somebody is sent them. When the disk does not take them, it is given up, and nobody is told but the log.

    Its methods block.

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

    def write(self, data: bytes) -> None:
        """Append bytes."""
        if self._given_up:
            return
        with self._giving_up():
            if self._opened is None:
                self._opened = self._file.enter_context(temporary_file(self._temporary))
            write_all(self._opened[0], data)
            self._hash.update(data)

    def finish(self, place: Path) -> bool:
        """Give the copy its name, and return whether it has it: what does not have its digest, or was given up, gets none."""
        if self._opened is None or self._given_up or self._hash.hexdigest() != self._digest.hex:
            return False
        with self._giving_up():
            move_to_place(*self._opened, place)
        return not self._given_up

    def close(self) -> None:
        """Leave nothing behind but what has its name."""
        with suppress(OSError):
            self._file.close()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except (StorageError, OSError) as error:
            _log.warning("a blob is not copied", digest=str(self._digest), reason=str(error))
            self._given_up = True
            # Now, and not when the blob was sent: others may need the room.
            self.close()
