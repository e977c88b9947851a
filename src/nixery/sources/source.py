"""The seam between the pipeline and whatever keeps package sets."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from nixery.nix.packages import PackageSet
from nixery.source_location import COMMIT

# Seconds since the epoch: the years 1 and 9999, between which there are dates.
EARLIEST, LATEST = -62135596800, 253402300799


@dataclass(frozen=True, slots=True)
class Reference:
    """The meaning of a tag in a source.

    Attributes:
        name: of a branch or a channel, say, or the digits of a commit; empty for a source without versions,
            in which all tags mean the same.
        moving: whether it may mean another state later.
        rule: that accepted a commit that a client chose; empty for the operator's choice, and for branches
            and tags. A pin is valid only for its own rule.
    """

    name: str
    moving: bool
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Pin:
    """One state of a source: all builds for a pin use the same package set.

    Attributes:
        source: which source it is a state of, without credentials.
        identity: tells this state from any other of the source: a commit, or a digest of what is there.
        revision: the state in words that mean something to people.
        url: where anybody can get it; ``None`` where nobody else can.
        created: when it was made, in seconds since the epoch; ``None`` if unknown. Authors of commits can write any number, so a
            date outside of the years 1 to 9999 becomes ``None``.
    """

    source: str
    identity: str
    revision: str
    url: str | None = None
    created: int | None = None

    def __post_init__(self) -> None:
        if self.created is not None and not EARLIEST <= self.created <= LATEST:
            object.__setattr__(self, "created", None)


def is_commit_of(reference: Reference, pin: Pin) -> bool:
    """Whether a pin is a commit, and equals the commit of a reference that names one."""
    if COMMIT.fullmatch(pin.identity) is None:
        return False
    return reference.moving or COMMIT.fullmatch(reference.name) is None or reference.name == pin.identity


class PackageSource(Protocol):
    """A place with package sets.

    Attributes:
        description: names it, without credentials; two sources that could differ have different ones.
    """

    description: str

    def reference(self, tag: str) -> Reference:
        """Tell what a tag means, without asking anybody.

        Raises:
            TagUnknown: nothing, and it never will.
        """
        ...

    def may_mean(self, reference: Reference, pin: Pin) -> bool:
        """Whether a pin from an untrusted record can be a state of this source, as far as its form tells.

        Commands and URLs contain the pin: one in a form that ``resolve`` never returns could select other
            code, or files of this machine.
        """
        ...

    async def resolve(self, reference: Reference) -> Pin:
        """Find out what a reference means now.

        Raises:
            TagUnknown: there is no such thing.
            SourceUnreachable: it cannot be asked.
        """
        ...

    def open(self, pin: Pin) -> AbstractAsyncContextManager[PackageSet]:
        """Provide the package set of a pin, to be imported by Nix while the context lasts.

        Raises:
            PackageSetChanged: at the beginning or at the end: the source has another state by now and keeps no old ones.
            SourceUnreachable: the package set cannot be had.
        """
        ...

    async def confirm(self, pin: Pin) -> None:
        """Make sure that the state of a pin can still be had. What is wrong with it may have been put right in a later one.

        Raises:
            PackageSetChanged: the source has another state by now and keeps no old ones.
            SourceUnreachable: it cannot be asked.
        """
        ...
