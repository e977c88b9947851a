"""The contents of an image's store paths, as a program in the image would see them.

Symlinks of a package may point anywhere on the machine that builds the image: to its files, to the server's
own environment, to a store path outside the image, to a pipe. Packing resolves names of packages only through
``ClosureFiles``, which sees nothing but the closure. So an image depends on its store paths alone, and no
other file of the machine gets into it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from nixery.closure import StorePath
from nixery.errors import StorageError, UnsafeContents, shown
from nixery.files import LONGEST_PATH
from nixery.packing.archive import unreadable
from nixery.packing.contents import STORE, Name, StoreContents

_ABOVE = tuple(STORE.strip(b"/").split(b"/"))

# As many symlinks as the kernel follows for one name (path_resolution(7)).
_MOST_LINKS = 40

# Limits for one image: names in listed directories, their bytes including those of the directories above, and
# look-ups. A few links to one large directory, deep directories of long names, or long chains of links cost
# far more than a package's size suggests. The largest images of Debian's packages list some 10,000 names.
_MOST_LISTED = 1 << 18
_MOST_BYTES = 1 << 26
_MOST_LOOK_UPS = 1 << 20

# Bytes of a name that count as one look-up. The kernel walks each component of a name: one of two thousand
# directories takes a hundred times as long as a usual one.
_BYTES_PER_LOOK_UP = 64

_NOT_A_DIRECTORY = frozenset({errno.ELOOP, errno.ENOTDIR})
_MISSING = _NOT_A_DIRECTORY | {errno.ENOENT, errno.ENAMETOOLONG}

_RELATIVE = frozenset({b"", b".", b".."})


class _Place(NamedTuple):
    """A resolved name: below the store and without any symlink; and the mode of its file."""

    name: bytes
    mode: int


class ClosureFiles:
    """The files of an image's store paths.

    Names are absolute, as in the image. Symlinks are followed within the closure; a name that leads out of it
    does not exist.

    Args:
        closure: the store paths of the image.
        contents: their files.

    Attributes:
        closure: the same, in their order.
    """

    def __init__(self, closure: Iterable[StorePath], contents: StoreContents) -> None:
        self.closure = tuple(closure)
        self._contents = contents
        self._base_names = {path.base_name.encode() for path in self.closure}
        self._listed = self._bytes = self._looked_at = 0

    def exists(self, file: bytes) -> bool:
        """Whether a name leads to a file or a directory of the closure.

        Raises:
            StorageError: it cannot be read.
            UnsafeContents: the image needs more look-ups than its limit.
        """
        return self._find(file) is not None

    def is_directory(self, file: bytes) -> bool:
        """Whether a name leads to a directory of the closure.

        Raises:
            StorageError: see ``exists``.
            UnsafeContents: likewise.
        """
        place = self._find(file)
        return place is not None and stat.S_ISDIR(place.mode)

    def program(self, file: bytes) -> bytes | None:
        """Return the name without symlinks of an executable file; ``None`` if no such file has the name.

        Raises:
            StorageError: see ``exists``.
            UnsafeContents: likewise.
        """
        place = self._find(file)
        if place is None or not stat.S_ISREG(place.mode) or not place.mode & stat.S_IXUSR:
            return None
        return STORE + b"/" + place.name

    def are_one(self, file: bytes, other: bytes) -> bool:
        """Whether two names lead to the same file or directory of the closure.

        Raises:
            StorageError: see ``exists``.
            UnsafeContents: likewise.
        """
        place = self._find(file)
        return place is not None and place == self._find(other)

    def names(self, directory: bytes) -> list[Name]:
        """List a directory, in any order.

        Raises:
            StorageError: it cannot be read, or is not a directory of the closure.
            UnsafeContents: the image has more names, or needs more look-ups, than its limit.
        """
        place = self._find(directory)
        if place is None:
            raise StorageError(
                f"cannot list {shown(directory)}: it is not a directory of the image's closure"
            )
        names: list[Name] = []
        try:
            for name in self._contents.names(place.name):
                self._count(directory, name.name)
                names.append(name)
        except OSError as error:
            raise unreadable(directory, error) from error
        return names

    def _count(self, directory: bytes, name: bytes) -> None:
        self._listed += 1
        if self._listed > _MOST_LISTED:
            raise UnsafeContents(
                directory, f"the root file system would have more than {_MOST_LISTED:,} names"
            )
        self._bytes += len(directory) + len(name)
        if self._bytes > _MOST_BYTES:
            reason = f"the root file system would have names of more than {_MOST_BYTES:,} bytes together"
            raise UnsafeContents(directory, reason)

    def read(self, file: bytes, limit: int) -> bytes | None:
        """Read a file; ``None`` if the name does not exist.

        Raises:
            StorageError: it cannot be read.
            UnsafeContents: it is not a regular file, or has more bytes than the limit.
        """
        place = self._find(file)
        if place is None:
            return None
        if not stat.S_ISREG(place.mode):
            raise UnsafeContents(file, "it should be a regular file")
        content = self._read(place, file, limit + 1)
        if len(content) > limit:
            raise UnsafeContents(file, f"it has more than {limit:,} bytes")
        return content

    def read_beginning(self, file: bytes, size: int) -> bytes | None:
        """Read at most ``size`` bytes from the beginning of a file; ``None`` if no regular file has the name.

        Raises:
            StorageError: it cannot be read.
            UnsafeContents: the image needs more look-ups than its limit.
        """
        place = self._find(file)
        if place is None or not stat.S_ISREG(place.mode):
            return None
        return self._read(place, file, size)

    def _read(self, place: _Place, file: bytes, limit: int) -> bytes:
        try:
            return self._contents.read(place.name, limit)
        except OSError as error:
            raise unreadable(file, error) from error

    def _find(self, file: bytes) -> _Place | None:
        """Resolve a name; ``None`` if it leads out of the closure or does not exist."""
        try:
            return self._look_up_directly(file) or self._resolve_symlinks(file)
        except OSError as error:
            if error.errno in _MISSING:
                return None
            raise unreadable(file, error) from error

    def _look_up_directly(self, file: bytes) -> _Place | None:
        """Look a name up in one step; ``None`` if it contains, or might contain, a symlink, which is rare."""
        above, _, name = file.partition(STORE + b"/")
        components = name.split(b"/")
        if above or components[0] not in self._base_names or not _RELATIVE.isdisjoint(components):
            return None
        self._count_step(file)
        try:
            mode, _ = self._look(name)
        except OSError as error:
            if error.errno not in _NOT_A_DIRECTORY:
                raise
            return None
        return None if stat.S_ISLNK(mode) else _Place(name, mode)

    def _resolve_symlinks(self, file: bytes) -> _Place | None:
        if not file.startswith(b"/"):
            return None
        # Remaining components, the next one last; and the directories resolved so far, from the image's root.
        todo = file.split(b"/")[::-1]
        done: list[bytes] = []
        links, mode = 0, stat.S_IFDIR
        while todo:
            component = todo.pop()
            # Each component counts: a link of a few thousand times "./" costs as much as a long name.
            self._count_step(file)
            if not stat.S_ISDIR(mode):
                return None  # something below a file
            if component in _RELATIVE:
                if component == b"..":
                    del done[-1:]
                continue
            if not self._is_in_the_image(done, component):
                return None
            done.append(component)
            name = b"/".join(done[len(_ABOVE) :])
            if not name:
                continue
            mode, target = self._look(name)
            if stat.S_ISLNK(mode):
                links += 1
                if links > _MOST_LINKS:
                    return None
                done = [] if target.startswith(b"/") else done[:-1]
                todo += target.split(b"/")[::-1]
                mode = stat.S_IFDIR
        return _Place(b"/".join(done[len(_ABOVE) :]), mode) if len(done) > len(_ABOVE) else None

    def _is_in_the_image(self, done: list[bytes], component: bytes) -> bool:
        """Whether the first few components may lead to the closure; avoids listing the store itself."""
        depth = len(done)
        if depth < len(_ABOVE):
            return component == _ABOVE[depth]
        return depth > len(_ABOVE) or component in self._base_names

    def _count_step(self, file: bytes, steps: int = 1) -> None:
        self._looked_at += steps
        if self._looked_at > _MOST_LOOK_UPS:
            reason = f"its symlinks take more than {_MOST_LOOK_UPS:,} look-ups"
            raise UnsafeContents(file, reason)

    def _look(self, name: bytes) -> tuple[int, bytes]:
        """Return the mode of the file with a name below the store, and its target if it is a symlink."""
        if len(name) > LONGEST_PATH:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        self._count_step(STORE + b"/" + name, len(name) // _BYTES_PER_LOOK_UP)
        return self._contents.look(name)
