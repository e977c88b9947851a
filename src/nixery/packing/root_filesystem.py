"""The last layer of an image: the files that programs and users expect at ``/``, as symlinks into the store.

The outputs of the requested packages are laid over each other. People copy and mount files into an image:
BuildKit refuses to copy a directory over a symlink, and Buildah replaces the symlink. So the directories of the
file system hierarchy (``BASE_DIRECTORIES``) are real directories in every image, and so are the directories of
packages near the root and everywhere below ``/etc`` and ``/var``. A directory further down that only one output
has becomes one symlink, which keeps the layer small: a symlink for each file takes 4 KiB on most disks.

Packages of Nix have their files at the top (``bin``), those of other systems below ``usr`` (``usr/bin``). In
the image both names lead to the files of both: ``/bin``, ``/sbin`` and ``/lib`` have the same names as their
counterparts below ``/usr``; ``/share``, ``/include`` and ``/libexec`` are symlinks to the directories below
``/usr``.

If two packages have a file of the same name, the one with the lower ``meta.priority`` wins, then the one
whose name comes first.

Names are relative to the image's root, without a leading or trailing slash, and bytes: a store path may hold
names that are not UTF-8. All entries have the same times, and the same owner except directories and files
that an image's user is to write into.
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

# In every image, with their modes: the directories that the base images of Debian, Alpine and Red Hat have, or
# two of them, except /boot. The Filesystem Hierarchy Standard 3.0 describes them.
BASE_DIRECTORIES = {
    b"bin": 0o755,
    b"dev": 0o755,
    b"etc": 0o755,
    b"etc/opt": 0o755,
    b"etc/profile.d": 0o755,
    b"etc/ssl": 0o755,
    b"etc/ssl/certs": 0o755,
    b"home": 0o755,
    b"lib": 0o755,
    b"media": 0o755,
    b"mnt": 0o755,
    b"opt": 0o755,
    b"proc": 0o755,
    b"root": 0o700,
    b"run": 0o755,
    b"run/lock": 0o1777,
    b"sbin": 0o755,
    b"srv": 0o755,
    b"sys": 0o755,
    b"tmp": 0o1777,
    b"usr": 0o755,
    b"usr/bin": 0o755,
    b"usr/games": 0o755,
    b"usr/include": 0o755,
    b"usr/lib": 0o755,
    b"usr/libexec": 0o755,
    b"usr/local": 0o755,
    b"usr/local/bin": 0o755,
    b"usr/local/etc": 0o755,
    b"usr/local/games": 0o755,
    b"usr/local/include": 0o755,
    b"usr/local/lib": 0o755,
    b"usr/local/sbin": 0o755,
    b"usr/local/share": 0o755,
    b"usr/local/src": 0o755,
    b"usr/sbin": 0o755,
    b"usr/share": 0o755,
    b"usr/src": 0o755,
    b"var": 0o755,
    b"var/cache": 0o755,
    b"var/empty": 0o555,
    b"var/lib": 0o755,
    b"var/local": 0o755,
    b"var/log": 0o755,
    b"var/mail": 0o755,
    b"var/opt": 0o755,
    b"var/spool": 0o755,
    b"var/tmp": 0o1777,
}

# Each name below /usr is a name at the top as well.
_LINKED_BELOW_USR = (b"bin", b"lib", b"sbin")

# At the top, symlinks to the directories below /usr.
_MOVED_BELOW_USR = (b"include", b"libexec", b"share")

# Packages may have these at the top or below usr.
_BELOW_USR = (*_LINKED_BELOW_USR, *_MOVED_BELOW_USR)

# Programs keep their sockets and locks in /run, whose directories have older names.
_OLDER_NAMES = {b"var/lock": b"../run/lock", b"var/run": b"../run"}
_OF_THE_RUNTIME = (b"lock", b"run", b"tmp")

# At a package's top level: names that are not part of a file system, or belong to the kernel and to the
# runtime.
_LEFT_OUT = frozenset({b"nix", b"nix-support", b"dev", b"proc", b"run", b"sys", b"tmp"})

# The names at the top that the image has of a dependency: others are private to the package, such as the
# entries of a terminal database.
_OF_THE_HIERARCHY = {name.partition(b"/")[0] for name in BASE_DIRECTORIES} | {*_BELOW_USR, b"lib32", b"lib64"}

# Directories of one package are real down to this level of their names at the top: in the image,
# /usr/share/postgresql/15/extension, but not the directories in it.
_REAL_LEVELS = 4

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
        implicit: not requested: it is in every image, or a dependency.
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
    """A file name that several requested packages have.

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
                    case Content(content, mode, owner):
                        yield GeneratedFile(name, content, mode, owner)
            else:
                levels.pop()


def plan_root_filesystem(outputs: Iterable[InstalledOutput], files: ClosureFiles) -> RootFilesystem:
    """Merge outputs into a tree with the base directories, which ``complete_below_usr`` has to complete.

    Args:
        outputs: realised, in any order.
        files: of the image.

    Raises:
        StorageError: a package cannot be read.
        UnsafeContents: packages have more names, deeper directories or longer links than an image may.
    """
    merge = _Merge(files)
    sources = [_Source(str(output.path).encode(), output) for output in sorted(outputs, key=lambda o: o.rank)]
    tree = merge.directories([source for source in sources if files.is_directory(source.path)], b"")
    for name, mode in _BASE.items():
        tree.directory(name, mode)
    for name, target in _OLDER_NAMES.items():
        tree.add(name, Link(target))
    return RootFilesystem(tree, tuple(merge.clashes))


def before_completion(name: bytes) -> bytes:
    """Return where a name is in a tree that ``complete_below_usr`` has not completed yet."""
    first, _, rest = name.partition(b"/")
    return rest if first == b"usr" and rest.partition(b"/")[0] in _BELOW_USR else name


# As in a tree that is not complete.
_BASE = {before_completion(name): mode for name, mode in BASE_DIRECTORIES.items()}


def complete_below_usr(tree: Tree) -> None:
    """Give the files at the top of a tree their names below ``/usr``; later additions would have one name only."""
    usr = tree.directory(b"usr")
    for name in _MOVED_BELOW_USR:
        usr.children[name] = tree.directory(name)
        tree.children[name] = Link(b"usr/" + name)
    for name in _LINKED_BELOW_USR:
        top, below = tree.directory(name), usr.directory(name)
        for base_name, node in top.children.items():
            if isinstance(node, Tree):
                # Files are copied and mounted into /usr/lib more often than into /lib.
                below.children[base_name] = node
                top.children[base_name] = Link(b"/".join((b"..", b"usr", name, base_name)))
            else:
                below.children[base_name] = Link(b"/".join((b"../..", name, base_name)))


def add_entries(archive: Archive, entries: Iterable[Entry]) -> None:
    """Add the entries of a root file system to an archive."""
    for entry in entries:
        match entry:
            case Directory(name, mode, owner):
                archive.directory(name, mode, owner)
            case Symlink(name, target):
                archive.symlink(name, target)
            case GeneratedFile(name, content, mode, owner):
                archive.file(name, mode, content, owner)


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
    owner: tuple[int, int] = (0, 0)


Entry = Directory | Symlink | GeneratedFile


@dataclass(frozen=True, slots=True)
class Link:
    """A symlink."""

    target: bytes


@dataclass(frozen=True, slots=True)
class Content:
    """A generated file; its owner is the ids of a user and a group."""

    content: bytes
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)


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

    def directory(self, name: bytes, mode: int = 0o755) -> Tree:
        """Return the directory at a path; make it, instead of anything else that is there.

        Args:
            name: of the directory.
            mode: that it gets.
        """
        tree = self
        for component in name.split(b"/"):
            child = tree.children.get(component)
            if not isinstance(child, Tree):
                child = tree.children[component] = Tree()
            tree = child
        tree.mode = mode
        return tree

    def remove(self, name: bytes) -> None:
        """Remove the node at a path, if there is one."""
        above, _, last = name.rpartition(b"/")
        directory = self.get(above) if above else self
        if isinstance(directory, Tree):
            directory.children.pop(last, None)


class _Source(NamedTuple):
    """A file of a package.

    Attributes:
        path: of the file.
        output: that it belongs to.
        is_directory: whether it is a directory itself rather than a symlink to one.
    """

    path: bytes
    output: InstalledOutput
    is_directory: bool = True


class _Merge:
    def __init__(self, files: ClosureFiles) -> None:
        self._files = files
        self.clashes: list[NameClash] = []

    def directories(self, sources: Sequence[_Source], name: bytes) -> Tree:
        """Merge directories, those that win clashes first."""
        providers: dict[bytes, list[_Source]] = {}
        for directory, output, _ in sources:
            # The listing also tells which names are directories, which saves a look-up for each.
            for child, is_directory in self._files.names(directory):
                if not name and output.implicit and child not in _OF_THE_HIERARCHY:
                    continue
                found = _Source(directory + b"/" + child, output, is_directory)
                providers.setdefault(child, []).append(found)
        if not name:
            self._merge_below_usr(sources, providers)
        left_out = {b"": _LEFT_OUT, b"usr": _BELOW_USR, b"var": _OF_THE_RUNTIME}.get(name, ())
        tree = Tree()
        for base_name in sorted(providers):
            if base_name not in left_out:
                full_name = name + b"/" + base_name if name else base_name
                tree.children[base_name] = self._child(providers[base_name], full_name)
        return tree

    def _merge_below_usr(self, sources: Sequence[_Source], providers: dict[bytes, list[_Source]]) -> None:
        for child in _BELOW_USR:
            for directory, output, _ in sources:
                below = os.path.join(directory, b"usr", child)
                if self._files.is_directory(below):
                    providers.setdefault(child, []).append(_Source(below, output))
            if child in providers:
                providers[child].sort(key=lambda source: source.output.rank)

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
        follow = above in (b"", b"etc") or name in _BASE
        directories = [s for s in sources if s.is_directory or (follow and self._files.is_directory(s.path))]
        entered = {source.path for source in directories}
        if name in _BASE:
            # A file in its place loses.
            first, *others = sorted(sources, key=lambda source: source.path not in entered)
        for other in others if len(self.clashes) < _MOST_CLASHES else ():
            if other.output.implicit:
                continue  # users do not expect the files of a package that they did not request
            both = first.path in entered and other.path in entered
            if not both and not self._files.are_one(first.path, other.path):
                clash = NameClash(name.decode(errors="replace"), first.output.package, other.output.package)
                self.clashes.append(clash)
        if name in _BASE:
            return self.directories(directories, name)
        if first.path not in entered:
            return Link(first.path)
        if len(directories) == 1 and not _is_real(name):
            return Link(first.path)
        return self.directories(directories, name)


def _is_real(name: bytes) -> bool:
    """Whether a directory is real in the image even if only one package has it."""
    return name.count(b"/") < _REAL_LEVELS or name.startswith((b"etc/", b"var/"))
