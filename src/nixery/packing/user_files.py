"""The user of an image definition: an entry in ``/etc/passwd``, and directories to write into.

Runtimes refuse to start as a user without an entry. They create a missing working directory or mount point,
but for root; and Docker and Podman give a volume the owner of its directory in the image.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from nixery.errors import UnsafeContents
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.root_filesystem import Content, Link, Tree, before_completion
from nixery.packing.system_files import ACCOUNTS, GROUP, PASSWD

# The first one that `useradd` gives.
_FIRST = 1000

_ROOT = (0, 0)

# Of either file: name, password, number; then a user's group.
_LINE = re.compile(r"([^:#]+):[^:]*:(\d+):(\d*)", re.ASCII)

# Limits for a package's file, in bytes and in lines. Debian's own have some 2,000 bytes.
_MOST_BYTES = 1 << 20
_MOST_LINES = 1 << 16

# The next number, -1 in 32 bits, means "do not change" to chown(2).
_LARGEST_ID = (1 << 32) - 2

# Names that belong to the store, the kernel or the runtime.
_LEFT_OUT = frozenset({"nix", "dev", "proc", "sys"})


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    number: int
    group: int


def add_user_files(
    tree: Tree, files: ClosureFiles, user: str | None, working_directory: str | None, volumes: Iterable[str]
) -> tuple[int, int]:
    """Add the user's entry, and the directories that belong to the user, unless the tree has them.

    Args:
        tree: the root file system, otherwise complete.
        files: of the image, for the packages' ``/etc/passwd`` and ``/etc/group``.
        user: as in the config: ``name``, ``id``, ``name:group`` or ``id:id``; ``None`` for root.
        working_directory: absolute; also the home of a new user.
        volumes: absolute.

    Returns:
        The ids of the user and its group.

    Raises:
        StorageError: a package's ``/etc/passwd`` or ``/etc/group`` cannot be read.
        UnsafeContents: one of them is not a regular file, is too large, or has ids that no user can have.
    """
    home = _name(working_directory or "/")
    owner = _Accounts(tree, files).owner(user, home) if user else _ROOT
    # Sorted, a directory comes before what it holds.
    for name in sorted({home, *map(_name, volumes)}):
        if name and name.partition("/")[0] not in _LEFT_OUT:
            tree.add(before_completion(name.encode()), Tree(owner=owner))
    return owner


def _name(place: str) -> str:
    return posixpath.normpath(place).lstrip("/")


class _Accounts:
    """``/etc/passwd`` and ``/etc/group``, each read once; finds or adds a user and a group."""

    def __init__(self, tree: Tree, files: ClosureFiles) -> None:
        self._tree = tree
        self._contents = {name: _content(tree, files, name) for name in ACCOUNTS}
        self._entries = {
            name: list(_entries(content, name, _origin(tree, name)))
            for name, content in self._contents.items()
        }

    def owner(self, user: str, home: str) -> tuple[int, int]:
        """Return the ids of a user and its group, as in the config; add those that the files lack."""
        name, _, group = user.partition(":")
        entry = self._find(PASSWD, name)
        if name.isdecimal():
            # As runtimes do: without a group in the config, the entry's group or root's.
            user_id, group_id = int(name), entry.group if entry else 0
        elif entry:
            user_id, group_id = entry.number, entry.group
        else:
            user_id = self._free(PASSWD)
            group_id = self._group(group or name)
            # The format cannot express this value as a home directory.
            home = home if home.isprintable() and ":" not in home else ""
            self._append(PASSWD, f"{name}:x:{user_id}:{group_id}::/{home}:/bin/sh")
        return user_id, self._group(group) if group else group_id

    def _group(self, group: str) -> int:
        if group.isdecimal():
            return int(group)
        entry = self._find(GROUP, group)
        if entry:
            return entry.number
        number = self._free(GROUP)
        self._append(GROUP, f"{group}:x:{number}:")
        return number

    def _find(self, file: bytes, name: str) -> _Entry | None:
        """Find an entry by its name or its number."""
        return next((entry for entry in self._entries[file] if name in (entry.name, str(entry.number))), None)

    def _free(self, file: bytes) -> int:
        taken = {entry.number for entry in self._entries[file]}
        return next(number for number in count(_FIRST) if number not in taken)

    def _append(self, file: bytes, line: str) -> None:
        content = self._contents[file]
        if content and not content.endswith(b"\n"):
            content += b"\n"
        added = line.encode() + b"\n"
        self._contents[file] = content + added
        self._entries[file] += _entries(added, file, b"/" + file)
        above, _, last = file.rpartition(b"/")
        directory = self._tree.get(above)
        if isinstance(directory, Tree):
            directory.children[last] = Content(self._contents[file])


def _content(tree: Tree, files: ClosureFiles, name: bytes) -> bytes:
    node = tree.get(name)
    if isinstance(node, Content):
        return node.content
    content = files.read(node.target, _MOST_BYTES) if isinstance(node, Link) else None
    # For a directory, and for a link out of the image, the image gets the default file.
    return ACCOUNTS[name] if content is None else content


def _origin(tree: Tree, name: bytes) -> bytes:
    """The file that an error names: the package's, or the image's."""
    node = tree.get(name)
    return node.target if isinstance(node, Link) else b"/" + name


def _entries(content: bytes, name: bytes, origin: bytes) -> Iterator[_Entry]:
    lines = content.decode(errors="replace").split("\n")
    if len(lines) > _MOST_LINES:
        raise UnsafeContents(origin, f"it has more than {_MOST_LINES:,} lines")
    for line in lines:
        if match := _LINE.match(line):
            # In a group's line, its members come next.
            group = (match[3] if name == PASSWD else "") or "0"
            yield _Entry(match[1], _id(match[2], origin), _id(group, origin))


def _id(digits: str, origin: bytes) -> int:
    # Python refuses to parse numbers of thousands of digits.
    if len(digits) > len(str(_LARGEST_ID)) or int(digits) > _LARGEST_ID:
        raise UnsafeContents(origin, f"the numbers of users and groups are no larger than {_LARGEST_ID}")
    return int(digits)
