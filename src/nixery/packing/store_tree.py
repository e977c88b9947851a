"""Store paths as layer entries.

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
from nixery.packing.entries import Directory, Entry, RegularFile, Symlink

_STORE = STORE_DIRECTORY.encode()
_NAME = attrgetter("name")


def store_entries(paths: Iterable[StorePath], store: bytes = _STORE) -> Iterator[Entry]:
    """Walk store paths, given in order, names within a directory sorted by bytes.

    Args:
        paths: what the layer holds.
        store: where the paths are on this machine; in the image they are in ``/nix/store`` in any case.

    Raises:
        StorageError: a store path cannot be read, or holds what no store path can.
    """
    above = b""
    for component in _STORE.strip(b"/").split(b"/"):
        above = above + b"/" + component if above else component
        yield Directory(above)
    for path in paths:
        base_name = path.base_name.encode()
        try:
            yield from _walk(os.path.join(store, base_name), above + b"/" + base_name)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _walk(source: bytes, name: bytes) -> Iterator[Entry]:
    status = os.lstat(source)
    if not stat.S_ISDIR(status.st_mode):
        yield _symlink_or_file(source, name, status)
        return
    yield Directory(name, 0o555)
    # A directory comes before what it holds, and all of that before what follows: of each level, what is still to come.
    levels = [(name + b"/", _children(source))]
    while levels:
        above, children = levels[-1]
        for child in children:
            name = above + child.name
            if child.is_symlink():
                # The directory has told; there is nothing else to ask for.
                yield Symlink(name, os.readlink(child.path))
                continue
            status = child.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                yield Directory(name, 0o555)
                levels.append((name + b"/", _children(child.path)))
                break
            yield _symlink_or_file(child.path, name, status)
        else:
            levels.pop()


def _children(directory: bytes) -> Iterator[os.DirEntry[bytes]]:
    with os.scandir(directory) as children:
        return iter(sorted(children, key=_NAME))


def _symlink_or_file(source: bytes, name: bytes, status: os.stat_result) -> Entry:
    if stat.S_ISREG(status.st_mode):
        return RegularFile(name, 0o555 if status.st_mode & stat.S_IXUSR else 0o444, status.st_size, source)
    if stat.S_ISLNK(status.st_mode):
        return Symlink(name, os.readlink(source))
    raise StorageError(f"{os.fsdecode(source)} is neither file, directory nor symlink")
