"""``/etc/passwd`` and ``/etc/group`` of an image, with the entries that are added to them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

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
    """

    name: str
    number: int
    group: int
    line: str

    @property
    def home(self) -> str:
        """The home of a user; empty in a line without one."""
        fields = self.line.split(":")
        return fields[_HOME] if len(fields) == _FIELDS[PASSWD] else ""


class Accounts:
    """Both files, each read once. Changes are written to the tree.

    Args:
        tree: with or without the files.
        files: of the image, for those of packages.

    Raises:
        StorageError: a package's file cannot be read.
        UnsafeContents: one of them is not a regular file, is too large, or has ids that no user can have.
    """

    def __init__(self, tree: Tree, files: ClosureFiles) -> None:
        self._tree = tree
        defaults = default_accounts(tree)
        self._contents = {name: _content(tree, files, name, default) for name, default in defaults.items()}
        self._entries = {
            name: list(_entries(content, name, _origin(tree, name)))
            for name, content in self._contents.items()
        }

    def find(self, file: bytes, name: str) -> Account | None:
        """Return the first entry of a name or a number, as the C library does."""
        return next((entry for entry in self._entries[file] if name in (entry.name, str(entry.number))), None)

    def numbers(self, file: bytes) -> set[int]:
        """Return the numbers that are taken."""
        return {entry.number for entry in self._entries[file]}

    def add_user(self, name: str, number: int, group: int, gecos: str, home: str, shell: str) -> None:
        """Append a user."""
        self._append(PASSWD, f"{name}:x:{number}:{group}:{gecos}:{home}:{shell}")

    def add_group(self, name: str, number: int) -> None:
        """Append a group without members."""
        self._append(GROUP, f"{name}:x:{number}:")

    def add_member(self, group: Account, name: str) -> None:
        """Add a user to a group."""
        fields = _padded(group.line, GROUP)
        members = [member for member in fields[_MEMBERS].split(",") if member]
        if name not in members:
            self._replace(GROUP, group, _MEMBERS, ",".join([*members, name]))

    def set_home(self, user: Account, home: str) -> None:
        """Replace the home of a user."""
        self._replace(PASSWD, user, _HOME, home)

    def _append(self, file: bytes, line: str) -> None:
        content = self._contents[file]
        if content and not content.endswith(b"\n"):
            content += b"\n"
        added = line.encode() + b"\n"
        self._entries[file] += _entries(added, file, b"/" + file)
        self._write(file, content + added)

    def _replace(self, file: bytes, entry: Account, position: int, value: str) -> None:
        fields = _padded(entry.line, file)
        fields[position] = value
        line = ":".join(fields)
        lines = self._contents[file].split(b"\n")
        # Decoded as in the entry, which may differ from the bytes.
        lines[[each.decode(errors="replace") for each in lines].index(entry.line)] = line.encode()
        entries = self._entries[file]
        entries[entries.index(entry)] = Account(entry.name, entry.number, entry.group, line)
        self._write(file, b"\n".join(lines))

    def _write(self, file: bytes, content: bytes) -> None:
        self._contents[file] = content
        above, _, last = file.rpartition(b"/")
        directory = self._tree.get(above)
        if isinstance(directory, Tree):
            directory.children[last] = Content(content)


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


def _entries(content: bytes, name: bytes, origin: bytes) -> Iterator[Account]:
    lines = content.decode(errors="replace").split("\n")
    if len(lines) > _MOST_LINES:
        raise UnsafeContents(origin, f"it has more than {_MOST_LINES:,} lines")
    for line in lines:
        if match := _LINE.match(line):
            # In a group's line, its members come next.
            group = (match[3] if name == PASSWD else "") or "0"
            yield Account(match[1], _id(match[2], origin), _id(group, origin), line)


def _id(digits: str, origin: bytes) -> int:
    # Python refuses to parse numbers of thousands of digits.
    if len(digits) > len(str(LARGEST_ID)) or int(digits) > LARGEST_ID:
        raise UnsafeContents(origin, f"the numbers of users and groups are no larger than {LARGEST_ID}")
    return int(digits)
