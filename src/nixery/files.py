"""Open and read files safely that another process or a package's author may have replaced.

A name may have become a symlink to a file of the server, a FIFO that blocks its reader for ever, or an
endless device. The functions here follow no symlink at the end of a path (``Beneath``: nowhere in a name),
never wait for a writer, read only regular files, and read no more than the caller allows. Directories are
private to one user.
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

# The longest name that the kernel accepts (PATH_MAX without the terminating zero), and its longest component
# (NAME_MAX).
LONGEST_PATH = 4095
LONGEST_NAME = 255

_ALWAYS = os.O_CLOEXEC | os.O_NOFOLLOW

# Flags for listing, and for reading. Without O_NONBLOCK, opening a FIFO waits for a writer.
LIST = _ALWAYS | os.O_RDONLY | os.O_DIRECTORY
READ = _ALWAYS | os.O_RDONLY | os.O_NONBLOCK

# O_PATH opens no contents: enough for stat, and harmless for a device. For a symlink it gives the link
# itself.
ASK = _ALWAYS | os.O_PATH

_STEP = _ALWAYS | os.O_PATH | os.O_DIRECTORY

# Errors of open for names that are not regular files: a symlink, a socket, a device without a driver.
_IRREGULAR = (errno.ELOOP, errno.ENXIO, errno.ENODEV)

# Bytes to read at once at least.
_LEAST_READ = 4096

# openat2(2); the number is the same on all architectures that Nix supports.
_SYS_OPENAT2 = 437
_NO_MAGIC_LINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08


def open_regular(path: str | bytes | Path) -> tuple[int, os.stat_result]:
    """Open a regular file for reading; return its descriptor and its status (``stat``).

    Raises:
        FileNotFoundError: it does not exist, or is not a regular file.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, READ)
    except OSError as error:
        if error.errno in _IRREGULAR:
            raise _not_regular(path) from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _not_regular(path)
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
        content = b"" if status.st_size > largest else _read(descriptor, status.st_size, largest + 1)
    finally:
        os.close(descriptor)
    return None if max(status.st_size, len(content)) > largest else content


def read_beginning(path: str | bytes | Path, limit: int) -> bytes:
    """Return at most ``limit`` bytes from the beginning of a regular file.

    Raises:
        FileNotFoundError: it does not exist, or is not a regular file.
        OSError: it cannot be read.
    """
    descriptor, status = open_regular(path)
    try:
        return _read(descriptor, status.st_size, limit)
    finally:
        os.close(descriptor)


def read_descriptor(descriptor: int, limit: int) -> bytes:
    """Return at most ``limit`` bytes from the beginning of an open file.

    Raises:
        OSError: it cannot be read, or is not a regular file (``EINVAL``).
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return _read(descriptor, status.st_size, limit)


def _read(descriptor: int, size: int, limit: int) -> bytes:
    """Read at most ``limit`` bytes; ``size`` is expected, but the file may grow or shrink meanwhile."""
    content = b""
    while wanted := min(max(size + 1 - len(content), _LEAST_READ), limit - len(content)):
        piece = os.pread(descriptor, wanted, len(content))
        if not piece:
            break
        content += piece
    return content


def _not_regular(path: str | bytes | Path) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "not a regular file", os.fsdecode(path))


class Beneath:
    """Opens names below a directory, and no others. A context manager: it holds the directory open.

    ``openat2(2)`` resolves a name in one step where the kernel has it (Linux 5.6, unless a seccomp filter
    refuses it). Otherwise each component is opened relative to its parent, which is as safe and needs a
    system call for each.

    Args:
        directory: absolute; the only name in which symlinks are followed.
        emulated: do without ``openat2``.

    Attributes:
        descriptor: of the directory, with ``O_PATH``.
    """

    def __init__(self, directory: bytes, *, emulated: bool = False) -> None:
        self.descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._emulated = emulated or not _has_openat2(self.descriptor)

    def open(self, name: bytes, flags: int) -> int:
        """Open a name and return its descriptor.

        Args:
            name: relative, of components that are neither empty nor ``.`` nor ``..``.
            flags: ``LIST``, ``READ`` or ``ASK``.

        Raises:
            OSError: it cannot be opened: ``ELOOP`` or ``ENOTDIR`` if a component is a symlink, ``EXDEV`` if
                the name could lead out of the directory.
        """
        components = name.split(b"/")
        if not {b"", b".", b".."}.isdisjoint(components) or b"\0" in name:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        if self._emulated:
            return self._open_without_openat2(components, flags)
        return _openat2(self.descriptor, name, flags)

    def _open_without_openat2(self, components: list[bytes], flags: int) -> int:
        *above, last = components
        directory = self.descriptor
        try:
            for component in above:
                below = os.open(component, _STEP, dir_fd=directory)
                if directory != self.descriptor:
                    os.close(directory)
                directory = below
            return os.open(last, flags, dir_fd=directory)
        finally:
            if directory != self.descriptor:
                os.close(directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)


def make_private_directory(directory: Path) -> None:
    """Make a directory and its missing parents, closed to other users. An existing one stays unchanged.

    Directories that root makes belong to the owner of the parent directory: a command that root runs on a
    server's storage must not lock that server out.

    Raises:
        NotADirectoryError: the name exists and is not a directory, but for example a symlink.
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


def remove_tree(directory: Path) -> None:
    """Remove a directory and its contents, as far as possible; blocks.

    The contents may be hostile, a commit's files for example: ``shutil.rmtree`` recurses into each level and
    gives up after a thousand. Here, directories move up to the first level before they are emptied; no
    symlink is followed.
    """
    with suppress(OSError):
        top = os.open(directory, LIST)
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
    directory = os.open(name, LIST, dir_fd=top)
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
