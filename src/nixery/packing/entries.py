"""What the root file system holds, before it is bytes.

Names are relative to the image's root, without a leading or trailing slash, and bytes: a store path may hold
names that are not UTF-8. Times are no part of an entry; they are the same everywhere. So are owner and group, but for
directories that an image's user is to write into. Tuples, for there can be many thousands of them: a frozen dataclass takes
more than twice as long to make.
"""

from __future__ import annotations

from typing import NamedTuple


class Directory(NamedTuple):
    """A directory; has to come before what it holds. Its owner is the ids of a user and a group."""

    name: bytes
    mode: int = 0o755
    owner: tuple[int, int] = (0, 0)


class Symlink(NamedTuple):
    """A symbolic link; its target is written as it is."""

    name: bytes
    target: bytes


class GeneratedFile(NamedTuple):
    """A small file we write ourselves."""

    name: bytes
    content: bytes
    mode: int = 0o644


Entry = Directory | Symlink | GeneratedFile
