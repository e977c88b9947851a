"""Records in a directory of a local file system; ``nixery.storage.filesystem`` says where."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from nixery.errors import StorageError
from nixery.files import read_regular
from nixery.storage.files import delete_file, make_directory, scan, write_file
from nixery.storage.record_kinds import KINDS, is_key, record_name, require_size
from nixery.storage.store import ListedRecord

# Records of kinds that may have more bytes than this are read off the event loop.
_LARGE = 4 * 1024 * 1024


class FilesystemRecordStore:
    """The ``RecordStore`` in a directory; see ``FilesystemBlobStore``."""

    def __init__(self, root: Path, temporary: Path) -> None:
        self._root = root
        self._temporary = temporary
        make_directory(root / "records")

    def _path(self, kind: str, key: str) -> Path:
        return self._root / record_name(kind, key)

    async def get(self, kind: str, key: str) -> bytes | None:
        """See ``RecordStore.get``. A file that is not regular counts as missing."""
        path, largest = self._path(kind, key), KINDS[kind].largest
        try:
            if largest > _LARGE:
                return await asyncio.to_thread(read_regular, path, largest)
            return read_regular(path, largest)
        except OSError as error:
            raise StorageError(f"cannot read a record of {kind}: {error.strerror}") from error

    async def put(self, kind: str, key: str, content: bytes) -> None:
        """See ``RecordStore.put``."""
        require_size(kind, content)
        await asyncio.to_thread(write_file, self._temporary, self._path(kind, key), content)

    async def renew(self, kind: str, key: str, content: bytes) -> None:
        """See ``RecordStore.renew``."""
        path = self._path(kind, key)
        try:
            is_there = stat.S_ISREG(path.lstat().st_mode)
            if is_there:
                os.utime(path, follow_symlinks=False)
        except FileNotFoundError:
            is_there = False
        except OSError as error:
            raise StorageError(f"cannot renew a record of {kind}: {error.strerror}") from error
        if not is_there:
            await self.put(kind, key, content)

    async def scan(self, kind: str, prefix: str = "") -> AsyncIterator[ListedRecord]:
        """See ``RecordStore.scan``. Ignores a file that is not in the directory of its name."""
        # The first two characters of a key are its directory.
        directory = self._root / "records" / kind
        async for entry, status in scan(directory, prefix[:2] if len(prefix) >= len("00") else ""):
            key = entry.name
            if key.startswith(prefix) and is_key(key) and entry.path.endswith(f"/{key[:2]}/{key}"):
                yield ListedRecord(key, status.st_mtime)

    async def delete(self, kind: str, key: str) -> None:
        """See ``RecordStore.delete``."""
        await asyncio.to_thread(delete_file, self._path(kind, key))
