"""Read files that a package or a builder made, by names that cannot lead out of a directory.

A name below a directory can be a symlink to a file of the server, a pipe that blocks its reader for ever, or
a file that was replaced a moment ago. The functions here follow no symlink, never block, and read only a
descriptor of a regular file.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from types import TracebackType
from typing import Self

_ALWAYS = os.O_CLOEXEC | os.O_NOFOLLOW

# Flags for listing, and for reading. Without O_NONBLOCK, opening a pipe waits for a writer.
LIST = _ALWAYS | os.O_RDONLY | os.O_DIRECTORY
READ = _ALWAYS | os.O_RDONLY | os.O_NONBLOCK

# O_PATH opens no contents: enough for stat, and harmless for a device. For a symlink it gives the link
# itself.
ASK = _ALWAYS | os.O_PATH

_STEP = _ALWAYS | os.O_PATH | os.O_DIRECTORY

# openat2(2); the number is the same on all architectures that Nix supports.
_SYS_OPENAT2 = 437
_NO_MAGIC_LINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_OpenHow),
    ctypes.c_size_t,
)
_syscall.restype = ctypes.c_long

# The longest name that the kernel accepts (PATH_MAX without the terminating zero), and its longest component
# (NAME_MAX).
LONGEST_PATH = 4095
LONGEST_NAME = 255


class Beneath:
    """Opens names below a directory, and no others. A context manager: it holds the directory open.

    ``openat2(2)`` resolves a name in one step where the kernel has it (Linux 5.6, unless a seccomp filter
    refuses it). Otherwise each component is opened relative to its parent, which is as safe and needs a
    system call for each.

    Args:
        directory: absolute; the only name in which symlinks are followed.
        by_hand: do without ``openat2``.
    """

    def __init__(self, directory: bytes, *, by_hand: bool = False) -> None:
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._by_hand = by_hand or not _has_openat2(self._directory)

    def open(self, name: bytes, flags: int) -> int:
        """Open a name and return its descriptor.

        Args:
            name: relative, of components that are neither empty nor ``.`` nor ``..``.
            flags: ``LIST``, ``READ`` or ``ASK``.

        Raises:
            OSError: it cannot be opened: ``ELOOP`` or ``ENOTDIR`` if a component is a symlink, ``EXDEV`` if the name could lead out of
                the directory.
        """
        components = name.split(b"/")
        if not {b"", b".", b".."}.isdisjoint(components) or b"\0" in name:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        if self._by_hand:
            return self._open_by_hand(components, flags)
        return _openat2(self._directory, name, flags)

    def _open_by_hand(self, components: list[bytes], flags: int) -> int:
        *above, last = components
        directory = self._directory
        try:
            for component in above:
                below = os.open(component, _STEP, dir_fd=directory)
                if directory != self._directory:
                    os.close(directory)
                directory = below
            return os.open(last, flags, dir_fd=directory)
        finally:
            if directory != self._directory:
                os.close(directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._directory)


def read_regular(descriptor: int, limit: int) -> bytes:
    """Read an open file from its beginning, up to a number of bytes.

    Raises:
        OSError: it cannot be read, or is no regular file (``EINVAL``).
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    pieces, done = [], 0
    while done < limit and (piece := os.pread(descriptor, limit - done, done)):
        pieces.append(piece)
        done += len(piece)
    return b"".join(pieces)


def read_beginning(file: str | bytes, limit: int) -> bytes:
    """Read a bounded number of bytes of a file that is no symlink; its parent directories are trusted.

    Raises:
        OSError: it cannot be opened or read, is a symlink (``ELOOP``) or no regular file (``EINVAL``).
    """
    descriptor = os.open(file, READ)
    try:
        return read_regular(descriptor, limit)
    finally:
        os.close(descriptor)


def _has_openat2(directory: int) -> bool:
    try:
        os.close(_openat2(directory, b".", ASK))
    except OSError:
        return False
    return True


def _openat2(directory: int, name: bytes, flags: int) -> int:
    how = _OpenHow(flags, 0, _NO_MAGIC_LINKS | _NO_SYMLINKS | _BENEATH)
    while True:
        descriptor: int = _syscall(_SYS_OPENAT2, directory, name, ctypes.byref(how), ctypes.sizeof(how))
        if descriptor >= 0:
            return descriptor
        failure = ctypes.get_errno()
        if failure != errno.EINTR:  # as os.open does (PEP 475)
            raise OSError(failure, os.strerror(failure))
