"""Package sources: what a tag means, which state of a source it is pinned to, and which commits clients may ask for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

import structlog

from nixery.errors import SourceUnreachable, TagUnknown
from nixery.nix.packages import PackageSet
from nixery.source_location import COMMIT, SourceLocation

# Seconds since the epoch: the years 1 and 9999, which bound the dates that can be written.
EARLIEST, LATEST = -62135596800, 253402300799

# Values of NIXERY_COMMITS besides patterns.
REACHABLE, ANY, NONE = "reachable", "any", "none"

# Patterns of branches and tags, in which "*" matches anything.
_PATTERN = re.compile(r"[\w./+@*?-]+", re.ASCII)

# Characters of a program's message; a server may have it repeat anything.
_LONGEST_REASON = 500

_log = structlog.get_logger("nixery.sources")


@dataclass(frozen=True, slots=True)
class Reference:
    """The meaning of a tag in a source.

    Attributes:
        name: for example of a branch or a channel, or the digits of a commit; empty for a source without
            versions, in which all tags mean the same.
        moving: whether it may mean another state later.
        rule: identity of the rule that accepted a commit chosen by a client; empty for the operator's choice,
            and for branches and tags. A pin is valid only for its own rule.
    """

    name: str
    moving: bool
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Pin:
    """One state of a source: all builds for a pin use the same package set.

    Attributes:
        source: description of the source, without credentials.
        identity: identifies the state within the source: a commit, or a digest of the content.
        revision: the state in a form for people.
        url: a public location of it; ``None`` if there is none.
        created: its date in seconds since the epoch; ``None`` if unknown. Authors of commits can write any
            number, so a date outside of the years 1 to 9999 becomes ``None``.
    """

    source: str
    identity: str
    revision: str
    url: str | None = None
    created: int | None = None

    def __post_init__(self) -> None:
        if self.created is not None and not EARLIEST <= self.created <= LATEST:
            object.__setattr__(self, "created", None)


class PackageSource(Protocol):
    """A place with package sets.

    Attributes:
        description: identifies it, without credentials; two sources that could differ have different ones.
    """

    description: str

    def reference(self, tag: str) -> Reference:
        """Resolve a tag without asking the source.

        Raises:
            TagUnknown: the tag can never mean anything.
        """
        ...

    def may_mean(self, reference: Reference, pin: Pin) -> bool:
        """Whether a pin from an untrusted record can be a state of this source, judged by its form.

        Commands and URLs contain the pin: one in a form that ``resolve`` never returns could select other
        code, or files of this machine.
        """
        ...

    async def resolve(self, reference: Reference) -> Pin:
        """Look up what a reference means now.

        Raises:
            TagUnknown: the source does not have it.
            SourceUnreachable: the source does not answer.
        """
        ...

    async def require_reachable(self, reference: Reference) -> None:
        """Check that the source can be asked about a moving reference, at less cost than ``resolve``.

        Raises:
            TagUnknown, SourceUnreachable: see ``resolve``.
        """
        ...

    def open(self, pin: Pin) -> AbstractAsyncContextManager[PackageSet]:
        """Provide the package set of a pin for Nix, while the context lasts.

        Raises:
            PackageSetChanged: at the beginning or at the end: the source has another state by now and keeps
                no old ones.
            SourceUnreachable: the source does not answer.
        """
        ...

    async def confirm(self, pin: Pin) -> None:
        """Check that the state of a pin is still available.

        A package set that failed may have been repaired in a later state.

        Raises:
            PackageSetChanged: the source has another state by now and keeps no old ones.
            SourceUnreachable: the source does not answer.
        """
        ...


def is_commit_of(reference: Reference, pin: Pin) -> bool:
    """Whether a pin is a commit, and equals the commit of a reference that names one."""
    if COMMIT.fullmatch(pin.identity) is None:
        return False
    return reference.moving or COMMIT.fullmatch(reference.name) is None or reference.name == pin.identity


@dataclass(frozen=True, slots=True)
class CommitRule:
    """The commits of a repository that clients may ask for.

    A server serves more commits than its branches have: forges keep the commits of forks in the same
    repository, and git's protocol serves any object by its digits. So a commit is accepted only if a branch
    or a tag leads to it.

    Attributes:
        setting: the operator's text.
        patterns: of the accepted branches and tags; ``None`` for any commit that the server serves.
    """

    setting: str
    patterns: tuple[str, ...] | None

    @classmethod
    def parse(cls, text: str) -> CommitRule:
        """Parse the setting.

        Raises:
            ValueError: it is neither one of the three words nor a list of patterns.
        """
        words = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if words == (REACHABLE,):
            return cls(REACHABLE, ("*",))
        if words == (ANY,):
            return cls(ANY, None)
        if words == (NONE,):
            return cls(NONE, ())
        wrong = [word for word in words if word in {REACHABLE, ANY, NONE} or not _PATTERN.fullmatch(word)]
        if wrong or not words:
            raise ValueError(
                f"{text!r} is invalid; expected reachable, any, none, or patterns of branches and tags (main,release-*)"
            )
        return cls(",".join(words), words)

    def within(self, patterns: Sequence[str]) -> CommitRule:
        """Return this rule for a source that has only these branches; an operator's patterns stay."""
        return CommitRule(self.setting, tuple(patterns)) if self.setting == REACHABLE else self

    @property
    def identity(self) -> str:
        """Identify the rule; a commit that one rule accepted is not accepted by another."""
        return ",".join(["commits", self.setting, *(self.patterns or ())])

    @property
    def checks(self) -> bool:
        """Whether a commit must be in the history of branches and tags."""
        return self.patterns is not None

    def admits(self, reference: str) -> bool:
        """Whether a branch or tag is accepted.

        Args:
            reference: without ``refs/heads/`` and ``refs/tags/``.
        """
        return any(fnmatchcase(reference, pattern) for pattern in self.patterns or ())

    def require_commits(self, tag: str) -> None:
        """Check that clients may ask for commits at all.

        Raises:
            TagUnknown: they may not.
        """
        if self.patterns == ():
            raise TagUnknown(
                tag,
                f"this server serves no commits by their digits (NIXERY_COMMITS={self.setting}); use a branch or a tag",
            )

    def refusal(self, tag: str) -> TagUnknown:
        """Return the error for a commit that no branch and no tag leads to."""
        return TagUnknown(
            tag,
            f"not an ancestor of a branch or tag of this package source (NIXERY_COMMITS={self.setting}); use a branch or a tag, "
            "or merge the commit into one",
        )


class Disclosure:
    """Messages about one source, without its secrets.

    The log gets the reason of an error; clients get it only if the source is public.

    Args:
        location: of the source.
    """

    def __init__(self, location: SourceLocation) -> None:
        self._location = location

    @property
    def name(self) -> str:
        """The source, in messages for clients."""
        return self._location.name

    def unreachable(self, reason: str) -> SourceUnreachable:
        """Return the error of a source that cannot be read, and log the reason.

        Args:
            reason: the words of git or Nix, which may repeat a URL.
        """
        said = " ".join(self._location.redact(reason).split())[:_LONGEST_REASON] or "no reason given"
        _log.warning("package source unreachable", source=self._location.shown, reason=said)
        if self._location.is_disclosed:
            return SourceUnreachable(f"cannot read {self.name}: {said}")
        return SourceUnreachable(f"cannot read {self.name}; the server's log has the reason")
