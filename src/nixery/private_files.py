"""Files and directories that are private to one user, and safe opening of files.

Another process may have replaced a name in our directory by a symlink, a FIFO or a device. So the functions
here follow no symlink at the end of a path, never wait for a writer, and read no more than the caller allows.
Reading treats every file that is not regular as missing.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

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
