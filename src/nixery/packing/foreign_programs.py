"""The loader and the cache of libraries that programs from elsewhere expect.

Programs that Nix built name their loader and the directories of their libraries by store paths. Other
programs, such as the Node that a CI runner mounts, a wheel for Python or a downloaded binary, name the
system's loader (``/lib64/ld-linux-x86-64.so.2``), and their libraries by file name only. An image with the
GNU C library has that loader, and ``/etc/ld.so.cache``, in which the loader finds the image's libraries.

Programs that Nix built are left alone. The loader that they name in the store reads another cache (that of
nixpkgs), or this one for libraries that the program's own directories lack (Debian's).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from nixery.closure import StorePath
from nixery.errors import UnsafeContents
from nixery.image.platform import AMD64, ARM64, Platform
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.root_filesystem import Content, Link, Tree

_CACHE = b"etc/ld.so.cache"

# Editors read the version of the C library from this file, in /usr/lib, if there is no /sbin/ldconfig.
_C_LIBRARY = b"libc.so.6"


@dataclass(frozen=True, slots=True)
class _ABI:
    """A platform's constants.

    Attributes:
        loader: where programs expect it, by the platform's ABI.
        triplet: a directory of libraries, named for the platform by Debian.
        machine: ``e_machine`` of its ELF files.
        flags: in the cache, of its libraries for version 6 of the C library (glibc's ``ldconfig.h``).
    """

    loader: bytes
    triplet: bytes
    machine: int
    flags: int


_ABIS = {
    AMD64: _ABI(b"lib64/ld-linux-x86-64.so.2", b"x86_64-linux-gnu", 62, 0x0303),
    ARM64: _ABI(b"lib/ld-linux-aarch64.so.1", b"aarch64-linux-gnu", 183, 0x0A03),
}

# Bytes. A loader has some 200 KiB, and with debugging information a few MiB.
_LARGEST_LOADER = 1 << 24

# Limits of the cache: its libraries, and the bytes of their paths. The largest images of Debian's packages
# have some 2,000 libraries.
_MOST_LIBRARIES = 1 << 14
_MOST_BYTES = 1 << 22

# The loader compares numbers in names as C's int, and other characters as C's char, whose order differs
# between platforms beyond ASCII.
_LIBRARY = re.compile(rb"lib[!-~]*\.so(?:\.[!-~]+)?")
_LONG_NUMBER = re.compile(rb"[0-9]{10}")
_NUMBER_OR_CHARACTER = re.compile(rb"([0-9]+)|(.)", re.DOTALL)

# The beginning of an ELF file: magic number, 64 bits, little endian; then the file's type and e_machine.
_ELF = b"\x7fELF\x02\x01"
_MACHINE = struct.Struct("<18xH")

# The cache's format, glibc's dl-cache.h. Header: magic number and version, number of entries, bytes of the
# strings, byte order, no extensions. Entry: flags, offsets of name and path.
_HEADER = struct.Struct("<20sIIB3xI12x")
_MAGIC, _LITTLE_ENDIAN, _NO_EXTENSIONS = b"glibc-ld.so.cache1.1", 2, 0
_ENTRY = struct.Struct("<iII12x")


def add_loader(tree: Tree, files: ClosureFiles, platform: Platform) -> None:
    """Add the loader and its cache to a tree of packages whose closure has the GNU C library.

    A loader or a cache that a package brings stays.

    Raises:
        StorageError: a package cannot be read.
        UnsafeContents: there are too many libraries, the loader is too large, or see ``ClosureFiles``.
    """
    finder = _Finder(tree, files, _ABIS[platform])
    loader = finder.loader()
    if loader is None:
        return
    name = finder.abi.loader
    tree.remove(name)
    tree.add(name, _with_system_cache(loader, files))
    libraries = finder.libraries(loader)
    tree.add(_CACHE, Content(_cache(libraries, finder.abi.flags)))
    c_library = libraries.get(_key(_C_LIBRARY))
    if c_library is not None:
        tree.add(b"lib/" + _C_LIBRARY, Link(c_library.file))


class _Loader(NamedTuple):
    """A loader in the store, and the store path of its C library."""

    file: bytes
    path: StorePath


class _Library(NamedTuple):
    """A library: its name, where the image has it, and where the store has it."""

    name: bytes
    place: bytes
    file: bytes


class _Directory(NamedTuple):
    """A directory of libraries in the store, with the names in it that may be libraries or loaders."""

    path: StorePath
    name: bytes
    children: tuple[bytes, ...]

    def libraries(self) -> Iterator[_Library]:
        for child in self.children:
            file = self.name + b"/" + child
            yield _Library(child, file, file)


class _Finder:
    """Finds loaders and libraries in an image."""

    def __init__(self, tree: Tree, files: ClosureFiles, abi: _ABI) -> None:
        self.abi = abi
        self._tree = tree
        self._files = files
        # The highest version first: a program runs with a newer C library than the one it was built with, but
        # not with an older one.
        by_name = sorted(files.closure, key=lambda path: (path.name, path.base_name))
        by_version = sorted(by_name, key=_version, reverse=True)
        self._directories = [directory for path in by_version for directory in self._directories_of(path)]

    def _directories_of(self, path: StorePath) -> Iterator[_Directory]:
        for place in (b"lib/" + self.abi.triplet, b"lib"):
            name = f"{path}/".encode() + place
            if self._files.is_directory(name):
                yield _Directory(path, name, tuple(self._names(name)))

    def _names(self, directory: bytes) -> list[bytes]:
        return sorted(name for name, _ in self._files.names(directory))

    def loader(self) -> _Loader | None:
        """Return the loader of the newest C library, or of the one that a package puts in the loader's place."""
        name = self.abi.loader.rpartition(b"/")[2]
        found = [
            _Loader(directory.name + b"/" + name, directory.path)
            for directory in self._directories
            if name in directory.children and self._is_native(directory.name + b"/" + name)
        ]
        present = self._tree.get(self.abi.loader)
        if isinstance(present, Link) and self._files.exists(present.target):
            found = [loader for loader in found if self._files.are_one(loader.file, present.target)]
        return found[0] if found else None

    def libraries(self, loader: _Loader) -> dict[_Key, _Library]:
        """Return the libraries of the C library, of the image's own directories, and of the closure.

        Of several with the same name, the first is returned: a loader needs the C library that it was built
        with.
        """
        found: dict[_Key, _Library] = {}
        size = 0
        for library in self._candidates(loader):
            if not _LIBRARY.fullmatch(library.name) or _LONG_NUMBER.search(library.name):
                continue
            key = _key(library.name)
            if key in found or not self._is_native(library.file):
                continue
            found[key] = library
            size += len(library.place)
            if len(found) > _MOST_LIBRARIES or size > _MOST_BYTES:
                reason = f"it would list more than {_MOST_LIBRARIES:,} libraries or {_MOST_BYTES:,} bytes"
                raise UnsafeContents(b"/" + _CACHE, reason)
        return found

    def _candidates(self, loader: _Loader) -> Iterator[_Library]:
        for directory in self._directories:
            if directory.path == loader.path:
                yield from directory.libraries()
        for name in (b"lib/" + self.abi.triplet, b"lib"):
            yield from self._of_the_image(name)
        for directory in self._directories:
            yield from directory.libraries()

    def _of_the_image(self, name: bytes) -> Iterator[_Library]:
        """Yield the libraries of a directory that is real, or a symlink to one of the store.

        By their place in the image, so that a file that is later copied over one of them is found instead.
        """
        match self._tree.get(name):
            case Tree(children):
                for child, node in sorted(children.items(), key=lambda item: item[0]):
                    if isinstance(node, Link):
                        yield _Library(child, b"/" + name + b"/" + child, node.target)
            case Link(target) if self._files.is_directory(target):
                for child in self._names(target):
                    yield _Library(child, b"/" + name + b"/" + child, target + b"/" + child)

    def _is_native(self, file: bytes) -> bool:
        """Whether it is an ELF file of the platform: linker scripts and 32-bit libraries have the same names."""
        beginning = self._files.read_beginning(file, _MACHINE.size) or b""
        is_elf = len(beginning) == _MACHINE.size and beginning.startswith(_ELF)
        return is_elf and _MACHINE.unpack(beginning) == (self.abi.machine,)


def _version(path: StorePath) -> list[int]:
    """The numbers in the version of a store path: 2, 38 and 27 of ``glibc-2.38-27``."""
    version = path.name.removeprefix(path.package_name)
    return [int(number) for number in re.findall(r"[0-9]+", version)]


def _with_system_cache(loader: _Loader, files: ClosureFiles) -> Link | Content:
    """Return a node for a loader that reads ``/etc/ld.so.cache``.

    In nixpkgs, the loader has a cache in its own store path compiled in, which does not exist. Programs from
    elsewhere get a copy with the system's instead.
    """
    compiled_in = f"{loader.path}/".encode() + _CACHE + b"\0"
    content = files.read(loader.file, _LARGEST_LOADER)
    # As a string of its own: the text of --help has the name, too.
    if content is None or content.count(b"\0" + compiled_in) != 1:
        return Link(loader.file)
    system = (b"/" + _CACHE).ljust(len(compiled_in), b"\0")
    return Content(content.replace(b"\0" + compiled_in, b"\0" + system), 0o755)


# Of a name, for comparison: its characters, and numbers, which are greater than all of them. A pair for each would take
# 16 KiB for a long name.
_Key = tuple[int, ...]

_ABOVE_CHARACTERS = 1 << 8


def _key(name: bytes) -> _Key:
    """The sort key of a name, by glibc's ``_dl_cache_libcmp``: ``libz.so.10`` comes after ``libz.so.9``."""
    return tuple(
        _ABOVE_CHARACTERS + int(number) if number else character[0]
        for number, character in _NUMBER_OR_CHARACTER.findall(name)
    )


def _cache(libraries: dict[_Key, _Library], flags: int) -> bytes:
    """Return the file in which the loader looks names up by halving: the last one in the order comes first."""
    count = len(libraries)
    offset = _HEADER.size + count * _ENTRY.size
    entries, strings = [], []
    for key in sorted(libraries, reverse=True):
        library = libraries[key]
        # The name is the end of the path.
        end = offset + len(library.place)
        entries.append(_ENTRY.pack(flags, end - len(library.name), offset))
        strings.append(library.place + b"\0")
        offset = end + 1
    size = sum(map(len, strings))
    header = _HEADER.pack(_MAGIC, count, size, _LITTLE_ENDIAN, _NO_EXTENSIONS)
    return header + b"".join(entries) + b"".join(strings)
