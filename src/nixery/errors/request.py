"""What the client asked for cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nixery.errors.base import NixeryError, readable_size, shown


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
