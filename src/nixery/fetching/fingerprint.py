"""A digest of everything in a directory."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

# A file that was written so short a time ago, in nanoseconds, could be written again without its time stamps showing it.
_TOO_FRESH = 2_000_000_000

# Git's own files change with every command, Python's caches with every run; no package set is made of them.
_LEFT_OUT = frozenset({b".git", b"__pycache__"})

# File systems whose files are generated on reading, and may be endless.
_NOT_ON_A_DISK = (b"/proc", b"/sys", b"/dev")

# Limits for one package set; nixpkgs has 40,000 files and 500 MB. Links may lead to far more than intended.
_MOST_ENTRIES = 2_000_000
_MOST_TREES = 1_000
_MOST_BYTES = 64 * 1024**3

# Device, inode, size, time of the last change of content, and of anything at all. The last one cannot be set by anybody.
_Version = tuple[int, int, int, int, int]


class Fingerprint:
    """Digests names, types, executable bits, contents and targets of symlinks.

    The same tree on another machine has the same fingerprint. It covers the target of a symlink that leads
    out of the tree. Files with an unchanged ``stat`` are not read again, so a second call is cheap. Not
    thread-safe.

    Left out: ``.git`` and ``__pycache__``; pipes, sockets and devices, which Nix cannot read either; and
    targets of symlinks in the Nix store, in ``/proc``, ``/sys`` or ``/dev``, and in a directory that contains
    the tree. For those links, the fingerprint covers the target's name.
    """

    def __init__(self) -> None:
        self._digests: dict[_Version, bytes] = {}
        self._bytes = 0

    def of(self, root: Path) -> str:
        """Return the fingerprint of a file or directory, in hexadecimal digits. Blocks, the first time for as long as reading takes.

        Raises:
            OSError: a file cannot be read, or the tree exceeds the limits.
        """
        known, self._digests = self._digests, {}
        self._bytes = 0
        total = hashlib.sha256()
        for kind, name, content in self._entries(os.fsencode(root.resolve(strict=True)), known):
            for part in (kind, name, content):
                total.update(b"%d:%b" % (len(part), part))
        return total.hexdigest()

    def _entries(self, root: bytes, known: dict[_Version, bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
        # Names are told relative to the tree they are in; trees that symlinks lead to are numbered as they are found.
        trees = [root]
        left = _MOST_ENTRIES
        for number, tree in enumerate(trees):  # grows on the way
            pending = [tree]
            while pending:
                path = pending.pop()
                left -= 1
                if left < 0 or len(trees) > _MOST_TREES:
                    raise OSError(errno.EFBIG, "there are too many files in it, or where its symlinks lead")
                name = b"%d/%b" % (number, path[len(tree) :])
                status = os.lstat(path)
                if stat.S_ISDIR(status.st_mode):
                    yield b"directory", name, b""
                    children = sorted(child for child in _listed(path) if child not in _LEFT_OUT)
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
            self._bytes += status.st_size
            if self._bytes > _MOST_BYTES:
                raise OSError(errno.EFBIG, "its files are too large")
            with _opened(path, status) as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _TOO_FRESH:
            self._digests[version] = digest
        return digest


def _listed(path: bytes) -> list[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return [os.fsencode(name) for name in os.listdir(descriptor)]
    finally:
        os.close(descriptor)


def _opened(path: bytes, status: os.stat_result) -> io.BufferedReader:
    """Open a file that was regular a moment ago, without blocking if it is a pipe by now."""
    # With O_NONBLOCK a pipe opens at once. It has no effect on regular files.
    file = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115 -- the caller's
    opened = os.fstat(file.fileno())
    if not stat.S_ISREG(opened.st_mode) or not os.path.samestat(opened, status):
        file.close()
        raise OSError(errno.EAGAIN, "a file was replaced while it was read")
    return file


def _is_covered(target: bytes, trees: list[bytes]) -> bool:
    # What is in the Nix store is told by its path, and a link to a directory above would cover half of the machine.
    elsewhere = any(_is_in(target, place) for place in (b"/nix/store", *_NOT_ON_A_DISK))
    return elsewhere or any(_is_in(target, t) or _is_in(t, target) for t in trees)


def _is_in(path: bytes, tree: bytes) -> bool:
    return path == tree or path.startswith(tree.rstrip(b"/") + b"/")
