"""The tree of domain errors, grouped by the party that can fix them. No HTTP in here.

::

    NixeryError
    ├── RequestError                  the client: ask for something else
    │   ├── InvalidName
    │   ├── InvalidReference
    │   ├── InvalidDigest
    │   ├── NameUnknown               nothing was built under this name yet
    │   ├── BlobUnknown
    │   ├── StorePathUnknown          no stored image has this store path
    │   ├── ManifestUnknown
    │   ├── TagUnknown                the package source has no such branch, commit, ...
    │   ├── PackageUnknown            the package set has no such package
    │   ├── PackagesUnavailable       missing, broken, unfree, ...: names them all
    │   ├── ClosureTooLarge           names the largest store paths
    │   ├── UnsafeContents            names the file of a package
    │   ├── LoginRequired             no credentials, or a token for something else
    │   ├── AccessDenied              the rules do not allow it, and the client may know
    │   ├── NotVisible                likewise, and it may not
    │   └── BuildNotAllowed           not stored, and the client may not have it built
    ├── BuildError                    the request is valid; making the image failed
    │   ├── PackageSetError           the maintainers of the package set
    │   │   ├── EvaluationFailed
    │   │   ├── BuildFailed           with the derivation and the end of its log
    │   │   ├── AnswerTooLarge        Nix, or git, wrote more than its limit
    │   │   ├── PackageSetChanged
    │   │   └── SourceUnreachable     the package source does not answer
    │   ├── BinaryCacheFailed         the administrator of a binary cache
    │   ├── NarRefused                the binary cache: its contents are not what it has announced
    │   ├── NotIndexed                the administrator of a server without Nix
    │   └── NixError                  the administrator of Nix on the machine
    │       ├── NixTimedOut           a builder, or Nix, ran too long
    │       ├── BuildDeadlineExceeded the whole build ran too long
    │       ├── NixStoreFull
    │       ├── NixUnusable           Nix is missing, or its answer is not understood
    │       └── PathsCollected        Nix's garbage collector deleted paths in use
    ├── PlatformFailed                one of several platforms: holds one of the above
    ├── BuildCancelled                somebody who may do so ended the build
    ├── StorageError                  the administrator of the storage
    │   ├── BlobVerificationFailed
    │   ├── StorageFull
    │   └── CollectionRunning
    ├── OperatorError                 the operator of this process
    │   ├── SettingsError             every problem of the environment at once
    │   ├── PushFailed                another registry does not accept the image
    │   ├── ApiTokenRefused           a token that cannot be created
    │   └── InternalError             a bug; the log has the traceback
    └── Unavailable                   nothing to fix: retry later
        ├── TooBusy                   says when to retry
        │   └── TooManyFailedLogins
        ├── QuotaExceeded             likewise, and which limit of the access file
        ├── IssuerUnreachable         an OpenID Connect issuer does not answer
        └── ShuttingDown

Errors carry data. ``server/errors.py`` alone maps them to a status and a code; a test walks this tree.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from nixery.plain_text import escaped, shortened

# Characters. With 100 unavailable packages, a message that explains the first five has some 12,000.
LONGEST_MESSAGE = 16_000

# Names that a message about several of them shows.
_SHOWN_NAMES = 5

# Characters of a file's name that a message shows: enough to find the file.
_LONGEST_FILE_NAME = 300

# The name in ``<hash>-<name>.drv``.
_DERIVATION = re.compile(r"(?:[0-9a-z]{32}-)?(.*?)(?:\.drv)?", re.DOTALL)

# A line of a log with a reason: "main.c:3:1: error: ...", "error[E0425]: ...", "ImportError: ...".
_TELLING = re.compile(r"(?:error|Error|ERROR|fatal)(?:\[\w+\])?: ")

# The disk, or this user's quota, is full; or a file may not become as large as that (setrlimit(2)).
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def derivation_name(file: str) -> str:
    """Return the name in ``<hash>-<name>.drv``: people read it, and the hash tells them nothing."""
    match = _DERIVATION.fullmatch(file)
    return match[1] if match else file


class NixeryError(Exception):
    """The root: everything that nixery raises on purpose.

    ``str(error)`` is one or a few sentences for people: what failed, and what to do.

    Attributes:
        build: the id of the build that it ended; ``None`` outside of a build.
    """

    build: str | None = None

    def __init__(self, message: str = "") -> None:
        super().__init__(message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}…")

    def without_frames(self) -> Self:
        """Return an equal error without a traceback, to remember, or to raise in place of a remembered one.

        A traceback holds the variables of every function that the error passed, such as a whole request, and
        grows with each raise.
        """
        error = type(self).__new__(type(self), *self.args)
        vars(error).update(vars(self))
        return error


class RequestError(NixeryError):
    """The request cannot be served as it stands; repeating it changes nothing."""


class InvalidName(RequestError):
    """A repository name that the distribution specification does not allow, or that contradicts itself."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"invalid image name {name!r}: {reason}")
        self.name = name
        self.reason = reason


class InvalidReference(RequestError):
    """A reference to a manifest that is neither a valid tag nor a valid digest."""

    def __init__(self, reference: str) -> None:
        super().__init__(
            f"invalid reference {reference!r}: expected a tag (letters, digits, '_', '.', '-', at most 128 "
            "characters, not starting with '.' or '-') or a digest (sha256:<64 hex digits>)"
        )
        self.reference = reference


class InvalidDigest(RequestError):
    """A malformed digest, or one of an algorithm other than sha256."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"invalid digest {digest!r}: expected sha256:<64 lower-case hex digits>")
        self.digest = digest


class NameUnknown(RequestError):
    """Nothing was built under this name yet, so there are no tags to list."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no image was built under the name {name} yet; pull {name}:latest to build it")
        self.name = name


class BlobUnknown(RequestError):
    """No blob with this digest is stored."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"blob {digest} is not stored; pull the image by its tag to build it")
        self.digest = digest


class StorePathUnknown(RequestError):
    """No stored image has this store path, or the client may pull none of those that have it."""

    def __init__(self, digits: str) -> None:
        super().__init__(
            f"no stored image has a store path with the hash {digits}; pull an image that has it, to have it built"
        )
        self.digits = digits


class ManifestUnknown(RequestError):
    """No manifest with this digest is stored, or the tag is of a kind that is never built."""

    def __init__(self, reference: str, reason: str) -> None:
        super().__init__(f"manifest {reference} {reason}")
        self.reference = reference


class TagUnknown(RequestError):
    """The package source has no branch, tag or commit that the tag could name."""

    def __init__(self, tag: str, reason: str) -> None:
        super().__init__(f"tag {tag}: {reason}")
        self.tag = tag
        self.reason = reason


class PackageUnknown(RequestError):
    """The package set has no package of a name."""

    def __init__(self, name: str, near_names: Sequence[str] = ()) -> None:
        hint = f"; did you mean {' or '.join(near_names)}?" if near_names else ""
        super().__init__(f"the package set has no {name}{hint}")
        self.name = name
        self.near_names = tuple(near_names)


class Reason(StrEnum):
    """Why a package is unavailable, in the words that clients see."""

    MISSING = "missing"
    BROKEN = "broken"
    UNFREE = "unfree"
    INSECURE = "insecure"
    WRONG_PLATFORM = "not available on this platform"
    THROWS = "does not evaluate"
    NOT_A_PACKAGE = "not a package"
    TOO_LARGE = "too large"
    INVALID_DEFINITION = "not a valid image definition"
    INCOMPLETE = "incomplete"
    INVALID_META_PACKAGE = "not a valid meta-package"
    INVALID_FACTS = "not a valid description of the package set"
    NOT_CACHED = "in no binary cache"


@dataclass(frozen=True, slots=True)
class UnavailablePackage:
    """A package that an image cannot have.

    Attributes:
        name: as the client wrote it.
        reason: the kind of problem.
        explanation: one line in the package set's own words; may be empty.
        near_names: names that the set has, the most similar first; may be empty.
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
    """One or more of the requested packages are unavailable; the error names all of them."""

    def __init__(self, packages: tuple[UnavailablePackage, ...]) -> None:
        super().__init__("packages not available: " + ", ".join(map(str, packages)))
        self.packages = packages


class ClosureTooLarge(RequestError):
    """An image would exceed ``NIXERY_MAX_CLOSURE``.

    Attributes:
        size: of its closure, in bytes (NAR size).
        limit: in bytes.
        largest: its largest store paths without their directory, with their own sizes in bytes, the largest
            first.
    """

    def __init__(self, size: int, limit: int, largest: tuple[tuple[str, int], ...]) -> None:
        paths = ", ".join(f"{path} ({_readable(bytes_)})" for path, bytes_ in largest)
        super().__init__(
            f"the image would have {_readable(size)} of store paths, and {_readable(limit)} is the limit "
            f"(NIXERY_MAX_CLOSURE); the largest are {paths}"
        )
        self.size = size
        self.limit = limit
        self.largest = largest


class UnsafeContents(RequestError):
    """A package holds a forbidden file, or so many files that planning the image would exhaust the server.

    Args:
        file: its name in the image.
        reason: why it is refused, and what to do about it.

    Attributes:
        file: for people; possibly shortened.
    """

    def __init__(self, file: bytes, reason: str) -> None:
        self.file = shown(file)
        super().__init__(f"{self.file} cannot be in an image: {reason}")


class BuildError(NixeryError):
    """The request is valid, but the image could not be made."""


class PackageSetError(BuildError):
    """The package set or its source is the cause."""


class EvaluationFailed(PackageSetError):
    """The package set as a whole does not evaluate, for any request.

    Attributes:
        log_tail: the last lines that Nix wrote.
    """

    def __init__(self, log_tail: tuple[str, ...], reason: str = "") -> None:
        super().__init__(f"the package set does not evaluate: {reason or 'Nix gave no reason'}")
        self.log_tail = log_tail


class BuildFailed(PackageSetError):
    """A derivation's builder failed.

    Attributes:
        derivation: file name of the derivation that failed; ``None`` when Nix failed without naming one.
        log_tail: the last lines that the builder wrote.
        summary: the reason in Nix's words, on one line.
        disturbed: whether Nix's garbage collector was running at the time, which may have been the cause.

    Args:
        needed_by: the package of the image that needs the derivation; empty if it is that package's own, or unknown.
    """

    def __init__(
        self,
        derivation: str | None,
        log_tail: tuple[str, ...],
        summary: str,
        *,
        disturbed: bool = False,
        needed_by: str = "",
    ) -> None:
        needs = f", which {needed_by} needs," if needed_by else ""
        what = (
            f"building {derivation_name(derivation)}{needs} failed"
            if derivation
            else "Nix could not build the packages"
        )
        # Most clients show the message and nothing else, so it has to contain the reason.
        lines = [line.strip() for line in log_tail if line.strip()]
        last = lines[-1] if lines else ""
        # The last line is often that of a tool that ran the one with the reason: "make: *** [all] Error 1".
        telling = next((line for line in reversed(lines) if _TELLING.search(line)), last)
        reason = f"; its log {'ends with' if telling == last else 'has'}: {telling}" if telling else ""
        if telling and telling in summary:
            reason = ""
        elif derivation and not lines:
            reason = "; it wrote nothing"
        super().__init__(f"{what}: {summary.removesuffix('.') if reason else summary}{reason}")
        self.derivation = derivation
        self.log_tail = log_tail
        self.summary = summary
        self.disturbed = disturbed


class AnswerTooLarge(PackageSetError):
    """The output of a command exceeds its limit, in total or for one package.

    Attributes:
        limit: in bytes.
    """

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"{what} is too large: {_readable(limit)} is the limit")
        self.limit = limit


class PackageSetChanged(PackageSetError):
    """Files of the package set changed during each attempt to evaluate it."""

    def __init__(self) -> None:
        super().__init__("the package set is being changed; retry when its files are complete")


class SourceUnreachable(PackageSetError):
    """The package source does not answer at the moment; a retry may help."""


class BinaryCacheFailed(BuildError):
    """A binary cache does not answer, or not with what its narinfos say.

    Attributes:
        cache: its name, without secrets.
    """

    def __init__(self, cache: str, reason: str) -> None:
        super().__init__(f"the binary cache {cache} failed: {reason}")
        self.cache = cache


class NarRefused(BuildError):
    """The contents of a store path, as a binary cache serves them, are damaged or not those that it has announced.

    Attributes:
        path: the store path.
        reason: what is wrong with its NAR.
        cache: the URL of the binary cache; may be empty.
    """

    def __init__(self, path: str, reason: str, cache: str = "") -> None:
        source = f"the binary cache {cache}" if cache else "a binary cache"
        super().__init__(
            f"{source} serves a NAR of {path} that is refused: {reason}; retry, or remove the cache from the "
            "substituters of Nix's configuration"
        )
        self.path = path
        self.reason = reason
        self.cache = cache


class NotIndexed(BuildError):
    """A server without Nix does not know what names stand for."""

    def __init__(self, names: Sequence[str]) -> None:
        shown_names = ", ".join(names[:_SHOWN_NAMES]) + (", and others" if len(names) > _SHOWN_NAMES else "")
        super().__init__(
            f"this server has no Nix, and the package index of the storage does not tell what it needs of {shown_names} "
            "in this state of the package set: have a server with Nix index the state for this platform, or pull the "
            "image from it once"
        )


class NixError(BuildError):
    """Nix, or the machine that it runs on, is the cause."""


# The setting that limits an evaluation; NIX_TIMEOUT limits a builder.
EVALUATION_TIMEOUT = "NIXERY_EVALUATION_TIMEOUT"


class NixTimedOut(NixError):
    """A builder or an evaluation ran longer than its setting allows, or Nix made no progress for that long."""

    def __init__(
        self,
        derivation: str | None,
        seconds: float,
        log_tail: tuple[str, ...] = (),
        *,
        setting: str = "NIX_TIMEOUT",
    ) -> None:
        evaluates = setting == EVALUATION_TIMEOUT
        what = (
            f"building {derivation_name(derivation)}"
            if derivation
            else "the evaluation"
            if evaluates
            else "Nix"
        )
        super().__init__(
            f"{what} took longer than {seconds:g} seconds ({setting}, which the operator of the server can raise)"
        )
        self.derivation = derivation
        self.seconds = seconds
        self.log_tail = log_tail


class BuildDeadlineExceeded(NixError):
    """An image took longer than ``NIXERY_BUILD_TIMEOUT`` seconds, without its time in the queue."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the image was not finished within {seconds:g} seconds (NIXERY_BUILD_TIMEOUT, which the operator of the "
            "server can raise); the next build begins with the packages that this one completed"
        )
        self.seconds = seconds


class NixStoreFull(NixError):
    """The file system of the Nix store, of Nix's database or of its builds is full."""

    def __init__(self) -> None:
        super().__init__("the Nix store is full: make room where Nix builds and keeps packages")


class NixUnusable(NixError):
    """Nix cannot be run, or its answer is not understood."""


class PathsCollected(NixError):
    """Nix's garbage collector deleted a path that an image needs, during each attempt to build it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"Nix's garbage collector deleted {path} before it was used; retry")
        self.path = path


class PlatformFailed(NixeryError):
    """One of several images under a name could not be made.

    Attributes:
        platform: such as ``linux/arm64``.
        error: why.
    """

    def __init__(self, platform: str, error: NixeryError) -> None:
        super().__init__(f"{platform}: {error}")
        self.platform = platform
        self.error = error


class BuildCancelled(NixeryError):
    """A build was ended on request. It is not remembered: the next request starts the build again.

    Args:
        by: who ended it, for all who see the build or wait for it: a role, such as "an administrator", and not a name.
    """

    def __init__(self, by: str) -> None:
        super().__init__(f"the build was cancelled by {by}; pull the image again to start a new build")


class StorageError(NixeryError):
    """An operation on blobs, records or local files failed."""


class BlobVerificationFailed(StorageError):
    """Written bytes do not have their digest or size; nothing was stored."""


class StorageFull(StorageError):
    """The storage has no room for more blobs and records. It still serves those that it has."""


class CollectionRunning(StorageError):
    """Another garbage collection of this storage is running, in this process or in another one."""

    def __init__(self) -> None:
        super().__init__("garbage is being collected already, by another process; retry when it has finished")


class OperatorError(NixeryError):
    """The operator of this process can fix it, or report it."""


class SettingsError(OperatorError):
    """One or more settings are missing or wrong, or name something that cannot be used.

    Attributes:
        problems: one line each.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ApiTokenRefused(OperatorError):
    """An API token cannot be created as asked, or the one to revoke does not exist."""


class PushFailed(OperatorError):
    """Another registry does not accept an image, or does not answer."""


class InternalError(OperatorError):
    """A bug: an exception that is none of these errors. The log has its traceback; clients get no details."""

    def __init__(self, request: str | None) -> None:
        of = f" of request {request}" if request else ""
        super().__init__(f"internal error; the server's log has the details{of}")


class LoginRequired(RequestError):
    """The request has no credentials, wrong ones, or a token for other images."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"authentication required: {reason}")


class AccessDenied(RequestError):
    """The rules of the registry do not allow what somebody asks for, and they may know that.

    Args:
        who: the identity.
        what: that is not allowed, such as ``pull shell/git``.
    """

    def __init__(self, who: str, what: str) -> None:
        super().__init__(f"{who} may not {what}: no rule of this registry allows it; ask who runs it")


class NotVisible(RequestError):
    """Something does not exist, or somebody may not know that it does.

    Args:
        who: the identity.
        what: that was asked for.
    """

    def __init__(self, who: str, what: str) -> None:
        super().__init__(f"there is no {what} that {who} may use here; ask who runs this registry")


class BuildNotAllowed(RequestError):
    """An image is not stored, and who asks for it may not have it built."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"image {name} was not built yet, and the rules of this registry do not let you have it built; "
            "ask somebody who may to pull it first"
        )


class Unavailable(NixeryError):
    """The server does not accept the request now; nothing was begun, and a retry will succeed."""


class TooBusy(Unavailable):
    """A queue is full, or a client has used up its share of it.

    Args:
        limit: of work that runs at once.
        waiting: queued already.
        retry_after: seconds after which a retry makes sense.
        why: one of the constants below, with placeholders for ``limit`` and ``waiting``.

    Attributes:
        retry_after: as above.
    """

    BUILDS = "it runs {limit} builds at once (NIXERY_MAX_BUILDS), and {waiting} more are queued (NIXERY_MAX_QUEUED)"
    LOOKUPS = "it looks up {limit} tags at once (NIXERY_MAX_BUILDS), and {waiting} more are queued (NIXERY_MAX_QUEUED)"
    IMAGES = "it looks up {limit} stored images at once, and {waiting} more are queued"
    LISTINGS = "it lists {limit} package set at once, and {waiting} more are queued"
    DESCRIPTIONS = "it describes {limit} images at once, and {waiting} more are queued"
    REPORTS = "it renders {limit} list of builds at once, and {waiting} more are queued"
    CATALOGUE = "it lists names or tags for {limit} requests at once, and {waiting} more are queued"
    PACKAGES = "it describes {limit} packages at once, and {waiting} more are queued"
    ANSWERS = "it writes {limit} answer about packages or images at once, and {waiting} more are queued"
    LOGINS = "it completes {limit} logins at once, and {waiting} more are queued"
    SEARCHES = "it runs {limit} package search at once, and {waiting} more are queued"
    STORE_PATHS = "it is still reading which store paths its images have, of {waiting} images so far"
    NARS = "it makes {limit} NARs at once, and {waiting} more are queued"
    PASSWORDS = "it checks {limit} passwords at once, and {waiting} more are queued"
    SHARE = (
        "this client has {waiting} requests in the queue, which is its share (NIXERY_MAX_QUEUED_PER_CLIENT)"
    )
    DISPLACED = "the queue is full, and a request of a client with fewer requests in it took this one's place"
    FOLLOWERS = "{waiting} streams of build events are open (NIXERY_MAX_FOLLOWERS); poll the state of the build instead"
    SHARE_OF_FOLLOWERS = (
        "this client has {waiting} streams of build events open (NIXERY_MAX_FOLLOWERS_PER_CLIENT); poll the state of "
        "the build instead"
    )

    def __init__(self, limit: int, waiting: int, retry_after: int, why: str = BUILDS) -> None:
        reason = why.format(limit=limit, waiting=waiting)
        super().__init__(f"the server is busy: {reason}; retry in {retry_after} seconds")
        self.retry_after = retry_after


class QuotaExceeded(Unavailable):
    """A client has used up a quota of the access file.

    Args:
        limit: one of the constants below, with a placeholder for ``allowed``.
        allowed: the value of the limit.
        retry_after: seconds after which a retry makes sense.

    Attributes:
        retry_after: as above.
    """

    REQUESTS = "requests a minute are limited to {allowed} for this client (requests-per-minute)"
    BUILDS = "builds an hour are limited to {allowed} for this client (builds-per-hour)"
    AT_ONCE = "builds that run or wait are limited to {allowed} for this client (builds-at-once)"
    BYTES = "images built a day are limited to {size} for this client (bytes-per-day)"

    def __init__(self, limit: str, allowed: int, retry_after: int) -> None:
        reason = limit.format(allowed=allowed, size=_readable(allowed))
        super().__init__(f"quota exceeded: {reason}; retry in {retry_after} seconds")
        self.retry_after = retry_after


class TooManyFailedLogins(TooBusy):
    """Too many passwords from an address, or for a user, were wrong.

    Args:
        retry_after: seconds after which another attempt is admitted.
    """

    def __init__(self, retry_after: int) -> None:
        # Not the message of a busy server. It is the same for users that do not exist.
        Unavailable.__init__(
            self,
            "too many log-ins with wrong passwords from this address or for this user; "
            f"retry in {retry_after} seconds",
        )
        self.retry_after = retry_after


class IssuerUnreachable(Unavailable):
    """An OpenID Connect issuer does not answer, or its answer is not usable; the log says why."""

    def __init__(self, issuer: str) -> None:
        super().__init__(
            f"cannot get the keys or the answer of the OpenID Connect issuer {issuer}; retry in a few seconds"
        )


class ShuttingDown(Unavailable):
    """The server is stopping; its successor will serve the request."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; retry in a few seconds")


def storage_error(what: str, error: OSError) -> StorageError:
    """Return the error for an operation on the storage that the system refused, without paths of the machine.

    Args:
        what: the operation that failed, such as "cannot write to the storage".
        error: the system's.
    """
    return (StorageFull if error.errno in _FULL else StorageError)(f"{what}: {error.strerror}")


def shown(name: bytes) -> str:
    """Return a file name for an error message: escaped, and of a bounded length."""
    return shortened(escaped(name.decode(errors="replace")), _LONGEST_FILE_NAME)


def _readable(size: int) -> str:
    """Write a number of bytes in powers of 1024."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:  # noqa: PLR2004 -- the unit
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
