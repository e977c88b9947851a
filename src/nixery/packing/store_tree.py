"""Store paths as parts of a layer.

A Nix store knows four things of a file: its name, its content, whether it is executable, where a symlink points.
Nothing else is written, so that whatever a host adds (owners, link counts, permissions) has no say in the bytes.
Hard links in particular: a store that ``nix-store --optimise`` went over has them, another one does not. Both give
the same layer, since each name is written as a file of its own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from operator import attrgetter

from nixery.closure.store_path import STORE_DIRECTORY, StorePath
from nixery.errors import StorageError
from nixery.packing.archive import Archive, unreadable

_STORE = STORE_DIRECTORY.encode()
_NAME = attrgetter("name")

_DIRECTORY, _EXECUTABLE, _PLAIN = 0o555, 0o555, 0o444

# What a name was found to be is what is opened: no symlink that has taken its place, and no pipe is waited for.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def add_store_paths(archive: Archive, paths: Iterable[StorePath], store: bytes = _STORE) -> None:
    """Add store paths, given in order, names within a directory sorted by bytes.

    Args:
        archive: where they are added, with the directories above them.
        paths: what the layer holds.
        store: where the paths are on this machine; in the image they are in ``/nix/store`` in any case.

    Raises:
        StorageError: a store path cannot be read, or holds what no store path can.
    """
    above = b""
    for component in _STORE.strip(b"/").split(b"/"):
        above = above + b"/" + component if above else component
        archive.directory(above)
    for path in paths:
        base_name = path.base_name.encode()
        _add(archive, os.path.join(store, base_name), above + b"/" + base_name)


def _add(archive: Archive, source: bytes, name: bytes) -> None:
    try:
        mode = os.lstat(source).st_mode
    except OSError as error:
        raise unreadable(source, error) from error
    if stat.S_ISLNK(mode):
        archive.symlink(name, _target(source))
    elif stat.S_ISDIR(mode):
        _add_directory(archive, source, name)
    else:
        _add_file(archive, source, name)


def _add_directory(archive: Archive, source: bytes, name: bytes) -> None:
    archive.directory(name, _DIRECTORY)
    # A directory comes before what it holds, and all of that before what follows: of each level, what is still to come.
    levels = [(name + b"/", _children(source))]
    while levels:
        above, children = levels[-1]
        for child in children:
            # The listing has told what it is; there is nothing else to ask for.
            if child.is_symlink():
                archive.symlink(above + child.name, _target(child.path))
            elif child.is_dir(follow_symlinks=False):
                name = above + child.name
                archive.directory(name, _DIRECTORY)
                levels.append((name + b"/", _children(child.path)))
                break
            else:
                _add_file(archive, child.path, above + child.name)
        else:
            levels.pop()


def _children(directory: bytes) -> Iterator[os.DirEntry[bytes]]:
    # Errors are caught where something is read, and not around all of it: whoever takes the archive has errors as well.
    try:
        with os.scandir(directory) as children:
            return iter(sorted(children, key=_NAME))
    except OSError as error:
        raise unreadable(directory, error) from error


def _target(symlink: bytes) -> bytes:
    try:
        return os.readlink(symlink)
    except OSError as error:
        raise unreadable(symlink, error) from error


def _add_file(archive: Archive, source: bytes, name: bytes) -> None:
    try:
        descriptor = os.open(source, _READ)
    except OSError as error:
        raise unreadable(source, error) from error
    try:
        # Of the open file, not of its name, which would have to be looked up once more.
        status = os.fstat(descriptor)
        mode = status.st_mode
        if not stat.S_ISREG(mode):
            shown = source.decode(errors="replace")
            raise StorageError(f"{shown} is neither file, directory nor symlink")
        archive.file_from(descriptor, name, _EXECUTABLE if mode & stat.S_IXUSR else _PLAIN, status.st_size)
    finally:
        os.close(descriptor)
