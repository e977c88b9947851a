"""The user of an image definition: entries in ``/etc/passwd`` and ``/etc/group``, a home, places to write into.

Runtimes refuse to start as a named user without an entry, and take ``HOME`` from it; programs look their user
up. Runtimes create a missing working directory or mount point, but for root; and Docker and Podman give a
volume the owner of its directory in the image.

A directory of group 0 can be written by that group: OpenShift runs images as a user without an entry, with
any number and group 0.
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
from nixery.packing.system_files import GROUP, PASSWD, default_accounts, login_shell

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

# Fields of a line in /etc/passwd, and the position of the home.
_FIELDS, _HOME = 7, 5

# Homes in a package's file that nixery makes; by convention, the last two never exist or stay empty.
_USABLE_HOME = re.compile(r"(/[a-zA-Z0-9_][a-zA-Z0-9_.+-]{0,63}){1,16}", re.ASCII)
_NO_HOMES = frozenset({"/nonexistent", "/var/empty"})

# A name that can be one of a directory.
_PLAIN_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,254}", re.ASCII)


@dataclass(frozen=True, slots=True)
class AccountEntry:
    """A line of ``/etc/passwd`` or ``/etc/group``; in the latter, the group is 0."""

    name: str
    number: int
    group: int
    line: str


@dataclass(frozen=True, slots=True)
class _User:
    number: int
    group: int
    home: str | None


def add_user_files(
    tree: Tree, files: ClosureFiles, user: str | None, working_directory: str | None, volumes: Iterable[str]
) -> tuple[int, int]:
    """Add the user's entries, and the directories that belong to the user, unless the tree has them.

    Args:
        tree: the root file system, otherwise complete.
        files: of the image, for the packages' ``/etc/passwd`` and ``/etc/group``.
        user: as in the config: ``name``, ``id``, ``name:group`` or ``id:id``; ``None`` for root.
        working_directory: absolute.
        volumes: absolute.

    Returns:
        The ids of the user and its group.

    Raises:
        StorageError: a package's ``/etc/passwd`` or ``/etc/group`` cannot be read.
        UnsafeContents: one of them is not a regular file, is too large, or has ids that no user can have.
    """
    owner, home = _ROOT, None
    if user:
        found = _Accounts(tree, files).user(user)
        owner, home = (found.number, found.group), found.home
    # Sorted, a directory comes before what it holds.
    for place in sorted({_name(place) for place in (home, working_directory, *volumes) if place}):
        if _can_be_given(tree, place):
            _give(tree, place, owner)
    return owner


def _name(place: str) -> str:
    return posixpath.normpath(place).lstrip("/")


def _can_be_given(tree: Tree, place: str) -> bool:
    """Whether nixery makes a directory, or the image has nothing in it that is not the user's."""
    if not place or place.partition("/")[0] in _LEFT_OUT:
        return False
    node: Tree | Link | Content | None = tree
    for component in before_completion(place.encode()).split(b"/"):
        if not isinstance(node, Tree):
            return node is None
        node = node.children.get(component)
    # Directories with other modes are those of all users (/tmp) and root's.
    return node is None or (isinstance(node, Tree) and not node.children and node.mode == Tree().mode)


def _give(tree: Tree, place: str, owner: tuple[int, int]) -> None:
    directory = tree.directory(before_completion(place.encode()))
    directory.owner = owner
    _, group = owner
    directory.mode = 0o755 if group else 0o775


class _Accounts:
    """``/etc/passwd`` and ``/etc/group``, each read once; finds or adds a user and a group."""

    def __init__(self, tree: Tree, files: ClosureFiles) -> None:
        self._tree = tree
        found = {name: account_file(tree, files, name) for name in (PASSWD, GROUP)}
        self._contents = {name: content for name, (content, _) in found.items()}
        self._entries = {
            name: list(account_lines(content, name, origin)) for name, (content, origin) in found.items()
        }

    def user(self, user: str) -> _User:
        """Return a user as in the config; add it, its group and its home if the files lack them."""
        # Runtimes read 007 as 7.
        name, group = (str(int(p)) if p.isdecimal() else p for p in (*user.split(":"), "")[:2])
        entry = self._find(PASSWD, name)
        if entry is None:
            return self._new_user(name, group)
        group_id = self._group(group) if group else entry.group
        home = None if entry.number == 0 else self._home(entry)
        return _User(entry.number, group_id, home)

    def _new_user(self, name: str, group: str) -> _User:
        if name.isdecimal():
            number = int(name)
            # Without a group, group 0, as in runtimes without an entry. Programs take digits for a number
            # rather than a name.
            group_id = self._group(group, f"user{number}" if group == name else None) if group else 0
            name = f"user{number}"
        else:
            number = self._free(PASSWD)
            group_id = self._group(group or name)
        home = _home_of(name)
        self._append(PASSWD, f"{name}:x:{number}:{group_id}:{name}:{home}:{login_shell(self._tree)}")
        return _User(number, group_id, home)

    def _home(self, entry: AccountEntry) -> str:
        """Return the home of an existing user, after replacing one that cannot be the user's own."""
        fields = entry.line.split(":")
        home = fields[_HOME] if len(fields) == _FIELDS else ""
        if _USABLE_HOME.fullmatch(home) and home not in _NO_HOMES and _can_be_given(self._tree, _name(home)):
            return home
        home = _home_of(entry.name if _PLAIN_NAME.fullmatch(entry.name) else f"user{entry.number}")
        fields = (fields + [""] * _FIELDS)[:_FIELDS]
        fields[_HOME] = home
        self._replace(PASSWD, entry.line, ":".join(fields))
        return home

    def _group(self, group: str, name: str | None = None) -> int:
        """Return the number of a group; add it if the file lacks it.

        Args:
            group: its name or its number.
            name: that a number gets; by default, ``group7`` for 7.
        """
        entry = self._find(GROUP, group)
        if entry:
            return entry.number
        if group.isdecimal():
            number, name = int(group), name or f"group{group}"
        else:
            number, name = self._free(GROUP), group
        self._append(GROUP, f"{name}:x:{number}:")
        return number

    def _find(self, file: bytes, name: str) -> AccountEntry | None:
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
        self._entries[file] += account_lines(added, file, b"/" + file)
        self._write(file, content + added)

    def _replace(self, file: bytes, line: str, replacement: str) -> None:
        lines = self._contents[file].split(b"\n")
        # Decoded as in the entry, which may differ from the bytes.
        position = [each.decode(errors="replace") for each in lines].index(line)
        lines[position] = replacement.encode()
        self._write(file, b"\n".join(lines))

    def _write(self, file: bytes, content: bytes) -> None:
        self._contents[file] = content
        above, _, last = file.rpartition(b"/")
        directory = self._tree.get(above)
        if isinstance(directory, Tree):
            directory.children[last] = Content(content)


def _home_of(name: str) -> str:
    return f"/home/{name}"


def account_file(tree: Tree, files: ClosureFiles, name: bytes) -> tuple[bytes, bytes]:
    """Return the content of ``/etc/passwd`` or ``/etc/group``, and the file that an error about it names.

    Args:
        tree: the root file system.
        files: of the image.
        name: ``PASSWD`` or ``GROUP``.

    Raises:
        StorageError: a package's file cannot be read.
        UnsafeContents: it is not a regular file, or too large.
    """
    node = tree.get(name)
    origin = node.target if isinstance(node, Link) else b"/" + name
    if isinstance(node, Content):
        return node.content, origin
    content = files.read(node.target, _MOST_BYTES) if isinstance(node, Link) else None
    # For a directory, and for a link out of the image, the image gets the default file.
    return default_accounts(tree)[name] if content is None else content, origin


def account_lines(content: bytes, name: bytes, origin: bytes) -> Iterator[AccountEntry]:
    """Yield the entries of a file.

    Raises:
        UnsafeContents: it has too many lines, or a number that no user can have.
    """
    lines = content.decode(errors="replace").split("\n")
    if len(lines) > _MOST_LINES:
        raise UnsafeContents(origin, f"it has more than {_MOST_LINES:,} lines")
    for line in lines:
        if match := _LINE.match(line):
            # In a group's line, its members come next.
            group = (match[3] if name == PASSWD else "") or "0"
            yield AccountEntry(match[1], _id(match[2], origin), _id(group, origin), line)


def _id(digits: str, origin: bytes) -> int:
    # Python refuses to parse numbers of thousands of digits.
    if len(digits) > len(str(_LARGEST_ID)) or int(digits) > _LARGEST_ID:
        raise UnsafeContents(origin, f"the numbers of users and groups are no larger than {_LARGEST_ID}")
    return int(digits)
