"""The last layer: what a program or a person expects at ``/``, as symlinks into the store.

The outputs of the requested packages are laid over each other. A directory that only one of them has is one
symlink; one that several have, and everything at the top and below ``/etc``, is a real directory, because runtimes
mount files there and people add to it; so is ``/lib/locale``, where we add to it. What packages have in ``usr/bin`` is in
``/bin``, where ``/usr/bin`` leads. Where two packages have a file of the same name, the one with the lower
``meta.priority`` has it, then the one whose name comes first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nixery.beneath import LONGEST_PATH
from nixery.closure.store_path import StorePath
from nixery.errors import UnsafeContents
from nixery.packing.archive import Archive
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.entries import Directory, Entry, GeneratedFile, Symlink
from nixery.packing.system_files import add_system_files
from nixery.packing.tree import Content, Link, Tree

# Of a package's top level: what is no part of a file system, or belongs to the kernel and to the runtime.
_LEFT_OUT = frozenset({b"nix", b"nix-support", b"dev", b"proc", b"sys", b"tmp"})

_LOCALES = b"lib/locale"

# Levels of directories that are merged. The deepest of Debian's packages has 20.
_DEEPEST = 128

# Clashes that are reported: each is a line of the log.
_MOST_CLASHES = 1000

# Directories whose namesakes below /usr are symlinks to them.
BELOW_USR = (b"bin", b"lib", b"share")


@dataclass(frozen=True, slots=True)
class InstalledOutput:
    """An output that gets its place in the root file system.

    Attributes:
        package: its name, for the warning about a clash.
        priority: the lower number wins.
        implicit: in every image, whether or not anybody asked for it.
    """

    path: StorePath
    package: str
    priority: int
    implicit: bool = False

    @property
    def rank(self) -> tuple[bool, int, str, StorePath]:
        """What outputs are ordered by: the lowest wins a name clash. What nobody asked for gives way to everything."""
        return (self.implicit, self.priority, self.package, self.path)


@dataclass(frozen=True, slots=True)
class NameClash:
    """A name that more than one package has.

    Attributes:
        name: relative to the root.
        winner: package whose file is in the image.
        loser: package whose file is not.
    """

    name: str
    winner: str
    loser: str


@dataclass(frozen=True, slots=True)
class RootFilesystem:
    """A planned root file system.

    Attributes:
        tree: every name in it.
        clashes: the names that several packages provide differently, in order; bounded, since each is a log
            line.
    """

    tree: Tree
    clashes: tuple[NameClash, ...]

    def entries(self) -> Iterator[Entry]:
        """Return the layer's entries, sorted, directories before what they hold."""
        # Iterative: a definition's working directory can be deeper than the interpreter's stack.
        levels = [(b"", self.tree, iter(sorted(self.tree.children)))]
        while levels:
            above, tree, names = levels[-1]
            for child in names:
                name = above + child
                match tree.children[child]:
                    case Tree() as subtree:
                        yield Directory(name, subtree.mode, subtree.owner)
                        levels.append((name + b"/", subtree, iter(sorted(subtree.children))))
                        break
                    case Link(target):
                        yield Symlink(name, target)
                    case Content(content):
                        yield GeneratedFile(name, content)
            else:
                levels.pop()


def plan_root_filesystem(outputs: Iterable[InstalledOutput], files: ClosureFiles) -> RootFilesystem:
    """Merge outputs and add the files that every system has.

    Args:
        outputs: of the requested packages, realised, in any order.
        files: everything in the image; a shell and ``env`` are looked up here if no output has them.

    Raises:
        StorageError: a package cannot be read.
        UnsafeContents: packages have more names, deeper directories or longer links than an image may.
    """
    merge = _Merge(files)
    sources = [
        _Source(str(output.path).encode(), output.package) for output in sorted(outputs, key=lambda o: o.rank)
    ]
    tree = merge.directories([source for source in sources if files.is_directory(source.path)], b"")
    add_system_files(tree, files)
    return RootFilesystem(tree, tuple(merge.clashes))


class _Source(NamedTuple):
    """A name of a package that has its place in the root file system, and whether it is a directory itself, no symlink to one."""

    path: bytes
    package: str
    is_directory: bool = True


class _Merge:
    def __init__(self, files: ClosureFiles) -> None:
        self._files = files
        self.clashes: list[NameClash] = []

    def directories(self, sources: Sequence[_Source], name: bytes) -> Tree:
        """Merge directories, those that win clashes first."""
        providers: dict[bytes, list[_Source]] = {}
        for directory, package, _ in sources:
            # A listing tells what is a directory as well: no name of it has to be asked for.
            for child, is_directory in self._files.names(directory):
                found = _Source(directory + b"/" + child, package, is_directory)
                providers.setdefault(child, []).append(found)
        if not name:
            self._move_up(sources, providers)
        left_out = {b"": _LEFT_OUT, b"usr": BELOW_USR}.get(name, ())
        tree = Tree()
        for base_name in sorted(providers):
            if base_name not in left_out:
                full_name = name + b"/" + base_name if name else base_name
                tree.children[base_name] = self._child(providers[base_name], full_name)
        return tree

    def _move_up(self, sources: Sequence[_Source], providers: dict[bytes, list[_Source]]) -> None:
        for child in BELOW_USR:
            for directory, package, _ in sources:
                below = os.path.join(directory, b"usr", child)
                if self._files.is_directory(below):
                    providers.setdefault(child, []).append(_Source(below, package))

    def _child(self, sources: Sequence[_Source], name: bytes) -> Tree | Link:
        first, *others = sources
        if name.count(b"/") >= _DEEPEST:
            raise UnsafeContents(first.path, f"it is below more than {_DEEPEST} directories")
        if len(first.path) > LONGEST_PATH:
            raise UnsafeContents(first.path, f"its name has more than {LONGEST_PATH:,} bytes")
        # At the top and in etc, packages have symlinks to directories as well (sbin -> bin, etc/ssl -> a configuration).
        # One that leads out of the image (etc -> /etc) must not bring in what this machine has there. Not further down:
        # symlinks that lead up again would have no end.
        above, _, _ = name.rpartition(b"/")
        anyhow = above in (b"", b"etc")
        directories = [s for s in sources if s.is_directory or (anyhow and self._files.is_directory(s.path))]
        entered = {source.path for source in directories}
        for other in others if len(self.clashes) < _MOST_CLASHES else ():
            both = first.path in entered and other.path in entered
            if not both and not self._files.are_one(first.path, other.path):
                clash = NameClash(name.decode(errors="replace"), first.package, other.package)
                self.clashes.append(clash)
        if first.path not in entered:
            return Link(first.path)
        if len(directories) == 1 and b"/" in name and not name.startswith(b"etc/") and name != _LOCALES:
            return Link(first.path)
        return self.directories(directories, name)


def add_entries(archive: Archive, entries: Iterable[Entry]) -> None:
    """Add what a root file system holds to an archive."""
    for entry in entries:
        match entry:
            case Directory(name, mode, owner):
                archive.directory(name, mode, owner)
            case Symlink(name, target):
                archive.symlink(name, target)
            case GeneratedFile(name, content, mode):
                archive.file(name, mode, content)
