"""``/etc/passwd`` and ``/etc/group`` of an image, with the entries that are added to them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from nixery.errors import UnsafeContents
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.root_filesystem import Content, Link, Tree
from nixery.packing.system_files import GROUP, PASSWD, default_accounts

# Of either file: name, password, number; then a user's group.
_LINE = re.compile(r"([^:#]+):[^:]*:(\d+):(\d*)", re.ASCII)

# Limits for a package's file, in bytes and in lines. Debian's own have some 2,000 bytes.
_MOST_BYTES = 1 << 20
_MOST_LINES = 1 << 16

# The next number, -1 in 32 bits, means "do not change" to chown(2).
LARGEST_ID = (1 << 32) - 2

_SHADOW, _ONLY_ROOT = b"etc/shadow", 0o600

# Fields of a line in /etc/passwd, with the position of the home; of one in /etc/group, with that of members.
_FIELDS = {PASSWD: 7, GROUP: 4}
_HOME, _MEMBERS = 5, 3


@dataclass(frozen=True, slots=True)
class Account:
    """A line of one of the files.

    Attributes:
        name: of the user or the group.
        number: likewise.
        group: the number of a user's group; 0 in ``/etc/group``.
        line: as it is in the file.
        position: of the line in the file.
    """

    name: str
    number: int
    group: int
    line: str
    position: int

    @property
    def home(self) -> str:
        """The home of a user; empty in a line without one."""
        fields = self.line.split(":")
        return fields[_HOME] if len(fields) == _FIELDS[PASSWD] else ""


class Accounts:
    """Both files, each read once. Changes reach the tree with ``save``.

    Args:
        tree: with or without the files.
        files: of the image, for those of packages.

    Raises:
        StorageError: a package's file cannot be read.
        UnsafeContents: one of them is not a regular file, is too large, or has ids that no user can have.
    """

    def __init__(self, tree: Tree, files: ClosureFiles) -> None:
        self._tree = tree
        self._files = {
            name: _File(name, _content(tree, files, name, default), _origin(tree, name))
            for name, default in default_accounts(tree).items()
        }

    def find(self, file: bytes, name: str) -> Account | None:
        """Return the first entry of a name or a number, as the C library does."""
        return self._files[file].find(name)

    def is_taken(self, number: int) -> bool:
        """Whether a user or a group has a number."""
        return any(number in file.by_number for file in self._files.values())

    def numbers(self, file: bytes) -> Collection[int]:
        """Return the numbers that are taken."""
        return self._files[file].by_number.keys()

    def add_user(self, name: str, number: int, group: int, gecos: str, home: str, shell: str) -> None:
        """Append a user."""
        self._files[PASSWD].append(f"{name}:x:{number}:{group}:{gecos}:{home}:{shell}")

    def add_group(self, name: str, number: int) -> None:
        """Append a group without members."""
        self._files[GROUP].append(f"{name}:x:{number}:")

    def add_member(self, group: Account, name: str) -> None:
        """Add a user to a group."""
        self._files[GROUP].add_member(group, name)

    def set_home(self, user: Account, home: str) -> None:
        """Replace the home of a user."""
        self._files[PASSWD].replace(user, _HOME, home)

    def save(self) -> None:
        """Write the files that have changed to the tree."""
        for name, file in self._files.items():
            above, _, last = name.rpartition(b"/")
            directory = self._tree.get(above)
            if file.changed and isinstance(directory, Tree):
                directory.children[last] = Content(file.content)


def add_passwords(tree: Tree) -> None:
    """Add ``/etc/shadow``, with no password for any user of a generated ``/etc/passwd``.

    Without it PAM refuses all accounts: ``su postgres`` ends with "Authentication failure", also for root.
    """
    users = tree.get(PASSWD)
    if isinstance(users, Content):
        names = [line.partition(b":")[0] for line in users.content.splitlines() if b":x:" in line]
        tree.add(_SHADOW, Content(b"".join(name + b":*:::::::\n" for name in names), _ONLY_ROOT))


@dataclass(frozen=True, slots=True)
class _Members:
    """The members of a group: those of its line, and those that were added to it."""

    of_line: Sequence[str]
    known: set[str]
    added: list[str]


class _File:
    """The lines of a file, and its entries by name and number: an image may have tens of thousands."""

    def __init__(self, name: bytes, content: bytes, origin: bytes) -> None:
        self._name = name
        self._origin = origin
        self._lines = content.removesuffix(b"\n").split(b"\n") if content else []
        if content.count(b"\n") >= _MOST_LINES:
            raise UnsafeContents(origin, f"it has more than {_MOST_LINES:,} lines")
        self._by_name: dict[str, Account] = {}
        self.by_number: dict[int, Account] = {}
        # By the position of the group's line. Each line is split and written once: a package's may have a megabyte, and
        # other packages may add thousands of members to it.
        self._members: dict[int, _Members] = {}
        self.changed = False
        for position, line in enumerate(self._lines):
            self._add(line.decode(errors="replace"), position)

    @property
    def content(self) -> bytes:
        return b"".join(self._line(position) + b"\n" for position in range(len(self._lines)))

    def _line(self, position: int) -> bytes:
        line, members = self._lines[position], self._members.get(position)
        if members is None or not members.added:
            return line
        fields = _padded(line.decode(errors="replace"), self._name)
        fields[_MEMBERS] = ",".join([*members.of_line, *members.added])
        return ":".join(fields).encode()

    def find(self, name: str) -> Account | None:
        found = [self._by_name.get(name)]
        # Only the usual form of a number: 007 is a name.
        if name.isdecimal() and len(name) <= len(str(LARGEST_ID)) and str(int(name)) == name:
            found.append(self.by_number.get(int(name)))
        return min(filter(None, found), key=lambda entry: entry.position, default=None)

    def append(self, line: str) -> None:
        self._lines.append(line.encode())
        self._add(line, len(self._lines) - 1)
        self.changed = True

    def replace(self, entry: Account, field: int, value: str) -> None:
        fields = _padded(entry.line, self._name)
        fields[field] = value
        line = ":".join(fields)
        self._lines[entry.position] = line.encode()
        changed = replace(entry, line=line)
        if self._by_name[entry.name] == entry:
            self._by_name[entry.name] = changed
        if self.by_number[entry.number] == entry:
            self.by_number[entry.number] = changed
        self.changed = True

    def add_member(self, group: Account, name: str) -> None:
        members = self._members.get(group.position)
        if members is None:
            of_line = [member for member in _padded(group.line, self._name)[_MEMBERS].split(",") if member]
            members = self._members[group.position] = _Members(of_line, set(of_line), [])
        if name not in members.known:
            members.known.add(name)
            members.added.append(name)
            self.changed = True

    def _add(self, line: str, position: int) -> None:
        if match := _LINE.match(line):
            # In a group's line, its members come next.
            group = (match[3] if self._name == PASSWD else "") or "0"
            number = _id(match[2], self._origin)
            entry = Account(match[1], number, _id(group, self._origin), line, position)
            self._by_name.setdefault(entry.name, entry)
            self.by_number.setdefault(entry.number, entry)


def _padded(line: str, file: bytes) -> list[str]:
    return (line.split(":") + [""] * _FIELDS[file])[: _FIELDS[file]]


def _content(tree: Tree, files: ClosureFiles, name: bytes, default: bytes) -> bytes:
    node = tree.get(name)
    if isinstance(node, Content):
        return node.content
    content = files.read(node.target, _MOST_BYTES) if isinstance(node, Link) else None
    # For a directory, and for a link out of the image, the image gets the default file.
    return default if content is None else content


def _origin(tree: Tree, name: bytes) -> bytes:
    """The file that an error names: the package's, or the image's."""
    node = tree.get(name)
    return node.target if isinstance(node, Link) else b"/" + name


def _id(digits: str, origin: bytes) -> int:
    # Python refuses to parse numbers of thousands of digits.
    if len(digits) > len(str(LARGEST_ID)) or int(digits) > LARGEST_ID:
        raise UnsafeContents(origin, f"the numbers of users and groups are no larger than {LARGEST_ID}")
    return int(digits)
