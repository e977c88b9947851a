"""Everything that can go wrong in nixery's own terms; no HTTP in here.

::

    NixeryError
    ├── RequestError                  the client asked for something that cannot be
    │   ├── InvalidName
    │   ├── InvalidReference
    │   ├── InvalidDigest
    │   ├── NameUnknown
    │   ├── BlobUnknown
    │   ├── ManifestUnknown
    │   └── PackagesUnavailable       missing, broken, unfree, ... : names them all
    ├── BuildError                    the request is fine, making the image failed
    │   ├── EvaluationFailed
    │   ├── BuildFailed               with the derivation and the end of its log
    │   ├── BuildTimedOut
    │   └── NixUnusable               Nix is not there, or does not answer as Nix does
    ├── StorageError
    │   └── BlobVerificationFailed    what was written is not what was meant
    ├── ShuttingDown
    └── SettingsError                 every problem of the environment at once

Errors carry data. What status and code they become is the business of
``server/registry/errors.py`` alone; a test walks this tree and requires a row there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class NixeryError(Exception):
    """The root: everything nixery raises on purpose.

    ``str(error)`` is one or a few sentences for the person who made the request: what is
    wrong and what to do.
    """


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


class Reason(StrEnum):
    """Why a package cannot be had. The values are the words used towards the client."""

    MISSING = "missing"
    BROKEN = "broken"
    UNFREE = "unfree"
    INSECURE = "insecure"
    WRONG_PLATFORM = "not available on this platform"
    THROWS = "does not evaluate"
    NOT_A_PACKAGE = "not a package"


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
    """The package set as a whole does not evaluate: nobody's request can be served from it."""

    def __init__(self, log_tail: tuple[str, ...]) -> None:
        super().__init__(
            "the package set does not evaluate: " + (log_tail[-1] if log_tail else "Nix said nothing")
        )
        self.log_tail = log_tail


class BuildFailed(BuildError):
    """A derivation's builder failed.

    Attributes:
        derivation: the name of the derivation that failed (without its store directory), or ``None`` when Nix
            failed without naming one.
        log_tail: the last lines the builder wrote.
    """

    def __init__(self, derivation: str | None, log_tail: tuple[str, ...], summary: str) -> None:
        what = f"building {derivation} failed" if derivation else "Nix could not build the packages"
        # Most clients show the message and nothing else, so that the reason has to be in it.
        last = next((line.strip() for line in reversed(log_tail) if line.strip()), "")
        reason = f"; its log ends with: {last}" if last and last not in summary else ""
        super().__init__(f"{what}: {summary.removesuffix('.') if reason else summary}{reason}")
        self.derivation = derivation
        self.log_tail = log_tail


class BuildTimedOut(BuildError):
    """A builder ran longer than ``NIX_TIMEOUT`` seconds, or Nix as a whole made no progress for that long."""

    def __init__(self, derivation: str | None, seconds: float, log_tail: tuple[str, ...] = ()) -> None:
        what = f"building {derivation}" if derivation else "Nix"
        super().__init__(f"{what} took longer than {seconds:g} seconds (NIX_TIMEOUT)")
        self.derivation = derivation
        self.seconds = seconds
        self.log_tail = log_tail


class NixUnusable(BuildError):
    """Nix cannot be run, or answers in a way no known version does."""


class StorageError(NixeryError):
    """The store for blobs and records does not do what is asked of it."""


class BlobVerificationFailed(StorageError):
    """The bytes written do not have the digest or size they were meant to have; nothing was stored."""


class ShuttingDown(NixeryError):
    """The server is stopping; the same request to its successor will be served."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try again")


class SettingsError(NixeryError):
    """One or more settings are missing or wrong.

    Attributes:
        problems: one line each.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
