"""Files and directories that are private to one user, and safe opening of files.

Another process may have replaced a name in our directory by a symlink, a FIFO or a device. So the functions
here follow no symlink at the end of a path, never wait for a writer, and read no more than the caller allows.
Reading treats every file that is not regular as missing.

Read files that a package or a builder made, by names that cannot lead out of a directory.

A name below a directory can be a symlink to a file of the server, a pipe that blocks its reader for ever, or
a file that was replaced a moment ago. The functions here follow no symlink, never block, and read only a
descriptor of a regular file.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

# Errors of open for names that are no regular file: a symlink, a socket, a device without a driver.
_IRREGULAR = (errno.ELOOP, errno.ENXIO, errno.ENODEV)

# Follows no symlink, and does not wait for the writer of a FIFO.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_private_directory(directory: Path) -> None:
    """Make a directory and its missing parents, closed to other users. An existing one stays unchanged.

    Directories that root makes belong to the owner of the parent directory: a command that root runs on a
    server's storage must not lock that server out.

    Raises:
        NotADirectoryError: the name exists and is no directory, but for example a symlink.
        OSError: it cannot be made.
    """
    try:
        directory.mkdir(DIRECTORY_MODE)
    except FileNotFoundError:
        make_private_directory(directory.parent)
        make_private_directory(directory)
    except FileExistsError:
        require_directory(directory)
    else:
        hand_over(directory, directory.parent)


def require_directory(directory: Path) -> None:
    """Check that a name is a directory, and not a symlink to one.

    Raises:
        NotADirectoryError: it is something else.
        OSError: it cannot be looked up.
    """
    if not stat.S_ISDIR(directory.lstat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))


def hand_over(path: Path | int, directory: Path) -> None:
    """Give a file that root made to the owner of its directory, if possible; leave files of other users."""
    if os.geteuid() != 0:
        return
    with suppress(OSError):
        owner = directory.stat()
        if owner.st_uid != 0:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=isinstance(path, int))


def open_regular(path: str | Path) -> tuple[int, os.stat_result]:
    """Open a regular file for reading, and return its descriptor and its status (``stat``).

    Raises:
        FileNotFoundError: the name is no regular file.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        if error.errno in _IRREGULAR:
            raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path)) from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
    return descriptor, status


def read_regular(path: str | Path, largest: int) -> bytes | None:
    """Return the contents of a regular file of at most ``largest`` bytes; ``None`` if missing or larger.

    Raises:
        OSError: it cannot be read.
    """
    try:
        descriptor, status = open_regular(path)
    except FileNotFoundError:
        return None
    try:
        if status.st_size > largest:
            return None
        content = b""
        # If the file grows meanwhile, this reads to its end, or to one byte more than the limit.
        while chunk := os.read(
            descriptor, min(max(status.st_size, len(content)), largest) - len(content) + 1
        ):
            content += chunk
            if len(content) > largest:
                return None
        return content
    finally:
        os.close(descriptor)


def remove_tree(directory: Path) -> None:
    """Remove a directory and what is in it, as far as that is possible; blocks.

    Strangers may have named what is in there, a commit's files for example. ``shutil.rmtree`` calls itself for each level and gives up after a
    thousand. Here, directories move up to the first level before they are emptied; no symlink is followed.
    """
    with suppress(OSError):
        top = os.open(directory, _LIST)
        try:
            pending = ["."]
            while pending:
                name = pending.pop()
                with suppress(OSError):
                    _empty(top, name, pending)
                    if name != ".":
                        os.rmdir(name, dir_fd=top)
        finally:
            os.close(top)
        directory.rmdir()


def _empty(top: int, name: str, pending: list[str]) -> None:
    directory = os.open(name, _LIST, dir_fd=top)
    try:
        with os.scandir(directory) as entries:
            for entry in list(entries):
                with suppress(OSError):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=directory)
                    elif name == ".":
                        pending.append(entry.name)
                    else:
                        place = f"removed-{secrets.token_hex(16)}"
                        os.rename(entry.name, place, src_dir_fd=directory, dst_dir_fd=top)
                        pending.append(place)
    finally:
        os.close(directory)


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


def read_descriptor(descriptor: int, limit: int) -> bytes:
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
        return read_descriptor(descriptor, limit)
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
