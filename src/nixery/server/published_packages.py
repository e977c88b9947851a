"""The package set for clients: bounded searches, and descriptions of packages from the index."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from nixery.access.identity import Right
from nixery.access.policy import current_access, note_refusal
from nixery.builds.index_records import PackageVersion, Progress
from nixery.builds.package_index import PackageIndex
from nixery.builds.package_search import FoundPackage, PackageSearch
from nixery.builds.slots import Slots
from nixery.errors import InvalidReference, NixeryError, NotVisible, PackageUnknown, TooBusy
from nixery.image.name import Tag, parse_reference
from nixery.nix.packages import Attribute, MetaPackageFound, Package
from nixery.plain_text import shortened
from nixery.server.http import Request
from nixery.sources.source import Pin

# Results of a search at most.
LARGEST_LIMIT = 100

# Seconds that a client waits for a package set to be listed. The listing continues, and answers the next
# request.
_LISTING_TIMEOUT = 20.0

# Concurrent searches, and waiting ones: each takes up to 15 ms in nixpkgs, and up to 200 ms if an author chose the names.
_AT_ONCE, _QUEUE = 1, 64

# Descriptions of packages that are read at once: each decompresses a part of an index.
_DESCRIBED_AT_ONCE = 2

# A search for near names: least and greatest length of its text. Longer texts take several times as long for each of
# maybe 100,000 names, and no user types them.
_FUZZY, _LONGEST_FUZZY = 3, 64

# Names that are checked at once, and unknown ones among them that get near names: each is a search of all names.
MOST_CHECKED, _MOST_SUGGESTED = 100, 5

# Characters of a query that are used; no name is longer.
_LONGEST_QUERY = 255

Listed = TypeVar("Listed")


@dataclass(frozen=True, slots=True)
class FoundPackages:
    """The result of a search.

    Attributes:
        packages: the best first.
        total: names in the whole package set.
        progress: of the index of the package set.
        near_names: of a text that may be a misspelt name, if they were asked for.
    """

    packages: Sequence[FoundPackage]
    total: int
    progress: Progress
    near_names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class PackageSetSummary:
    """The package set of the default tag, as far as it is in memory.

    Attributes:
        pin: its state.
        since: when this server began to serve that state, in seconds since the epoch.
        name: of the distribution, in its own words; empty if it is unknown.
        progress: of the index; ``None`` before the names are listed.
        is_only: whether the source has no other state, whatever the tag.
    """

    pin: Pin
    since: float
    name: str
    progress: Progress | None
    is_only: bool = False


@dataclass(frozen=True, slots=True)
class PackageDetails:
    """Everything that is known about a package.

    Attributes:
        package: as a search finds it.
        attribute: its evaluation; ``None`` if it is not evaluated yet.
        versions: in the states of the source whose indexes are kept, the latest first.
        progress: of the index of the package set.
    """

    package: FoundPackage
    attribute: Attribute | None
    versions: Sequence[PackageVersion]
    progress: Progress

    @property
    def is_available(self) -> bool | None:
        """Whether it can be a part of an image; ``None`` if that is not known yet."""
        return (
            is_available(self.package, self.progress) if self.attribute is None else not self.attribute.reason
        )

    @property
    def contents(self) -> Sequence[tuple[str, str]]:
        """Name and version of each package in a list, an image definition or a meta-package."""
        return contents_of(self.attribute)


@dataclass(frozen=True, slots=True)
class MetaPackages:
    """The names that stand for several packages.

    Attributes:
        found: by name; ``None`` if it is not evaluated yet.
        progress: of the index of the package set.
    """

    found: Sequence[tuple[str, Attribute | None]]
    progress: Progress


def contents_of(attribute: Attribute | None) -> Sequence[tuple[str, str]]:
    """Return name and version of each package in a list, an image definition or a meta-package."""
    if attribute is None or attribute.kind == "package":
        return ()
    return [(item.name, item.version) for item in attribute.items or () if isinstance(item, Package)]


def command_of(attribute: Attribute | None) -> Sequence[str]:
    """Return what a container with a meta-package runs by default; empty for other attributes."""
    items = (attribute.items if attribute is not None else None) or ()
    return next((item.command for item in items if isinstance(item, MetaPackageFound)), ())


@dataclass(frozen=True, slots=True)
class CheckedName:
    """A component of an image name, checked against the names of a package set.

    Attributes:
        exists: whether the set has it; ``None`` if only a build can tell.
        reason: why the package is not available; empty if it is, or if that is not known yet.
        near_names: of one that does not exist.
    """

    name: str
    exists: bool | None
    reason: str = ""
    near_names: Sequence[str] = ()


class PublishedPackages:
    """Searches and describes the packages of a state of the package source, which a request's ``tag`` selects.

    Args:
        index: of the package set.
    """

    def __init__(self, index: PackageIndex) -> None:
        self._index = index
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.SEARCHES)
        self._descriptions = Slots(_DESCRIBED_AT_ONCE, _QUEUE, busy=TooBusy.PACKAGES)
        # Of the state that was summarised last.
        self._names: dict[Pin, str] = {}

    async def find(self, request: Request, limit: int, *, suggest: bool = False) -> FoundPackages | None:
        """Search for the text of a request; ``None`` if the package set is still being listed.

        Args:
            request: with the text and the tag.
            limit: of the packages.
            suggest: whether to also find near names of a single word that is no name.

        Raises:
            TooBusy: too many searches are waiting.
            NixeryError: the package set is unavailable, or cannot be listed.
        """
        tag = _tag(request)
        names = await _within_time(self._index.names(tag))
        progress = await _within_time(self._index.state_progress(tag))
        if names is None or progress is None:
            return None
        text = request.query.get("q", "")[:_LONGEST_QUERY]
        found: Sequence[FoundPackage] = ()
        near: Sequence[str] = ()
        if limit:
            async with self._slots.slot():
                found = await asyncio.to_thread(_search, names, text, limit, tag)
                if not found or (suggest and not _is_name(text, found)):
                    near = await self._near(tag, text.strip())
                if not found:
                    found = [package for name in near if (package := names.get(name))][:limit]
                    near = ()
        # How many names there are that somebody may pull is not known: that would take a decision for each.
        total = len(found) if current_access().is_restricted else len(names)
        found = [one for one in found if _is_visible(one.name, tag)]
        return FoundPackages(found, total, _shown(progress, tag), near)

    async def summary(self) -> PackageSetSummary | None:
        """Summarise the package set of the default tag; ``None`` before the first look-up of that tag.

        Answers from memory, but for the first time in a state.
        """
        state = self._index.default_state
        if state is None:
            return None
        if state.pin not in self._names and state.progress is not None:
            with suppress(NixeryError):  # other parts of the page do not depend on it
                async with self._descriptions.slot():
                    facts = await self._index.facts(state.pin)
                if facts or state.progress.is_complete:
                    self._names = {state.pin: _name_of(facts)}
        name = self._names.get(state.pin, "")
        return PackageSetSummary(state.pin, state.since, name, state.progress, state.is_only)

    async def meta_packages(self, request: Request) -> MetaPackages | None:
        """Return the meta-packages; ``None`` if the package set is still being listed.

        Raises:
            TooBusy: too many descriptions are waiting.
            NixeryError: the package set is unavailable, or cannot be listed.
        """
        tag = _tag(request)
        progress = await _within_time(self._index.state_progress(tag))
        if progress is None:
            return None
        async with self._descriptions.slot():
            found = await self._index.meta_packages(tag)
        return MetaPackages([one for one in found if _is_visible(one[0], tag)], progress)

    async def check(self, tag: str, names: Sequence[str]) -> Sequence[CheckedName]:
        """Check whether the package set of a tag has some names; of more than ``MOST_CHECKED``, the first ones.

        It lists no package set: a state that is not listed yet has an answer for no name.

        Raises:
            TooBusy: too many searches are waiting.
            NixeryError: the tag is invalid or unknown, or the storage cannot be read.
        """
        tag, checked, left = _valid(tag), [], _MOST_SUGGESTED
        names = names[:MOST_CHECKED]
        for name, found in zip(names, await self._index.look_up(tag, names), strict=True):
            near: Sequence[str] = ()
            if not _is_visible(name, tag):
                checked.append(CheckedName(name, exists=False))
                continue
            if found.exists is False and left:
                left -= 1
                async with self._slots.slot():
                    near = await self._near(tag, name)
            checked.append(CheckedName(name, found.exists, found.reason, near))
        return checked

    async def _near(self, tag: str, name: str) -> Sequence[str]:
        is_searched = _FUZZY <= len(name) <= _LONGEST_FUZZY and name.isprintable()
        near = await self._index.near_names(tag, name.lower()) if is_searched else ()
        return [one for one in near if _is_visible(one, tag)]

    async def describe(self, request: Request, name: str) -> PackageDetails | None:
        """Describe the package that a component of an image name selects; ``None`` if the set is still being listed.

        Raises:
            PackageUnknown: the package set has none of that name.
            TooBusy: too many descriptions are waiting.
            NixeryError: the package set is unavailable, or cannot be listed.
        """
        tag = _tag(request)
        progress = await _within_time(self._index.state_progress(tag))
        if progress is None:
            return None
        async with self._descriptions.slot():
            is_visible = _is_visible(name, tag)
            if not is_visible:
                note_refusal(Right.PULL, name, "no rule allows them to pull this package")
            found = await self._index.attribute(tag, name) if is_visible else None
            versions = await self._index.versions(tag, name) if found is not None else ()
        if found is None:
            async with self._slots.slot():
                near = await self._near(tag, name)
            raise PackageUnknown(shortened(name, _LONGEST_QUERY), near)
        package, attribute = found
        return PackageDetails(package, attribute, visible_versions(name, versions), progress)


def visible_versions(name: str, versions: Sequence[PackageVersion]) -> Sequence[PackageVersion]:
    """Return the versions of a package at tags at which the asker may pull it."""
    access = current_access()
    if not access.is_restricted:
        return versions
    return [one for one in versions if access.allows_package(Right.PULL, name, one.tag or one.revision)]


def _shown(progress: Progress, tag: str) -> Progress:
    """Return the progress without the failures of attributes that the asker may not pull."""
    if not current_access().is_restricted:
        return progress
    return replace(progress, failures=tuple(one for one in progress.failures if _is_visible(one[0], tag)))


def _is_visible(name: str, tag: str) -> bool:
    return current_access().allows_package(Right.PULL, name, tag)


def _search(names: PackageSearch, text: str, limit: int, tag: str) -> Sequence[FoundPackage]:
    """Find packages that the asker may pull; rules may hide most of the best ones, so more are searched."""
    if not current_access().is_restricted:
        return names.search(text, limit)
    return [found for found in names.search(text, LARGEST_LIMIT) if _is_visible(found.name, tag)][:limit]


def _is_name(text: str, found: Sequence[FoundPackage]) -> bool:
    words = text.lower().split()
    # The best result is a package of that name, or with a program of that name.
    return len(words) != 1 or found[0].name == words[0] or words[0] in map(str.lower, found[0].programs)


def _name_of(facts: Mapping[str, str]) -> str:
    """Return the name of a distribution from its os-release; empty if it has none."""
    name = facts.get("NAME", "")
    # Images of parts of a distribution are not the distribution, so these facts have its name in another field.
    if facts.get("ID") == "nixery" and (like := facts.get("ID_LIKE", "").partition(" ")[0]):
        name = like.capitalize()
    return f"{name} {facts.get('VERSION', '')}".strip()


def is_available(package: FoundPackage, progress: Progress) -> bool | None:
    """Whether a package is available; ``None`` if that is not known before the package set is evaluated."""
    if package.reason:
        return False
    return True if progress.is_complete or package.version or package.description else None


def _tag(request: Request) -> str:
    return _valid(request.query.get("tag", "latest"))


def _valid(tag: str) -> str:
    match parse_reference(tag):
        case Tag(name=name):
            access = current_access()
            # Before the tag is looked up: the server would fetch and evaluate what it stands for. No 401, since a browser
            # would ask for a password while a tag is typed.
            if not access.allows_anything(Right.PULL, name):
                raise NotVisible(str(access.identity), f"tag {name}")
            return name
        case _:
            raise InvalidReference(tag)


async def _within_time(listing: Coroutine[Any, Any, Listed]) -> Listed | None:
    try:
        return await asyncio.wait_for(listing, _LISTING_TIMEOUT)
    except TimeoutError:
        return None
