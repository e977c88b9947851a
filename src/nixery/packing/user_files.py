"""What the user needs that a definition names: an entry in ``/etc/passwd``, and directories to write into.

Runtimes refuse to start as a user whose name they do not find there. They make a missing working directory or mount point
themselves, but for root; and what they mount for a volume, Docker and Podman give the owner of the directory in the image.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from nixery.errors import StorageError
from nixery.packing.tree import Content, Link, Tree

# The first one that `useradd` gives.
_FIRST = 1000

_ROOT = (0, 0)

_PASSWD, _GROUP = b"etc/passwd", b"etc/group"

# Of either file: name, password, number; then a user's group.
_LINE = re.compile(r"([^:#]+):[^:]*:(\d+):(\d*)", re.ASCII)

# Belongs to the store, to the kernel or to the runtime.
_LEFT_OUT = frozenset({"nix", "dev", "proc", "sys"})


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    number: int
    group: int


def add_user_files(
    tree: Tree, user: str | None, working_directory: str | None, volumes: Iterable[str]
) -> None:
    """Make sure of a user's entry, and of directories that belong to it, where nothing stands yet.

    Args:
        tree: the root file system, with all else that it is to have.
        user: as in the config: ``name``, ``id``, ``name:group`` or ``id:id``; ``None`` for root.
        working_directory: absolute; the home of a new user as well.
        volumes: absolute.

    Raises:
        StorageError: a package's ``/etc/passwd`` or ``/etc/group`` cannot be read.
    """
    home = _name(working_directory or "/")
    owner = _owner(tree, user, home) if user else _ROOT
    # Sorted, a directory comes before what it holds.
    for name in sorted({home, *map(_name, volumes)}):
        if name and name.partition("/")[0] not in _LEFT_OUT:
            tree.add(name.encode(), Tree(owner=owner))


def _name(place: str) -> str:
    return posixpath.normpath(place).lstrip("/")


def _owner(tree: Tree, user: str, home: str) -> tuple[int, int]:
    name, _, group = user.partition(":")
    entry = _find(tree, _PASSWD, name)
    if name.isdecimal():
        # As the runtimes have it: without a group it is that of the entry, or root's.
        user_id, group_id = int(name), entry.group if entry else 0
    elif entry:
        user_id, group_id = entry.number, entry.group
    else:
        user_id = _free(tree, _PASSWD)
        group_id = _group(tree, group or name)
        # What the form of the file has no room for is no home.
        home = home if home.isprintable() and ":" not in home else ""
        _append(tree, _PASSWD, f"{name}:x:{user_id}:{group_id}::/{home}:/bin/sh")
    return user_id, _group(tree, group) if group else group_id


def _group(tree: Tree, group: str) -> int:
    if group.isdecimal():
        return int(group)
    entry = _find(tree, _GROUP, group)
    if entry:
        return entry.number
    number = _free(tree, _GROUP)
    _append(tree, _GROUP, f"{group}:x:{number}:")
    return number


def _find(tree: Tree, file: bytes, name: str) -> _Entry | None:
    """Find an entry by its name or its number."""
    return next((entry for entry in _entries(tree, file) if name in (entry.name, str(entry.number))), None)


def _free(tree: Tree, file: bytes) -> int:
    taken = {entry.number for entry in _entries(tree, file)}
    return next(number for number in count(_FIRST) if number not in taken)


def _entries(tree: Tree, file: bytes) -> Iterator[_Entry]:
    for line in _read(tree, file).decode(errors="replace").splitlines():
        if match := _LINE.match(line):
            yield _Entry(match[1], int(match[2]), int(match[3] or 0))


def _read(tree: Tree, file: bytes) -> bytes:
    match tree.get(file):
        case Content(content):
            return content
        case Link(target):
            try:
                with open(target, "rb") as source:
                    return source.read()
            except OSError as error:
                raise StorageError(f"cannot read {os.fsdecode(target)}: {error.strerror}") from error
        case _:
            return b""


def _append(tree: Tree, file: bytes, line: str) -> None:
    before = _read(tree, file)
    if before and not before.endswith(b"\n"):
        before += b"\n"
    above, _, last = file.rpartition(b"/")
    directory = tree.get(above)
    if isinstance(directory, Tree):
        directory.children[last] = Content(before + line.encode() + b"\n")
