"""Users, groups and owned directories that the installed packages declare, as sysusers.d(5) and tmpfiles.d(5).

A store path has neither users nor owners. Other systems make both when they install a package or start; an
image has them from the start. Only lines that make a user, a group, a membership or a directory count.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import shlex
from collections.abc import Callable, Iterator, Sequence

from nixery.errors import UnsafeContents
from nixery.packing.accounts import Accounts
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.root_filesystem import BASE_DIRECTORIES, Link, Tree, before_completion
from nixery.packing.system_files import GROUP, PASSWD

_USERS, _DIRECTORIES = b"lib/sysusers.d", b"lib/tmpfiles.d"

# Limits for one image: files and lines of each kind, bytes of a file, and of all. All of Debian's base accounts
# are 60 lines.
_MOST_FILES, _MOST_LINES = 512, 8192
_MOST_BYTES, _MOST_BYTES_TOGETHER = 1 << 16, 1 << 20

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{0,31}", re.ASCII)
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_MODE = re.compile(r"[:~]?([0-7]{3,4})")
_PATH = re.compile(r"(/[a-zA-Z0-9_.@+,=-]{1,255}){1,16}", re.ASCII)
_TEXT = re.compile(r"[^:%\\]{0,200}")
_OF_PACKAGES = ("/etc/", "/home/", "/opt/", "/run/", "/srv/", "/var/")

# Numbers of system accounts that Debian and Fedora do not give to single packages.
_DYNAMIC = tuple(range(200, 1000))

# Subvolumes of file systems that have them are directories of the others.
_DIRECTORY_TYPES = frozenset({"d", "D", "q", "Q", "v"})

_NO_SHELL = "/bin/false"


def add_declared_accounts(tree: Tree, files: ClosureFiles) -> None:
    """Add the accounts and directories that packages in a tree declare, unless it has them.

    Args:
        tree: before its completion, with the system files.
        files: of the image.

    Raises:
        StorageError: a package cannot be read.
        UnsafeContents: a declaration is no regular file, or there are more than an image may have.
    """
    users = list(_lines(tree, files, _USERS))
    directories = list(_lines(tree, files, _DIRECTORIES))
    if not users and not directories:
        return
    found = Accounts(tree, files)
    accounts = _Declared(found)
    # Groups first, since users name them; memberships last.
    actions: Sequence[tuple[str, Callable[[Sequence[str]], None]]] = (
        ("g", accounts.group),
        ("u", accounts.user),
        ("m", accounts.member),
    )
    # Numbers that are declared before others take them.
    users.sort(key=lambda words: _NUMBER.match("".join(words[2:3])) is None)
    for kind, action in actions:
        for words in users:
            if words[0].rstrip("!") == kind:
                action(words[1:])
    for words in directories:
        if words[0].rstrip("!-=~^$+") in _DIRECTORY_TYPES:
            _add_directory(tree, accounts, words[1:])
    found.save()


def _lines(tree: Tree, files: ClosureFiles, directory: bytes) -> Iterator[list[str]]:
    """Yield the words of each line, of files sorted by their names."""
    found = list(_files(tree, files, directory))
    if len(found) > _MOST_FILES:
        raise UnsafeContents(b"/" + directory, f"it has more than {_MOST_FILES} files")
    lines_left, bytes_left = _MOST_LINES, _MOST_BYTES_TOGETHER
    for file in found:
        content = files.read(file, _MOST_BYTES) or b""
        bytes_left -= len(content)
        if bytes_left < 0:
            reason = f"the image has more than {_MOST_BYTES_TOGETHER:,} bytes in {directory.decode()}"
            raise UnsafeContents(file, reason)
        lines = content.decode(errors="replace").split("\n")
        lines_left -= len(lines)
        if lines_left < 0:
            raise UnsafeContents(file, f"the packages of an image declare more than {_MOST_LINES:,} lines")
        for line in lines:
            words = _words(line)
            if len(words) > 1:
                yield words


def _files(tree: Tree, files: ClosureFiles, directory: bytes) -> Iterator[bytes]:
    node = tree.get(directory)
    if isinstance(node, Tree):
        links = sorted(node.children.items())
        yield from (
            child.target for name, child in links if isinstance(child, Link) and name.endswith(b".conf")
        )
    elif isinstance(node, Link) and files.is_directory(node.target):
        # Of one package.
        names = sorted(name for name, _ in files.names(node.target) if name.endswith(b".conf"))
        yield from (node.target + b"/" + name for name in names)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []


class _Declared:
    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def group(self, fields: Sequence[str]) -> None:
        """Add a group: ``NAME [NUMBER]``."""
        name, number = (*fields, "-")[:2]
        if _NAME.fullmatch(name) and not self._accounts.find(GROUP, name):
            self._accounts.add_group(name, self._number(GROUP, name, number))

    def user(self, fields: Sequence[str]) -> None:
        """Add a user: ``NAME [NUMBER[:GROUP] [GECOS [HOME [SHELL]]]]``, and a group of the same name without ``GROUP``."""
        name, numbers, gecos, home, shell = (*fields, "-", "-", "-", "-")[:5]
        if not _NAME.fullmatch(name) or self._accounts.find(PASSWD, name):
            return
        number, _, group = numbers.partition(":")
        own_group = None if group else self._accounts.find(GROUP, name)
        if own_group is not None and not _NUMBER.fullmatch(number):
            number = str(own_group.number)
        user_id = self._number(PASSWD, name, number)
        if not _NUMBER.fullmatch(group):
            # The user's own has the same number where that is free.
            self.group((group, "-") if group else (name, str(user_id)))
        group_id = self.number(GROUP, group or name)
        self._accounts.add_user(
            name,
            user_id,
            group_id,
            gecos if _TEXT.fullmatch(gecos) and gecos.isprintable() and gecos != "-" else "",
            home if _PATH.fullmatch(home) else "/",
            shell if _PATH.fullmatch(shell) else _NO_SHELL,
        )

    def member(self, fields: Sequence[str]) -> None:
        """Add a user to a group: ``USER GROUP``."""
        user, group = (*fields, "")[:2]
        entry = self._accounts.find(GROUP, group)
        if entry is not None and self._accounts.find(PASSWD, user) and _NAME.fullmatch(user):
            self._accounts.add_member(entry, user)

    def number(self, file: bytes, name: str) -> int:
        """Return the number of a user or a group by its name or number; root's if there is none."""
        entry = self._accounts.find(file, name)
        if entry is not None:
            return entry.number
        return int(name) if _NUMBER.fullmatch(name) else 0

    def _number(self, file: bytes, name: str, wanted: str) -> int:
        """The declared number if it is free, else one that depends on the name.

        So the owner of a volume stays the same when an image gets other packages.
        """
        if _NUMBER.fullmatch(wanted) and int(wanted) not in self._accounts.numbers(file):
            return int(wanted)
        first = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % len(_DYNAMIC)
        candidates = (*_DYNAMIC[first:], *_DYNAMIC[:first])
        for number in candidates:
            if not self._accounts.is_taken(number):
                return number
        raise UnsafeContents(b"/" + file, f"no number is left for the account {name}")


def _add_directory(tree: Tree, accounts: _Declared, fields: Sequence[str]) -> None:
    """Make a directory, or change the owner and mode of one: ``PATH [MODE [USER [GROUP]]]``.

    Every user can read it, as all files of an image.
    """
    path, mode, user, group = (*fields, "-", "-", "-")[:4]
    path = posixpath.normpath(path)
    if path.startswith("/var/run/"):
        path = path.removeprefix("/var")
    if not _PATH.fullmatch(path) or not path.startswith(_OF_PACKAGES):
        return
    name = path[1:].encode()
    if name in BASE_DIRECTORIES:
        return
    place = before_completion(name)
    tree.add(place, Tree())
    directory = tree.get(place)
    if isinstance(directory, Tree):
        directory.owner = (accounts.number(PASSWD, user), accounts.number(GROUP, group))
        match = _MODE.fullmatch(mode)
        # Without the bit that would run files as the owner, which has no meaning for a directory.
        directory.mode = (int(match[1], 8) & 0o3777 if match else 0o755) | 0o555
