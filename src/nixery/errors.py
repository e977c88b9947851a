"""The root of the tree, and what is no fault of a request or a build.

What the client asked for cannot be.

The request is fine, and there is no image all the same.

All errors of nixery's domain; no HTTP in here.

::

    NixeryError
    ├── RequestError                  the client asked for something impossible
    │   ├── InvalidName
    │   ├── InvalidReference
    │   ├── InvalidDigest
    │   ├── NameUnknown
    │   ├── BlobUnknown
    │   ├── ManifestUnknown
    │   ├── TagUnknown                the package source has no such branch, commit, ...
    │   ├── ClosureTooLarge           names the largest store paths
    │   ├── UnsafeContents            names the file of a package
    │   └── PackagesUnavailable       missing, broken, unfree, ... : names them all
    ├── BuildError                    the request is valid, making the image failed
    │   ├── EvaluationFailed
    │   ├── AnswerTooLarge            Nix, or git, wrote more than its limit
    │   ├── BuildFailed               with the derivation and the end of its log
    │   ├── NixTimedOut             a builder, or Nix
    │   ├── BuildDeadlineExceeded          the whole build timed out
    │   ├── NixStoreFull
    │   ├── NixUnusable               Nix is missing, or gives unexpected answers
    │   ├── PathsCollected            Nix's garbage collector deleted paths in use
    │   ├── SourceUnreachable         the package source does not answer
    │   └── PackageSetChanged
    ├── PlatformFailed                one of several platforms: holds one of the above
    ├── StorageError
    │   ├── BlobVerificationFailed    written bytes do not match their digest
    │   ├── StorageFull
    │   └── CollectionRunning
    ├── InternalError                 any unexpected exception
    ├── PushFailed                    another registry does not accept the image
    ├── TooBusy                       says when to retry
    ├── ShuttingDown
    └── SettingsError                 every problem of the environment at once

Errors carry data. Only ``server/errors.py`` maps them to a status and a code;
a test walks this tree and requires a row there.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import StrEnum
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


class RequestError(NixeryError):
    """The client's request cannot be served as it stands; repeating it changes nothing."""


class InvalidName(RequestError):
    """A repository name outside the grammar of the distribution specification, or one that contradicts itself."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"invalid image name {name!r}: {reason}")
        self.name = name
        self.reason = reason


class InvalidReference(RequestError):
    """Neither a valid tag nor a valid digest where a reference to a manifest must stand."""

    def __init__(self, reference: str) -> None:
        super().__init__(
            f"invalid reference {reference!r}: expected a tag (letters, digits, '_', '.', '-', at most 128 "
            "characters, not starting with '.' or '-') or a digest (sha256:<64 hex digits>)"
        )
        self.reference = reference


class InvalidDigest(RequestError):
    """A digest outside the grammar, or of an algorithm that is not sha256."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"invalid digest {digest!r}: expected sha256:<64 lower-case hex digits>")
        self.digest = digest


class NameUnknown(RequestError):
    """Nothing was built for this name yet, so there is nothing to list."""

    def __init__(self, name: str) -> None:
        super().__init__(f"nothing has been built for {name} yet; pull {name}:latest to have it built")
        self.name = name


class BlobUnknown(RequestError):
    """No blob with this digest is stored."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"blob {digest} is not stored here; pull the image by its tag to have it built")
        self.digest = digest


class ManifestUnknown(RequestError):
    """No manifest with this digest is stored, or the tag is of a kind that is never built."""

    def __init__(self, reference: str, reason: str) -> None:
        super().__init__(f"manifest {reference} {reason}")
        self.reference = reference


class TagUnknown(RequestError):
    """The package source has nothing that the tag could mean."""

    def __init__(self, tag: str, reason: str) -> None:
        super().__init__(f"tag {tag}: {reason}")
        self.tag = tag


class ClosureTooLarge(RequestError):
    """An image would be larger than this server makes them.

    Attributes:
        size: of its closure, in bytes (NAR size).
        limit: in bytes.
        largest: its largest store paths without their directory, with their own sizes in bytes, the largest first.
    """

    def __init__(self, size: int, limit: int, largest: tuple[tuple[str, int], ...]) -> None:
        paths = ", ".join(f"{path} ({readable_size(bytes_)})" for path, bytes_ in largest)
        super().__init__(
            f"the image would have {readable_size(size)} of store paths, and {readable_size(limit)} is the limit (NIXERY_MAX_CLOSURE); "
            f"the largest are {paths}"
        )
        self.size = size
        self.limit = limit
        self.largest = largest


class UnsafeContents(RequestError):
    """A package holds a forbidden file, or so many that planning the image would exhaust the server.

    Args:
        file: its name in the image.
        reason: why it is refused, and what to do about it.

    Attributes:
        file: to show to people; not necessarily the whole name.
    """

    def __init__(self, file: bytes, reason: str) -> None:
        self.file = shown(file)
        super().__init__(f"{self.file} cannot be in an image: {reason}")


class Reason(StrEnum):
    """Why a package cannot be had. The values are the words used towards the client."""

    MISSING = "missing"
    BROKEN = "broken"
    UNFREE = "unfree"
    INSECURE = "insecure"
    WRONG_PLATFORM = "not available on this platform"
    THROWS = "does not evaluate"
    NOT_A_PACKAGE = "not a package"
    TOO_LARGE = "too large"
    INVALID_DEFINITION = "not a valid image definition"


@dataclass(frozen=True, slots=True)
class UnavailablePackage:
    """One package that cannot be had.

    Attributes:
        name: as the client wrote it.
        reason: the kind of trouble.
        explanation: one line in the package set's own words; may be empty.
        near_names: names the set does have, the most similar first; may be empty.
    """

    name: str
    reason: Reason
    explanation: str = ""
    near_names: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.name} ({self.reason}"
        if self.explanation:
            text += f": {self.explanation}"
        if self.near_names:
            text += f"; did you mean {' or '.join(self.near_names)}?"
        return text + ")"


class PackagesUnavailable(RequestError):
    """One or more of the requested packages cannot be had; all of them are named."""

    def __init__(self, packages: tuple[UnavailablePackage, ...]) -> None:
        super().__init__("packages not available: " + ", ".join(map(str, packages)))
        self.packages = packages


class BuildError(NixeryError):
    """The request is valid, but the image could not be made."""


class EvaluationFailed(BuildError):
    """The package set as a whole does not evaluate: nobody's request can be served from it.

    Attributes:
        log_tail: the last lines that Nix wrote.
    """

    def __init__(self, log_tail: tuple[str, ...], reason: str = "") -> None:
        super().__init__(f"the package set does not evaluate: {reason or 'Nix said nothing'}")
        self.log_tail = log_tail


class BuildFailed(BuildError):
    """A derivation's builder failed.

    Attributes:
        derivation: the name of the derivation that failed (without its store directory), or ``None`` when Nix
            failed without naming one.
        log_tail: the last lines the builder wrote.
        disturbed: whether Nix's garbage collector was at work when it failed, which may have been the reason.
    """

    def __init__(
        self, derivation: str | None, log_tail: tuple[str, ...], summary: str, *, disturbed: bool = False
    ) -> None:
        what = f"building {derivation} failed" if derivation else "Nix could not build the packages"
        # Most clients show the message and nothing else, so that the reason has to be in it.
        last = next((line.strip() for line in reversed(log_tail) if line.strip()), "")
        reason = f"; its log ends with: {last}" if last and last not in summary else ""
        super().__init__(f"{what}: {summary.removesuffix('.') if reason else summary}{reason}")
        self.derivation = derivation
        self.log_tail = log_tail
        self.disturbed = disturbed


class AnswerTooLarge(BuildError):
    """The output of a command exceeds its limit, in total or for one package.

    Attributes:
        limit: in bytes.
    """

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"{what} is too large: {readable_size(limit)} is the limit")
        self.limit = limit


class NixTimedOut(BuildError):
    """A builder ran longer than ``NIX_TIMEOUT`` seconds, or Nix as a whole made no progress for that long."""

    def __init__(self, derivation: str | None, seconds: float, log_tail: tuple[str, ...] = ()) -> None:
        what = f"building {derivation}" if derivation else "Nix"
        super().__init__(f"{what} took longer than {seconds:g} seconds (NIX_TIMEOUT)")
        self.derivation = derivation
        self.seconds = seconds
        self.log_tail = log_tail


class BuildDeadlineExceeded(BuildError):
    """An image was not finished within ``NIXERY_BUILD_TIMEOUT`` seconds; the time before its build began does not count."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the image was not finished within {seconds:g} seconds (NIXERY_BUILD_TIMEOUT); what has been built of it is kept, "
            "so that another attempt gets further"
        )
        self.seconds = seconds


class NixStoreFull(BuildError):
    """There is no room left in the Nix store, or where Nix keeps its database and builds."""

    def __init__(self) -> None:
        super().__init__("the Nix store is full: there is no space left where Nix builds and keeps packages")


class NixUnusable(BuildError):
    """Nix cannot be run, or answers in a way no known version does."""


class PathsCollected(BuildError):
    """Nix's garbage collector took what was needed, between two of our steps and again and again."""

    def __init__(self, path: str) -> None:
        super().__init__(f"Nix's garbage collector took {path} before it was used; try again")
        self.path = path


class SourceUnreachable(BuildError):
    """The package source cannot be asked at the moment; asking again later may help."""


class PackageSetChanged(BuildError):
    """The package set was changed while it was used, again and again."""

    def __init__(self) -> None:
        super().__init__("the package set is being changed; try again when that is done")


class PlatformFailed(NixeryError):
    """One of several images under a name cannot be had.

    Attributes:
        platform: which one, such as ``linux/arm64``.
        error: what is the matter with it.
    """

    def __init__(self, platform: str, error: NixeryError) -> None:
        super().__init__(f"{platform}: {error}")
        self.platform = platform
        self.error = error
