"""Writing files so that a name stands for a whole file or for none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nixery.errors import StorageError

# Blobs and records hold nothing that is not served to everybody; nobody writes to them again.
_MODE = 0o444


def make_directory(directory: Path) -> None:
    """Make a directory that may exist.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the storage directory {directory}: {error.strerror}") from error


@contextmanager
def temporary_file(directory: Path) -> Iterator[tuple[int, Path]]:
    """Open a new file for writing; it is gone afterwards, unless it was moved to its place.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=directory)
    except OSError as error:
        raise StorageError(f"cannot write to the storage: {error.strerror}") from error
    try:
        yield descriptor, Path(name)
    finally:
        os.close(descriptor)
        with suppress(OSError):
            Path(name).unlink(missing_ok=True)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes, however many calls that takes.

    Raises:
        StorageError: the file system does not take them, for example because it is full.
    """
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise StorageError(f"cannot write to the storage: {error.strerror}") from error


def write_file(temporary: Path, place: Path, content: bytes) -> None:
    """Write a small file as a whole.

    Raises:
        StorageError: it cannot be written.
    """
    with temporary_file(temporary) as (descriptor, path):
        write_all(descriptor, content)
        move_to_place(descriptor, path, place)


def move_to_place(descriptor: int, path: Path, place: Path) -> None:
    """Give a written file its name, once its content is safe from a crash of the machine.

    Raises:
        StorageError: it cannot be synced or renamed.
    """
    try:
        os.fchmod(descriptor, _MODE)
        os.fdatasync(descriptor)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    except OSError as error:
        raise StorageError(f"cannot write to the storage: {error.strerror}") from error
