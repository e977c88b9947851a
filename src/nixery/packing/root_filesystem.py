"""The last layer of an image: the files that programs and users expect at ``/``, as symlinks into the store.

The outputs of the requested packages are laid over each other. A directory that only one of them has becomes
one symlink. Three kinds are real directories: one that several outputs have; everything at the top and below
``/etc``, because runtimes mount files there and people add to it; and ``/lib/locale``, to which this module
adds. The contents of a package's ``usr/bin`` are in ``/bin``, where ``/usr/bin`` leads. If two packages have
a file of the same name, the one with the lower ``meta.priority`` wins, then the one whose name comes first.
Files that every system has are added last; a package that brings one of them keeps its own.

Names are relative to the image's root, without a leading or trailing slash, and bytes: a store path may hold
names that are not UTF-8. All entries have the same times, and the same owner except directories that an
image's user is to write into.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from nixery.closure import StorePath
from nixery.errors import UnsafeContents
from nixery.files import LONGEST_PATH
from nixery.packing.archive import Archive
from nixery.packing.closure_files import ClosureFiles

CA_BUNDLE = b"etc/ssl/certs/ca-bundle.crt"
ZONEINFO = b"share/zoneinfo"
LOCALE_ARCHIVE = b"lib/locale/locale-archive"

_CA_CERTIFICATES = b"etc/ssl/certs/ca-certificates.crt"

# Programs that look up their user fail without an entry, and servers drop privileges to the user ``nobody``.
PASSWD, GROUP = b"etc/passwd", b"etc/group"
ACCOUNTS = {
    PASSWD: b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    GROUP: b"root:x:0:\nnobody:x:65534:\n",
}

# Without it the C library does not look into /etc/hosts, where runtimes write the names of containers.
_NSSWITCH = b"passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"

# Scripts begin with #!/bin/sh or #!/usr/bin/env, and the C library's system() calls /bin/sh. C.utf8 is the
# locale that LANG names; a C library that was not built by Nix looks for locales in /usr/lib/locale, and for
# time zones in /usr/share/zoneinfo.
_CLOSURE_FILES = (b"bin/sh", b"bin/env", b"lib/locale/C.utf8", LOCALE_ARCHIVE, ZONEINFO)

# Directories whose namesakes below /usr are symlinks to them.
BELOW_USR = (b"bin", b"lib", b"share")

# At a package's top level: names that are not part of a file system, or belong to the kernel and to the
# runtime.
_LEFT_OUT = frozenset({b"nix", b"nix-support", b"dev", b"proc", b"sys", b"tmp"})

_LOCALES = b"lib/locale"

# Levels of directories that are merged. The deepest of Debian's packages has 20.
_DEEPEST = 128

# Clashes that are reported: each is a line of the log.
_MOST_CLASHES = 1000


@dataclass(frozen=True, slots=True)
class InstalledOutput:
    """An output that is installed into the root file system.

    Attributes:
        path: of the output.
        package: its name, for the warning about a clash.
        priority: the lower number wins.
        implicit: whether it is in every image rather than requested.
    """

    path: StorePath
    package: str
    priority: int
    implicit: bool = False

    @property
    def rank(self) -> tuple[bool, int, str, StorePath]:
        """The sort key of outputs: the lowest wins a name clash. An implicit output loses to every other one."""
        return (self.implicit, self.priority, self.package, self.path)


@dataclass(frozen=True, slots=True)
class NameClash:
    """A file name that several packages have.

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
        tree: its directories, links and files.
        clashes: names that several packages provide differently, in order; bounded, since each is a log
            line.
    """

    tree: Tree
    clashes: tuple[NameClash, ...]

    def entries(self) -> Iterator[Entry]:
        """Yield the layer's entries, sorted, directories before their contents."""
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
    """Merge outputs, and add the files that every system has.

    Args:
        outputs: of the requested packages, realised, in any order.
        files: of the image; a shell and ``env`` are looked up here if no output has them.

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


def add_entries(archive: Archive, entries: Iterable[Entry]) -> None:
    """Add the entries of a root file system to an archive."""
    for entry in entries:
        match entry:
            case Directory(name, mode, owner):
                archive.directory(name, mode, owner)
            case Symlink(name, target):
                archive.symlink(name, target)
            case GeneratedFile(name, content, mode):
                archive.file(name, mode, content)


class Directory(NamedTuple):
    """A directory; must come before its contents. Its owner is the ids of a user and a group.

    Entries are tuples because there can be many thousands: a frozen dataclass takes twice as long to make.
    """

    name: bytes
    mode: int = 0o755
    owner: tuple[int, int] = (0, 0)


class Symlink(NamedTuple):
    """A symbolic link; its target is written as it is."""

    name: bytes
    target: bytes


class GeneratedFile(NamedTuple):
    """A small generated file."""

    name: bytes
    content: bytes
    mode: int = 0o644


Entry = Directory | Symlink | GeneratedFile


@dataclass(frozen=True, slots=True)
class Link:
    """A symlink."""

    target: bytes


@dataclass(frozen=True, slots=True)
class Content:
    """A generated file."""

    content: bytes


@dataclass(slots=True)
class Tree:
    """A directory with its children by name; its owner is the ids of a user and a group."""

    children: dict[bytes, Tree | Link | Content] = field(default_factory=dict)
    mode: int = 0o755
    owner: tuple[int, int] = (0, 0)

    def get(self, name: bytes) -> Tree | Link | Content | None:
        """Return the node at a path; ``None`` if there is none, or a symlink on the way."""
        node: Tree | Link | Content | None = self
        for component in name.split(b"/"):
            if not isinstance(node, Tree):
                return None
            node = node.children.get(component)
        return node

    def add(self, name: bytes, node: Tree | Link | Content) -> None:
        """Add a node at a path, unless the path or a parent of it is taken."""
        *above, last = name.split(b"/")
        directory = self
        for component in above:
            child = directory.children.setdefault(component, Tree())
            if not isinstance(child, Tree):
                return
            directory = child
        directory.children.setdefault(last, node)

    def remove(self, name: bytes) -> None:
        """Remove the node at a path, if there is one."""
        above, _, last = name.rpartition(b"/")
        directory = self.get(above) if above else self
        if isinstance(directory, Tree):
            directory.children.pop(last, None)


class _Source(NamedTuple):
    """A file of a package, and whether it is a directory itself rather than a symlink to one."""

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
            # The listing also tells which names are directories, which saves a look-up for each.
            for child, is_directory in self._files.names(directory):
                found = _Source(directory + b"/" + child, package, is_directory)
                providers.setdefault(child, []).append(found)
        if not name:
            self._merge_below_usr(sources, providers)
        left_out = {b"": _LEFT_OUT, b"usr": BELOW_USR}.get(name, ())
        tree = Tree()
        for base_name in sorted(providers):
            if base_name not in left_out:
                full_name = name + b"/" + base_name if name else base_name
                tree.children[base_name] = self._child(providers[base_name], full_name)
        return tree

    def _merge_below_usr(self, sources: Sequence[_Source], providers: dict[bytes, list[_Source]]) -> None:
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
        # At the top and in etc, packages have symlinks to directories as well (sbin -> bin, etc/ssl -> a
        # configuration). One that leads out of the image (etc -> /etc) must not bring in files of this
        # machine. Not further down: symlinks that lead up again would never end.
        above, _, _ = name.rpartition(b"/")
        follow = above in (b"", b"etc")
        directories = [s for s in sources if s.is_directory or (follow and self._files.is_directory(s.path))]
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


def add_system_files(tree: Tree, files: ClosureFiles) -> None:
    """Add to a tree of packages the system files that it lacks.

    Raises:
        StorageError: a package cannot be read.
        UnsafeContents: see ``ClosureFiles``.
    """
    tree.add(b"bin", Tree())
    for name, content in ACCOUNTS.items():
        tree.add(name, Content(content))
    tree.add(b"etc/nsswitch.conf", Content(_NSSWITCH))
    tree.add(b"root", Tree(mode=0o700))
    tree.add(b"tmp", Tree(mode=0o1777))
    tree.add(b"var/tmp", Tree(mode=0o1777))
    tree.add(b"usr/bin", Link(b"../bin"))
    for name, other in ((CA_BUNDLE, _CA_CERTIFICATES), (_CA_CERTIFICATES, CA_BUNDLE)):
        if isinstance(tree.get(name), Link):
            # A link to the name rather than into the store: replacing that file then replaces both.
            tree.add(other, Link(os.path.basename(name)))
    candidates = sorted(files.closure, key=lambda path: (path.name, path.base_name))
    for name in _CLOSURE_FILES:
        present = tree.get(name)
        if isinstance(present, Link) and not files.exists(present.target):
            # A package's bin/sh -> /bin/sh would lead to itself.
            tree.remove(name)
            present = None
        if present is None:
            places = (str(path).encode() + b"/" + name for path in candidates)
            target = next((file for file in places if files.exists(file)), None)
            if target is not None:
                tree.add(name, Link(target))
    # Programs have paths below /usr compiled in. Last, so that no link is dangling.
    for name in (b"lib", b"share"):
        if name in tree.children:
            tree.add(b"usr/" + name, Link(b"../" + name))
