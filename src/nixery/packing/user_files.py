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
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from nixery.packing.accounts import Account, Accounts
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.root_filesystem import BASE_DIRECTORIES, Content, Link, Tree, before_completion
from nixery.packing.system_files import GROUP, PASSWD, login_shell

# The first one that `useradd` gives.
_FIRST = 1000

_ROOT = (0, 0)

# Names that belong to the store, the kernel or the runtime.
_LEFT_OUT = frozenset({"nix", "dev", "proc", "sys"})

# Base directories that a definition may name: those for data, not those of the system.
_MAY_BE_THE_USERS = ("home", "mnt", "opt", "run", "srv", "var/")

# Homes in a package's file that nixery makes; by convention, the last two never exist or stay empty.
_USABLE_HOME = re.compile(r"(/[a-zA-Z0-9_][a-zA-Z0-9_.+-]{0,63}){1,16}", re.ASCII)
_NO_HOMES = frozenset({"/nonexistent", "/var/empty"})

# A name that can be one of a directory.
_PLAIN_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,254}", re.ASCII)


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
        accounts = Accounts(tree, files)
        found = _find_or_add(tree, accounts, user)
        accounts.save()
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
    if place.encode() in BASE_DIRECTORIES and not place.startswith(_MAY_BE_THE_USERS):
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


def _find_or_add(tree: Tree, accounts: Accounts, user: str) -> _User:
    """Return a user as in the config; add it, its group and its home if the files lack them."""
    # Runtimes read 007 as 7.
    name, group = (str(int(part)) if part.isdecimal() else part for part in (*user.split(":"), "")[:2])
    entry = accounts.find(PASSWD, name)
    if entry is None:
        return _new_user(tree, accounts, name, group)
    group_id = _group(accounts, group) if group else entry.group
    home = None if entry.number == 0 else _home(tree, accounts, entry)
    return _User(entry.number, group_id, home)


def _new_user(tree: Tree, accounts: Accounts, name: str, group: str) -> _User:
    if name.isdecimal():
        number = int(name)
        # Without a group, group 0, as in runtimes without an entry. Programs take digits for a number
        # rather than a name.
        group_id = _group(accounts, group, f"user{number}" if group == name else None) if group else 0
        name = f"user{number}"
    else:
        number = _free(accounts, PASSWD)
        group_id = _group(accounts, group or name)
    home = f"/home/{name}"
    accounts.add_user(name, number, group_id, name, home, login_shell(tree))
    return _User(number, group_id, home)


def _home(tree: Tree, accounts: Accounts, entry: Account) -> str:
    """Return the home of an existing user, after replacing one that cannot be the user's own."""
    if _USABLE_HOME.fullmatch(entry.home) and entry.home not in _NO_HOMES:
        name = _name(entry.home)
        present = tree.get(before_completion(name.encode()))
        is_own = isinstance(present, Tree) and present.owner[0] == entry.number
        if is_own or (name.encode() not in BASE_DIRECTORIES and _can_be_given(tree, name)):
            return entry.home
    home = f"/home/{entry.name if _PLAIN_NAME.fullmatch(entry.name) else f'user{entry.number}'}"
    accounts.set_home(entry, home)
    return home


def _group(accounts: Accounts, group: str, name: str | None = None) -> int:
    """Return the number of a group; add it if the file lacks it.

    Args:
        accounts: of the image.
        group: its name or its number.
        name: that a number gets; by default, ``group7`` for 7.
    """
    entry = accounts.find(GROUP, group)
    if entry:
        return entry.number
    if group.isdecimal():
        number, name = int(group), name or f"group{group}"
    else:
        number, name = _free(accounts, GROUP), group
    accounts.add_group(name, number)
    return number


def _free(accounts: Accounts, file: bytes) -> int:
    taken = accounts.numbers(file)
    return next(number for number in count(_FIRST) if number not in taken)
