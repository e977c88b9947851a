"""The request is fine, and there is no image all the same."""

from __future__ import annotations

from nixery.errors.base import NixeryError, readable_size


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


class BuildTimedOut(BuildError):
    """A builder ran longer than ``NIX_TIMEOUT`` seconds, or Nix as a whole made no progress for that long."""

    def __init__(self, derivation: str | None, seconds: float, log_tail: tuple[str, ...] = ()) -> None:
        what = f"building {derivation}" if derivation else "Nix"
        super().__init__(f"{what} took longer than {seconds:g} seconds (NIX_TIMEOUT)")
        self.derivation = derivation
        self.seconds = seconds
        self.log_tail = log_tail


class BuildTookTooLong(BuildError):
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
