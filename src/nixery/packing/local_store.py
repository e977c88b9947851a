"""Store paths of the local Nix store.

A Nix store keeps four facts of a file: its name, its content, whether it is executable, and the target of a
symlink. The archive holds nothing else, so that the bytes do not depend on the host (owners, link counts,
permissions). In particular, ``nix-store --optimise`` adds hard links. A store with them and one without give
the same layer, since the archive holds each name as a separate file.

A builder without a sandbox can change its output while the server reads it. So the server looks each name up
in an open directory and follows no symlink: even if a builder replaces a directory or a file, the server
reads nothing outside the store path. And it reads no more bytes of a store path than Nix has registered.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from heapq import merge
from types import TracebackType
from typing import Self

from nixery.closure import PathInfo
from nixery.errors import StorageError, UnsafeContents, shown
from nixery.files import ASK, LIST, LONGEST_PATH, READ, Beneath, read_descriptor
from nixery.packing.archive import Archive, unreadable
from nixery.packing.contents import DIRECTORY_MODE, EXECUTABLE_MODE, PLAIN_MODE, STORE, Name

# Directories of one store path that are open at the same time. A tree can be deeper than the limit for open
# files.
_MOST_OPEN = 32

# Names of the directories in progress, which are all in memory. The largest directory of Debian's packages
# has 20,000.
_MOST_NAMES = 1 << 20

# Names that are sorted in one step, which takes some hundredths of a second. A sort holds the interpreter's
# lock, so that of a million names stopped the whole server for two seconds.
_SORTED_AT_ONCE = 1 << 14

# Least bytes of a name in Nix's archive format (Nix manual, "Nix Archive"); this bounds the number of names
# as well.
_LEAST_NAR_SIZE = 100


# Types of names in a listing.
_IS_FILE, _IS_DIRECTORY, _IS_SYMLINK, _IS_OTHER = range(4)

_Children = list[tuple[bytes, int]]


class LocalStore:
    """The contents of store paths on this machine. A context manager that holds the store open.

    See ``StoreContents`` for its methods.

    Args:
        store: directory of the store paths on this machine; in an image they are always in ``/nix/store``.
        emulated: see ``Beneath``.

    Raises:
        StorageError: the store cannot be opened.
    """

    def __init__(self, store: bytes = STORE, *, emulated: bool = False) -> None:
        try:
            # The only name that is looked up from the root: the operator controls symlinks above the store.
            self._beneath = Beneath(store, emulated=emulated)
        except OSError as error:
            raise unreadable(store, error) from error

    def expect(self, paths: Iterable[PathInfo]) -> None:
        """Do nothing: the kernel reads ahead."""

    def add(self, archive: Archive, info: PathInfo) -> None:
        """Append a store path.

        Raises:
            StorageError: it cannot be read, has a file of a type that Nix does not store, or more bytes than
                Nix has registered.
            UnsafeContents: a name is not allowed in an image.
        """
        _StorePath(archive, self._beneath.descriptor, info).add()

    def look(self, name: bytes) -> tuple[int, bytes]:
        """Return the mode of a file, and the target of a symlink.

        Raises:
            OSError: it cannot be opened.
            StorageError: it cannot be read.
        """
        descriptor = self._beneath.open(name, ASK)
        try:
            # Of the descriptor: by now the name may belong to another file.
            mode = os.fstat(descriptor).st_mode
            return mode, os.readlink(b"", dir_fd=descriptor) if stat.S_ISLNK(mode) else b""
        except OSError as error:
            # The name exists: an error of the kernel must not make it look missing.
            raise unreadable(STORE + b"/" + name, error) from error
        finally:
            os.close(descriptor)

    def names(self, name: bytes) -> Iterator[Name]:
        """List a directory.

        Raises:
            OSError: it is not a directory, or cannot be read.
        """
        descriptor = self._beneath.open(name, LIST)
        try:
            with os.scandir(descriptor) as children:
                for child in children:
                    yield Name(os.fsencode(child.name), child.is_dir(follow_symlinks=False))
        finally:
            os.close(descriptor)

    def read(self, name: bytes, limit: int) -> bytes:
        """Return at most ``limit`` bytes from the beginning of a regular file.

        Raises:
            OSError: it is not a regular file, or cannot be read.
        """
        descriptor = self._beneath.open(name, READ)
        try:
            return read_descriptor(descriptor, limit)
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beneath.__exit__(kind, error, trace)


class _StorePath:
    """Adds one store path to an archive."""

    def __init__(self, archive: Archive, store: int, info: PathInfo) -> None:
        self._archive = archive
        self._store = store
        self._base_name = info.path.base_name.encode()
        self._registered = self._left = info.nar_size

    def add(self) -> None:
        name = STORE.strip(b"/") + b"/" + self._base_name
        try:
            mode = os.stat(self._base_name, dir_fd=self._store, follow_symlinks=False).st_mode
        except OSError as error:
            raise unreadable(b"/" + name, error) from error
        if stat.S_ISLNK(mode):
            self._archive.symlink(name, _target(self._store, self._base_name, name))
        elif stat.S_ISDIR(mode):
            self._add_directory(name)
        elif stat.S_ISREG(mode):
            self._add_file(self._store, self._base_name, name)
        else:
            raise _unsupported_type(name)

    def _add_directory(self, name: bytes) -> None:
        archive = self._archive
        with _Descent(self._store) as descent:
            archive.directory(name, DIRECTORY_MODE)
            # A directory comes before its contents, and those before its next sibling: holds the remaining
            # names of each level.
            children = self._enter(descent, self._base_name, name)
            levels = [(name + b"/", len(children), iter(children))]
            held = len(children)
            while levels:
                above, number, rest = levels[-1]
                directory = descent.descriptor
                for child, kind in rest:
                    # The listing gave the type; nothing else needs a system call.
                    if kind == _IS_FILE:
                        self._add_file(directory, child, above + child)
                    elif kind == _IS_SYMLINK:
                        archive.symlink(above + child, _target(directory, child, above + child))
                    elif kind == _IS_DIRECTORY:
                        name = above + child
                        archive.directory(name, DIRECTORY_MODE)
                        children = self._enter(descent, child, name)
                        held += len(children)
                        if held > _MOST_NAMES:
                            raise _too_many(name)
                        levels.append((name + b"/", len(children), iter(children)))
                        break
                    else:
                        raise _unsupported_type(above + child)
                else:
                    levels.pop()
                    held -= number
                    descent.leave(above)

    def _enter(self, descent: _Descent, child: bytes, name: bytes) -> _Children:
        if len(name) > LONGEST_PATH:
            raise UnsafeContents(b"/" + name, f"its name has more than {LONGEST_PATH:,} bytes")
        # Catches errors only around reads, since the archive's consumer raises other errors.
        try:
            descent.enter(child)
            children = _children(descent.descriptor, name)
        except OSError as error:
            raise unreadable(b"/" + name, error) from error
        self._take(len(children) * _LEAST_NAR_SIZE, name)
        return children

    def _add_file(self, directory: int, child: bytes, name: bytes) -> None:
        try:
            descriptor = os.open(child, READ, dir_fd=directory)
        except OSError as error:
            raise unreadable(b"/" + name, error) from error
        try:
            # Of the open file: its name would need another look-up.
            status = os.fstat(descriptor)
            mode, size = status.st_mode, status.st_size
            if not stat.S_ISREG(mode):
                raise _unsupported_type(name)
            self._take(size, name)
            self._archive.file_from(
                descriptor, name, EXECUTABLE_MODE if mode & stat.S_IXUSR else PLAIN_MODE, size
            )
        finally:
            os.close(descriptor)

    def _take(self, size: int, name: bytes) -> None:
        self._left -= size
        if self._left < 0:
            raise StorageError(
                f"{shown(b'/' + name)} was changed after it was built: its store path has more than the {self._registered:,} bytes that Nix "
                "registered; repair it with nix-store --repair-path"
            )


class _Descent:
    """The directory that is being read, and the path to it, of which the last directories are open.

    A context manager that closes them.

    Args:
        store: the open directory above.
    """

    def __init__(self, store: int) -> None:
        self._store = store
        self._way: list[bytes] = []
        self._open: list[int] = []

    @property
    def descriptor(self) -> int:
        """The descriptor of the directory that is being read."""
        return self._open[-1]

    def enter(self, child: bytes) -> None:
        """Enter a subdirectory; it must not be a symlink.

        Raises:
            OSError: it cannot be opened.
        """
        self._open.append(os.open(child, LIST, dir_fd=self._open[-1] if self._open else self._store))
        self._way.append(child)
        if len(self._open) > _MOST_OPEN:
            os.close(self._open.pop(0))

    def leave(self, name: bytes) -> None:
        """Return to the parent directory.

        Args:
            name: of the directory that is left, for the error.

        Raises:
            StorageError: the parent directory no longer exists.
        """
        os.close(self._open.pop())
        self._way.pop()
        if self._way and not self._open:
            way, self._way = self._way, []
            try:
                for child in way:
                    self.enter(child)
            except OSError as error:
                raise unreadable(b"/" + name, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._open:
            os.close(descriptor)


def _children(directory: int, name: bytes) -> _Children:
    children: _Children = []
    with os.scandir(directory) as entries:
        for entry in entries:
            # Get the type while the directory is open: not every file system includes it in a listing.
            if entry.is_file(follow_symlinks=False):
                kind = _IS_FILE
            elif entry.is_dir(follow_symlinks=False):
                kind = _IS_DIRECTORY
            else:
                kind = _IS_SYMLINK if entry.is_symlink() else _IS_OTHER
            children.append((os.fsencode(entry.name), kind))
            if len(children) > _MOST_NAMES:
                raise _too_many(name)
    return _in_order(children)


def _in_order(children: _Children) -> _Children:
    """Sort names by bytes, with pauses in which other threads can run."""
    if len(children) <= _SORTED_AT_ONCE:
        children.sort()
        return children
    starts = range(0, len(children), _SORTED_AT_ONCE)
    return list(merge(*(sorted(children[start : start + _SORTED_AT_ONCE]) for start in starts)))


def _target(directory: int, child: bytes, name: bytes) -> bytes:
    try:
        return os.readlink(child, dir_fd=directory)
    except OSError as error:
        raise unreadable(b"/" + name, error) from error


def _unsupported_type(name: bytes) -> StorageError:
    return StorageError(f"{shown(b'/' + name)} is neither file, directory nor symlink")


def _too_many(name: bytes) -> UnsafeContents:
    return UnsafeContents(b"/" + name, f"directories within each other have more than {_MOST_NAMES:,} names")
