"""A digest of everything in a directory."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

# A file that was written so short a time ago, in nanoseconds, could be written again without its time stamps showing it.
_TOO_FRESH = 2_000_000_000

# Git's own files change with every command, Python's caches with every run; no package set is made of them.
_LEFT_OUT = frozenset({b".git", b"__pycache__"})

# Device, inode, size, time of the last change of content, and of anything at all. The last one cannot be set by anybody.
_Version = tuple[int, int, int, int, int]


class Fingerprint:
    """Digests names, types, executable bits, contents and targets of symlinks.

    The same tree on another machine has the same fingerprint. What a symlink that leads out of the tree points to is part of
    it. Files whose ``stat`` has not changed are not read again, so asking a second time is cheap. Not for several threads.
    """

    def __init__(self) -> None:
        self._digests: dict[_Version, bytes] = {}

    def of(self, root: Path) -> str:
        """Return the fingerprint of a file or directory, in hexadecimal digits. Blocks, the first time for as long as reading takes.

        Raises:
            OSError: something cannot be read.
        """
        known, self._digests = self._digests, {}
        total = hashlib.sha256()
        for kind, name, content in self._entries(os.fsencode(root.resolve(strict=True)), known):
            for part in (kind, name, content):
                total.update(b"%d:%b" % (len(part), part))
        return total.hexdigest()

    def _entries(self, root: bytes, known: dict[_Version, bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
        # Names are told relative to the tree they are in; trees that symlinks lead to are numbered as they are found.
        trees = [root]
        for number, tree in enumerate(trees):  # grows on the way
            pending = [tree]
            while pending:
                path = pending.pop()
                name = b"%d/%b" % (number, path[len(tree) :])
                status = os.lstat(path)
                if stat.S_ISDIR(status.st_mode):
                    yield b"directory", name, b""
                    children = sorted(child for child in os.listdir(path) if child not in _LEFT_OUT)
                    pending += [os.path.join(path, child) for child in reversed(children)]
                elif stat.S_ISREG(status.st_mode):
                    kind = b"program" if status.st_mode & stat.S_IXUSR else b"file"
                    yield kind, name, self._digest(path, status, known)
                elif stat.S_ISLNK(status.st_mode):
                    yield b"link", name, os.readlink(path)
                    target = os.path.realpath(path)
                    if os.path.exists(target) and not _is_covered(target, trees):
                        trees.append(target)
                # Nix cannot read anything else.

    def _digest(self, path: bytes, status: os.stat_result, known: dict[_Version, bytes]) -> bytes:
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest = known.get(version)
        if digest is None:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _TOO_FRESH:
            self._digests[version] = digest
        return digest


def _is_covered(target: bytes, trees: list[bytes]) -> bool:
    # What is in the Nix store is told by its path, and a link to a directory above would cover half of the machine.
    return _is_in(target, b"/nix/store") or any(_is_in(target, t) or _is_in(t, target) for t in trees)


def _is_in(path: bytes, tree: bytes) -> bool:
    return path == tree or path.startswith(tree.rstrip(b"/") + b"/")
