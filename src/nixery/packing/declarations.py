"""Accounts and directories that packages declare in the formats of systemd: sysusers.d(5) and tmpfiles.d(5).

A file of a store path belongs to root, and two packages cannot each have a part of ``/etc/passwd``. So packages of
systemd-based distributions declare the accounts that their services need in ``lib/sysusers.d``, and the
directories that these write into in ``lib/tmpfiles.d``. An image has no systemd that applies them: nixery does.

Of sysusers.d, lines of the types ``u``, ``g`` and ``m`` count. Of tmpfiles.d, those that make a directory with a
mode and an owner count. Specifiers, other types and malformed lines are ignored, as are directories outside
``/etc``, ``/home``, ``/run``, ``/srv`` and ``/var``.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from nixery.errors import UnsafeContents
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.root_filesystem import Content, Link, Tree
from nixery.packing.system_files import GROUP, PASSWD
from nixery.packing.user_files import AccountEntry, account_file, account_lines

_SYSUSERS, _TMPFILES = b"lib/sysusers.d", b"lib/tmpfiles.d"

# Limits for one image and each of the two directories: files, bytes of each and of all, and lines with content.
# Splitting a line takes some microseconds, and one of 64 KiB a fifth of a second.
_MOST_FILES = 1 << 10
_MOST_BYTES = 1 << 16
_MOST_BYTES_TOGETHER = 1 << 20
_MOST_DECLARED = 1 << 12

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}", re.ASCII)
_ID = re.compile(r"\d{1,9}", re.ASCII)
_MODE = re.compile(r"[0-7]{3,4}", re.ASCII)
# A field of /etc/passwd.
_TEXT = re.compile(r"[^\x00-\x1f:%]{0,255}")
_PATH = re.compile(r"(/[A-Za-z0-9_.@+-]{1,100}){1,20}", re.ASCII)
_DIRECTORY_TYPES = frozenset({"d", "D", "q", "Q", "v"})
_WRITABLE = ("/etc/", "/home/", "/run/", "/srv/", "/var/")

# Numbers of accounts that declare none: where systems put accounts of services, but for those that are given
# from the upper end by others.
_FIRST, _COUNT = 100, 800

_NO_HOME, _NO_LOGIN = "/", "/usr/sbin/nologin"


def add_declared(tree: Tree, files: ClosureFiles) -> None:
    """Add declared accounts to ``/etc/passwd`` and ``/etc/group``, and declared directories to a tree.

    An account without a number gets one that follows from its name, so that it keeps the number, and with it the
    files of volumes, when the image gets other packages.

    Args:
        tree: of packages and system files, before its completion.
        files: of the image.

    Raises:
        StorageError: a package cannot be read.
        UnsafeContents: there are more declarations than an image may have, a file of them is too large, or no
            number is left for an account.
    """
    accounts = _Accounts(tree, files)
    for fields in sorted(_lines(tree, files, _SYSUSERS), key=_sysusers_order):
        accounts.declare(fields)
    accounts.write()
    for fields in sorted(_lines(tree, files, _TMPFILES)):
        _add_directory(tree, accounts, fields)


def _lines(tree: Tree, files: ClosureFiles, directory: bytes) -> Iterator[list[str]]:
    """Yield the fields of each line of the files in a directory."""
    count = size = 0
    for number, name in enumerate(_files(tree, files, directory)):
        if number >= _MOST_FILES:
            raise UnsafeContents(
                name, f"the image has more than {_MOST_FILES:,} files in {directory.decode()}"
            )
        content = files.read(name, _MOST_BYTES) or b""
        size += len(content)
        if size > _MOST_BYTES_TOGETHER:
            reason = f"the image has more than {_MOST_BYTES_TOGETHER:,} bytes in {directory.decode()}"
            raise UnsafeContents(name, reason)
        for line in map(str.lstrip, content.decode(errors="replace").split("\n")):
            if not line or line.startswith("#"):
                continue
            count += 1
            if count > _MOST_DECLARED:
                reason = f"the image has more than {_MOST_DECLARED:,} lines in {directory.decode()}"
                raise UnsafeContents(name, reason)
            try:
                fields = shlex.split(line, comments=True)
            except ValueError:
                continue  # a quote that does not end
            # A line may begin with an empty quotation.
            if fields and fields[0]:
                yield fields


def _files(tree: Tree, files: ClosureFiles, directory: bytes) -> Iterator[bytes]:
    """Yield the files with declarations, by name: later ones change what earlier ones declare."""
    node = tree.get(directory)
    if isinstance(node, Tree):
        found = [(name, child.target) for name, child in node.children.items() if isinstance(child, Link)]
    elif isinstance(node, Link) and files.is_directory(node.target):
        found = [(name, node.target + b"/" + name) for name, _ in files.names(node.target)]
    else:
        found = []
    yield from (file for name, file in sorted(found) if name.endswith(b".conf"))


def _sysusers_order(fields: Sequence[str]) -> tuple[int, bool, list[str]]:
    """Groups before users, which may name them, before memberships; fixed numbers before free ones."""
    kind = "gum".find(fields[0][0])
    return kind, fields[2:3] in ([], ["-"]), list(fields)


@dataclass(slots=True)
class _File:
    """A file of accounts.

    Attributes:
        content: with the accounts that were appended.
        entries: by name.
        numbers: that are taken.
        members: that are added to groups, in order.
        changed: whether the content has.
    """

    content: bytes
    entries: dict[str, AccountEntry]
    numbers: set[int]
    members: dict[str, list[str]] = field(default_factory=dict)
    changed: bool = False

    def append(self, line: str) -> None:
        if self.content and not self.content.endswith(b"\n"):
            self.content += b"\n"
        self.content += line.encode() + b"\n"
        self.changed = True

    def add_members(self) -> None:
        """Add the members to their groups' lines, in one pass: a package's file has up to 65,536 lines."""
        replacements: dict[str, str] = {}
        for group, names in self.members.items():
            above, _, members = self.entries[group].line.rpartition(":")
            present = dict.fromkeys(name for name in members.split(",") if name)
            together = present | dict.fromkeys(names)
            if len(together) > len(present):
                replacements[self.entries[group].line] = f"{above}:{','.join(together)}"
        lines = self.content.split(b"\n") if replacements else []
        for position, line in enumerate(lines):
            # Decoded as in the entry, which may differ from the bytes.
            replacement = replacements.pop(line.decode(errors="replace"), None)
            if replacement is not None:
                lines[position] = replacement.encode()
                self.changed = True
        if lines:
            self.content = b"\n".join(lines)


class _Accounts:
    """``/etc/passwd`` and ``/etc/group`` of a tree, to which accounts are added."""

    def __init__(self, tree: Tree, files: ClosureFiles) -> None:
        self._tree = tree
        self._users, self._groups = (_read(tree, files, name) for name in (PASSWD, GROUP))

    def declare(self, fields: Sequence[str]) -> None:
        """Apply one line of sysusers.d."""
        kind, name, number, text, home, shell, *_ = chain(fields, ["-"] * 6)
        if not _NAME.fullmatch(name):
            return
        match kind.rstrip("!"):
            case "g":
                self._group(name, number)
            case "u":
                self._user(name, number, text, home, shell)
            case "m" if _NAME.fullmatch(number):
                self._member(name, number)

    def owner(self, user: str, group: str) -> tuple[int, int] | None:
        """Return the ids of a user and a group; ``None`` if one of them does not exist."""
        ids = [
            int(name) if _ID.fullmatch(name) else 0 if name in ("-", "root") else self._id(file, name)
            for file, name in ((self._users, user), (self._groups, group))
        ]
        first, second = ids
        return None if first is None or second is None else (first, second)

    def write(self) -> None:
        """Put the files that have changed into the tree."""
        self._groups.add_members()
        for name, file in ((PASSWD, self._users), (GROUP, self._groups)):
            above, _, last = name.rpartition(b"/")
            directory = self._tree.get(above)
            if file.changed and isinstance(directory, Tree):
                directory.children[last] = Content(file.content)

    @staticmethod
    def _id(file: _File, name: str) -> int | None:
        entry = file.entries.get(name)
        return None if entry is None else entry.number

    def _user(self, name: str, number: str, text: str, home: str, shell: str) -> None:
        if name in self._users.entries:
            return
        own, _, group = number.partition(":")
        group_id = self._id(self._groups, group) if not _ID.fullmatch(group) else int(group)
        if group and group_id is None:
            group_id = self._group(group, "-") if _NAME.fullmatch(group) else None
        # Without a group of another name, one of the user's name, with the same number.
        taken = (self._users.numbers, *((self._groups.numbers,) if group_id is None else ()))
        existing = self._id(self._groups, name)
        user_id = (
            existing if own == "-" and existing is not None and existing not in self._users.numbers else None
        )
        if user_id is None:
            user_id = _number(name, own, *taken)
        if group_id is None:
            group_id = existing if existing is not None else self._group(name, str(user_id))
        places = [
            place if _PATH.fullmatch(place) else default
            for place, default in ((home, _NO_HOME), (shell, _NO_LOGIN))
        ]
        gecos = text if text != "-" and _TEXT.fullmatch(text) else ""
        line = f"{name}:x:{user_id}:{group_id}:{gecos}:{':'.join(places)}"
        self._users.append(line)
        self._users.numbers.add(user_id)
        self._users.entries[name] = AccountEntry(name, user_id, group_id, line)

    def _group(self, name: str, number: str) -> int:
        entry = self._groups.entries.get(name)
        if entry is not None:
            return entry.number
        group_id = _number(name, number, self._groups.numbers, self._users.numbers)
        line = f"{name}:x:{group_id}:"
        self._groups.append(line)
        self._groups.numbers.add(group_id)
        self._groups.entries[name] = AccountEntry(name, group_id, 0, line)
        return group_id

    def _member(self, user: str, group: str) -> None:
        self._user(user, "-", "-", "-", "-")
        self._group(group, "-")
        self._groups.members.setdefault(group, []).append(user)


def _read(tree: Tree, files: ClosureFiles, name: bytes) -> _File:
    content, origin = account_file(tree, files, name)
    entries = {entry.name: entry for entry in account_lines(content, name, origin)}
    return _File(content, entries, {entry.number for entry in entries.values()})


def _number(name: str, declared: str, *taken: set[int]) -> int:
    if _ID.fullmatch(declared) and (declared == str(int(declared))) and _is_free(int(declared), taken):
        return int(declared)
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % _COUNT
    # More accounts than there are numbers for services get higher ones.
    candidates = chain((_FIRST + (start + step) % _COUNT for step in range(_COUNT)), range(60_000, 65_000))
    number = next((number for number in candidates if _is_free(number, taken)), None)
    if number is None:
        # The accounts of a package's own file may have taken all of them.
        raise UnsafeContents(b"/" + PASSWD, f"no number is left for the account {name}")
    return number


def _is_free(number: int, taken: Iterable[set[int]]) -> bool:
    return not any(number in numbers for numbers in taken)


def _add_directory(tree: Tree, accounts: _Accounts, fields: Sequence[str]) -> None:
    kind, path, mode, user, group, *_ = chain(fields, ["-"] * 5)
    if kind.rstrip("!+-=~^$") not in _DIRECTORY_TYPES or not path.startswith(_WRITABLE):
        return
    name = path.rstrip("/").replace("/var/run/", "/run/", 1)
    mode = mode.lstrip("~:")
    if not _PATH.fullmatch(name) or "/../" in f"{name}/" or "/./" in f"{name}/":
        return
    owner = accounts.owner(user, group)
    if owner is None or not (mode == "-" or _MODE.fullmatch(mode)):
        return
    place = name[1:].encode()
    tree.add(place, Tree())
    directory = tree.get(place)
    # A symlink or a file of a package stays as it is.
    if isinstance(directory, Tree):
        directory.mode = 0o755 if mode == "-" else int(mode, 8)
        directory.owner = owner
