"""Records in a directory of a local file system; ``nixery.storage.filesystem`` says where."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from nixery.errors import StorageError
from nixery.storage.files import delete_file, make_directory, scan, write_file
from nixery.storage.store import ListedRecord


class FilesystemRecordStore:
    """The ``RecordStore`` in a directory; see ``FilesystemBlobStore``."""

    def __init__(self, root: Path, temporary: Path) -> None:
        self._records = root / "records"
        self._temporary = temporary
        make_directory(self._records)

    def _path(self, kind: str, key: str) -> Path:
        return self._records / kind / key[:2] / key

    async def get(self, kind: str, key: str) -> bytes | None:
        """See ``RecordStore.get``."""
        try:
            return self._path(kind, key).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read a record of {kind}: {error.strerror}") from error

    async def find(self, kind: str, prefix: str) -> list[bytes]:
        """See ``RecordStore.find``."""
        return await asyncio.to_thread(self._find, kind, prefix)

    def _find(self, kind: str, prefix: str) -> list[bytes]:
        # The first two characters of a key are its directory.
        paths = (self._records / kind).glob(f"{prefix[:2]}*/{prefix}*")
        contents = []
        try:
            for path in sorted(paths):
                with suppress(FileNotFoundError):  # deleted meanwhile
                    contents.append(path.read_bytes())
        except OSError as error:
            raise StorageError(f"cannot read records of {kind}: {error.strerror}") from error
        return contents

    async def put(self, kind: str, key: str, content: bytes) -> None:
        """See ``RecordStore.put``."""
        await asyncio.to_thread(write_file, self._temporary, self._path(kind, key), content)

    async def renew(self, kind: str, key: str, content: bytes) -> None:
        """See ``RecordStore.renew``."""
        try:
            os.utime(self._path(kind, key))
        except FileNotFoundError:
            await self.put(kind, key, content)
        except OSError as error:
            raise StorageError(f"cannot renew a record of {kind}: {error.strerror}") from error

    async def scan(self, kind: str) -> AsyncIterator[ListedRecord]:
        """See ``RecordStore.scan``."""
        async for entry, status in scan(self._records / kind):
            yield ListedRecord(entry.name, status.st_mtime)

    async def delete(self, kind: str, key: str) -> None:
        """See ``RecordStore.delete``."""
        await asyncio.to_thread(delete_file, self._path(kind, key))
