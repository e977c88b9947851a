"""Files and directories for one user alone, and opening files without being led astray.

A name in a directory of ours may lead somewhere else than we left it: another process may have put a symlink, a FIFO or a device
in its place. So nothing here follows a symlink at the end of a path, waits for a writer, or reads more than the caller allows.
Reading treats everything that is not a regular file as a file that is not there.
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

# What opening says of names that are no regular file: a symlink, a socket, a device without a driver.
_IRREGULAR = (errno.ELOOP, errno.ENXIO, errno.ENODEV)

# Neither does it follow a symlink, nor wait for whoever may write into a FIFO.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_private_directory(directory: Path) -> None:
    """Make a directory, and those above it that are missing, which no other user can enter. One that exists stays as it is.

    What root makes belongs to the owner of the directory that it is made in: a command that root runs on the storage of a server
    must not lock that server out.

    Raises:
        NotADirectoryError: there is something else under that name, a symlink for example.
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
    """See that a name is that of a directory, and not of a symlink to one.

    Raises:
        NotADirectoryError: it is something else.
        OSError: it cannot be looked up.
    """
    if not stat.S_ISDIR(directory.lstat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))


def hand_over(path: Path | int, directory: Path) -> None:
    """Give what root has made in a directory to the owner of that directory, where root may do that; others' own files stay theirs."""
    if os.geteuid() != 0:
        return
    with suppress(OSError):
        owner = directory.stat()
        if owner.st_uid != 0:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=isinstance(path, int))


def open_regular(path: str | Path) -> tuple[int, os.stat_result]:
    """Open a regular file for reading, and return its descriptor and what the system knows of it.

    Raises:
        FileNotFoundError: there is no regular file under that name.
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
    """Return what is in a regular file of at most ``largest`` bytes; ``None`` if there is none, or a larger one.

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
        # A file that grows meanwhile is read to its end, or to one byte more than is allowed.
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
