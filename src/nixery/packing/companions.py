"""Programs that look for their files beside themselves, where these belong to several packages.

LibreOffice's ``soffice`` runs ``oosplash``, which loads ``libswlo.so``: three packages of Debian have a file each in
``/usr/lib/libreoffice/program``. A program asks the kernel, or follows links from its own name, for where it is.
Behind a symlink that is the store path of one package, in which the others' files are not. So such a program is a
file of the image's root, in the directory that has the files of all packages, and its names in ``/bin`` lead there.

This is for packages that expect the file system hierarchy (``meta.fhs``): those of Nix do not share directories.
"""

from __future__ import annotations

from collections.abc import Iterator

from nixery.packing.closure_files import ClosureFiles
from nixery.packing.root_filesystem import Content, Link, Tree

# The programs in question are scripts, and launchers that load the rest as a library.
_LARGEST_PROGRAM = 1 << 20
_MOST_BYTES = 16 << 20

_DIRECTORIES_OF_PROGRAMS = (b"bin", b"sbin", b"games", b"usr/games")

_MODE = 0o755


def copy_programs_beside_their_files(tree: Tree, files: ClosureFiles) -> None:
    """Put programs into directories that several packages fill; the tree is not completed below ``/usr`` yet.

    Programs of more than a MiB, and all after the first 16 MiB, remain symlinks.

    Raises:
        StorageError: a package cannot be read.
        UnsafeContents: its symlinks take more look-ups than an image may need.
    """
    places: dict[bytes, bytes] = {}
    # Thousands of names may lead to one program.
    too_large: set[bytes] = set()
    room = _MOST_BYTES
    for name, directory in _shared_directories(tree):
        for base_name, node in sorted(directory.children.items()):
            # Of a library, some of which are executable, the loader knows the name that it was found by.
            if not isinstance(node, Link) or b".so" in base_name:
                continue
            program = files.program(node.target)
            if program is None or program in too_large:
                continue
            content = files.read_beginning(program, min(_LARGEST_PROGRAM, room) + 1) or b""
            if len(content) > min(_LARGEST_PROGRAM, room):
                too_large.add(program)
                continue
            room -= len(content)
            directory.children[base_name] = Content(content, _MODE)
            places.setdefault(program, b"/usr/" + name + b"/" + base_name)
    if places:
        _lead_names_to(places, tree, files)


def _lead_names_to(places: dict[bytes, bytes], tree: Tree, files: ClosureFiles) -> None:
    for name in _DIRECTORIES_OF_PROGRAMS:
        directory = tree.get(name)
        if not isinstance(directory, Tree):
            continue
        for base_name, node in directory.children.items():
            if isinstance(node, Link) and (program := files.program(node.target)) in places:
                directory.children[base_name] = Link(places[program])


def _shared_directories(tree: Tree) -> Iterator[tuple[bytes, Tree]]:
    """Yield the directories below ``lib`` and ``share`` whose files belong to several store paths, in order."""
    waiting = [(top, child) for top in (b"share", b"lib") if isinstance(child := tree.get(top), Tree)]
    while waiting:
        name, directory = waiting.pop()
        if b"/" in name and _has_several_owners(directory):
            yield name, directory
        waiting += [
            (name + b"/" + base_name, child)
            for base_name, child in sorted(directory.children.items(), reverse=True)
            if isinstance(child, Tree)
        ]


def _has_several_owners(directory: Tree) -> bool:
    links = (node.target for node in directory.children.values() if isinstance(node, Link))
    return len({tuple(target.split(b"/", 4)[:4]) for target in links}) > 1
