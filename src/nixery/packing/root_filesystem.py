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

from nixery.closure.store_path import StorePath
from nixery.packing.entries import Directory, Entry, GeneratedFile, Symlink
from nixery.packing.inside import Inside
from nixery.packing.system_files import add_system_files
from nixery.packing.tree import Content, Link, Tree

# Of a package's top level: what is no part of a file system, or belongs to the kernel and to the runtime.
_LEFT_OUT = frozenset({b"nix", b"nix-support", b"dev", b"proc", b"sys", b"tmp"})

_LOCALES = b"lib/locale"

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
        clashes: the names that not every package got its way with, in order.
    """

    tree: Tree
    clashes: tuple[NameClash, ...]

    def entries(self) -> Iterator[Entry]:
        """Return the layer's entries, sorted, directories before what they hold."""
        yield from _entries(self.tree, b"")


def plan_root_filesystem(outputs: Iterable[InstalledOutput], closure: Sequence[StorePath]) -> RootFilesystem:
    """Lay outputs over each other and add what every system has.

    Args:
        outputs: of the requested packages, realised, in any order.
        closure: everything in the image: where a shell and ``env`` are looked for if no output has them.
    """
    inside = Inside(closure)
    merge = _Merge(inside)
    sources = [
        (str(output.path).encode(), output.package) for output in sorted(outputs, key=lambda o: o.rank)
    ]
    tree = merge.directories([source for source in sources if inside.is_directory(source[0])], b"")
    add_system_files(tree, closure, inside)
    return RootFilesystem(tree, tuple(merge.clashes))


class _Merge:
    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        self.clashes: list[NameClash] = []

    def directories(self, sources: Sequence[tuple[bytes, str]], name: bytes) -> Tree:
        """Merge directories, given with the package each is of, those that win clashes first."""
        providers: dict[bytes, list[tuple[bytes, str]]] = {}
        for directory, package in sources:
            for child in os.listdir(directory):
                providers.setdefault(child, []).append((os.path.join(directory, child), package))
        if not name:
            self._move_up(sources, providers)
        left_out = {b"": _LEFT_OUT, b"usr": BELOW_USR}.get(name, ())
        tree = Tree()
        for child in sorted(providers):
            if child not in left_out:
                tree.children[child] = self._child(providers[child], name + b"/" + child if name else child)
        return tree

    def _move_up(
        self, sources: Sequence[tuple[bytes, str]], providers: dict[bytes, list[tuple[bytes, str]]]
    ) -> None:
        for child in BELOW_USR:
            for directory, package in sources:
                below = os.path.join(directory, b"usr", child)
                if self._inside.is_directory(below):
                    providers.setdefault(child, []).append((below, package))

    def _child(self, sources: Sequence[tuple[bytes, str]], name: bytes) -> Tree | Link:
        (first, winner), *others = sources
        # At the top and in etc, packages have symlinks to directories as well (sbin -> bin, etc/ssl -> a configuration).
        # One that leads out of the image (etc -> /etc) must not bring in what this machine has there. Not further down:
        # symlinks that lead up again would have no end.
        above, _, _ = name.rpartition(b"/")
        is_directory = self._inside.is_directory if above in (b"", b"etc") else _is_real_directory
        for other, loser in others:
            both = is_directory(first) and is_directory(other)
            if not both and os.path.realpath(first) != os.path.realpath(other):
                self.clashes.append(NameClash(name.decode(errors="replace"), winner, loser))
        if not is_directory(first):
            return Link(first)
        directories = [source for source in sources if is_directory(source[0])]
        if len(directories) == 1 and b"/" in name and not name.startswith(b"etc/") and name != _LOCALES:
            return Link(first)
        return self.directories(directories, name)


def _is_real_directory(path: bytes) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _entries(tree: Tree, above: bytes) -> Iterator[Entry]:
    for child in sorted(tree.children):
        name = above + child
        match tree.children[child]:
            case Tree() as subtree:
                yield Directory(name, subtree.mode, subtree.owner)
                yield from _entries(subtree, name + b"/")
            case Link(target):
                yield Symlink(name, target)
            case Content(content):
                yield GeneratedFile(name, content)
