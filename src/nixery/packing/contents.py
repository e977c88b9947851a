"""The files of an image's store paths, wherever they come from.

Packing reads them only through ``StoreContents``: a layer is the same to the byte, whether its store paths are in the
local Nix store (``LocalStore``) or come from a binary cache (``NarContents``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from nixery.closure import STORE_DIRECTORY, PathInfo
from nixery.packing.archive import Archive

STORE = STORE_DIRECTORY.encode()

# Modes in an archive. A Nix store keeps no other permission of a file than whether it is executable.
DIRECTORY_MODE, EXECUTABLE_MODE, PLAIN_MODE = 0o555, 0o555, 0o444


class Name(NamedTuple):
    """A name in a directory, and whether it is a directory itself rather than a symlink to one."""

    name: bytes
    is_directory: bool


class StoreContents(Protocol):
    """The files of store paths. Several threads may use it at the same time.

    Names are bytes, relative to the store directory and without ``.`` or ``..``: ``<hash>-<name>/bin/ls``. No
    symlink in a name is followed.
    """

    def expect(self, paths: Iterable[PathInfo]) -> None:
        """Prepare for ``add`` of these store paths, in this order, by this thread."""
        ...

    def add(self, archive: Archive, info: PathInfo) -> None:
        """Append a store path to an archive; names within a directory are sorted by bytes.

        Raises:
            StorageError: it cannot be read, or differs from what Nix has registered.
            UnsafeContents: a name is not allowed in an image.
        """
        ...

    def look(self, name: bytes) -> tuple[int, bytes]:
        """Return the mode of a file (``st_mode``: its type and ``S_IXUSR`` count), and the target of a symlink.

        Raises:
            OSError: it does not exist: ``ENOENT``; ``ENOTDIR`` or ``ELOOP`` if a directory of the name is none.
            StorageError: it cannot be read.
        """
        ...

    def names(self, name: bytes) -> Iterator[Name]:
        """List a directory, in any order.

        Raises:
            OSError: it is not a directory, or cannot be read.
        """
        ...

    def read(self, name: bytes, limit: int) -> bytes:
        """Return at most ``limit`` bytes from the beginning of a regular file.

        Raises:
            OSError: it is not a regular file, or cannot be read.
        """
        ...


def add_store_paths(archive: Archive, paths: Sequence[PathInfo], contents: StoreContents) -> None:
    """Append store paths in the given order, after the directories above them.

    Args:
        archive: where they are appended.
        paths: the layer's store paths, with the bytes that Nix has registered for each.
        contents: their files.

    Raises:
        BuildError: a store path does not come as its binary cache has announced it.
        StorageError: a store path cannot be read, has a file of a type that Nix does not store, or more bytes
            than Nix has registered.
        UnsafeContents: a name is not allowed in an image.
    """
    above = b""
    for component in STORE.strip(b"/").split(b"/"):
        above = above + b"/" + component if above else component
        archive.directory(above)
    contents.expect(paths)
    for path in paths:
        contents.add(archive, path)


class JoinedContents:
    """The contents of store paths from two places. See ``StoreContents`` for its methods.

    Args:
        first: has some of the store paths.
        names: base names of these.
        second: has all others.
    """

    def __init__(self, first: StoreContents, names: Collection[bytes], second: StoreContents) -> None:
        self._first = first
        self._names = names
        self._second = second

    def expect(self, paths: Iterable[PathInfo]) -> None:
        """Prepare for ``add`` of these store paths."""
        paths = list(paths)
        for contents in (self._first, self._second):
            contents.expect(path for path in paths if self._having(path.path.base_name.encode()) is contents)

    def add(self, archive: Archive, info: PathInfo) -> None:
        """Append a store path."""
        self._having(info.path.base_name.encode()).add(archive, info)

    def look(self, name: bytes) -> tuple[int, bytes]:
        """Return the mode of a file, and the target of a symlink."""
        return self._having(name).look(name)

    def names(self, name: bytes) -> Iterator[Name]:
        """List a directory."""
        return self._having(name).names(name)

    def read(self, name: bytes, limit: int) -> bytes:
        """Return at most ``limit`` bytes from the beginning of a regular file."""
        return self._having(name).read(name, limit)

    def _having(self, name: bytes) -> StoreContents:
        return self._first if name.partition(b"/")[0] in self._names else self._second
