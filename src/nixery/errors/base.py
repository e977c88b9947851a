"""The root of the tree, and what is no fault of a request or a build."""

from __future__ import annotations

import errno
from typing import Self

# The disk, or our share of it, is full; or a file may not become as large as that (setrlimit(2)).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# Characters. With 100 unavailable packages, a message that explains the first five has some 12,000.
LONGEST_MESSAGE = 16_000


class NixeryError(Exception):
    """The root: everything nixery raises on purpose.

    ``str(error)`` is one or a few sentences for the person who made the request: what is
    wrong and what to do.

    Attributes:
        build: the id of the build that it ended, if it was one.
    """

    build: str | None = None

    def __init__(self, message: str = "") -> None:
        # Lines, pages and records show a message, and the texts of a hundred packages may be part of it.
        super().__init__(message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}…")

    def without_frames(self) -> Self:
        """Return an equal error that was raised nowhere, to be remembered, or raised when the remembered one is the answer again.

        A traceback holds the variables of every function that the error passed through, such as a request with all that its client sent.
        It grows on each raise, so a remembered error itself is never raised.
        """
        error = type(self).__new__(type(self), *self.args)
        vars(error).update(vars(self))
        return error


# Letters of a name that a message shows: enough to find the file.
_MOST_SHOWN = 300


def shown(name: bytes) -> str:
    """Return a file name for an error message: in printable letters, and of a bounded length."""
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in name.decode(errors="replace"))
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


class StorageError(NixeryError):
    """The store for blobs and records does not do what is asked of it."""


class BlobVerificationFailed(StorageError):
    """The bytes written do not have the digest or size they were meant to have; nothing was stored."""


class StorageFull(StorageError):
    """There is no room left for blobs and records. What is stored is served all the same."""


def storage_error(what: str, error: OSError) -> StorageError:
    """Say in our terms why the storage does not do something; paths of the machine stay out of it.

    Args:
        what: cannot be done.
        error: the system's.
    """
    return (StorageFull if error.errno in _FULL else StorageError)(f"{what}: {error.strerror}")


def readable_size(size: int) -> str:
    """Write a number of bytes for people, in powers of 1024."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:  # noqa: PLR2004 -- what the units are made of
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


class CollectionRunning(StorageError):
    """Garbage is being collected already, by this or another process."""

    def __init__(self) -> None:
        super().__init__(
            "garbage is being collected already, by another process; try again when that is done"
        )


class InternalError(NixeryError):
    """This program is wrong: something was raised that is none of these. The traceback is in the log, and no business of a client's."""

    def __init__(self, request: str | None) -> None:
        of = f" of request {request}" if request else ""
        super().__init__(f"internal error; the server's log has the details{of}")


class PushFailed(NixeryError):
    """Another registry does not take an image, or cannot be asked."""


class ShuttingDown(NixeryError):
    """The server is stopping; the same request to its successor will be served."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try again")


class TooBusy(NixeryError):
    """So much goes on and waits that no more is taken on; nothing was begun.

    Args:
        why: with places for ``limit``, what goes on, and ``waiting``.

    Attributes:
        retry_after: seconds after which it is worth asking again.
    """

    BUILDS = (
        "it builds {limit} at once (NIXERY_MAX_BUILDS), and {waiting} more wait already (NIXERY_MAX_QUEUED)"
    )
    LOOKUPS = "it looks up {limit} tags at once (NIXERY_MAX_BUILDS), and {waiting} more wait already (NIXERY_MAX_QUEUED)"
    IMAGES = "it looks {limit} images up in its storage at once, and {waiting} more wait already"
    LISTINGS = "it lists {limit} package set at once, and {waiting} more wait already"
    DESCRIPTIONS = "it describes {limit} images at once, and {waiting} more wait already"
    REPORTS = "it writes down {limit} list of builds at once, and {waiting} more wait already"
    SEARCHES = "it does {limit} search for packages at once, and {waiting} more wait already"
    SHARE = "{waiting} requests of this client wait already, which is its share of the queue (NIXERY_MAX_QUEUED_PER_CLIENT)"
    DISPLACED = "the queue is full, and this request gave way to a client that has fewer in it"
    FOLLOWERS = "{waiting} streams of build events are open already (NIXERY_MAX_FOLLOWERS); ask for the state of the build instead"
    SHARE_OF_FOLLOWERS = (
        "{waiting} streams of build events are open for this client already (NIXERY_MAX_FOLLOWERS_PER_CLIENT); "
        "ask for the state of the build instead"
    )

    def __init__(self, limit: int, waiting: int, retry_after: int, why: str = BUILDS) -> None:
        reason = why.format(limit=limit, waiting=waiting)
        super().__init__(f"this server is busy: {reason}; try again in {retry_after} seconds")
        self.retry_after = retry_after


class SettingsError(NixeryError):
    """One or more settings are missing or wrong.

    Attributes:
        problems: one line each.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
