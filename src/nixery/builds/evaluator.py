"""The evaluator: the contents of an image, from the cache of evaluations, the package index, or Nix."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nixery.builds.evaluation_cache import EvaluationCache
from nixery.builds.package_index import PackageIndex
from nixery.errors import (
    AnswerTooLarge,
    InvalidName,
    NotIndexed,
    PackagesUnavailable,
    Reason,
    UnavailablePackage,
)
from nixery.image.meta_packages import FACTS, SHELL
from nixery.image.name import ImageRequest
from nixery.image.platform import Platform
from nixery.nix.packages import Contents, Definition, EvaluatedItem, Facts, MetaPackageFound, Package
from nixery.nix.processes import ARGUMENTS
from nixery.nix.realisation import Nix
from nixery.sources.source import PackageSource, Pin

# Packages of an image, including those of lists and definitions. Their outputs have to fit into the arguments
# of one command: of the shortest ones, as many as below do.
_MOST_PACKAGES = 5000
_MOST_OUTPUTS = ARGUMENTS // 50

# Records of evaluations that one request reads at once: each may hold thousands of packages, in 4 MiB of JSON.
_READ_AT_ONCE = 8

# Names that nixery asks for, in the words of people.
_WORDS = {SHELL: "shell", FACTS: "nixery"}

# Missing names of a request that get near names, as in an evaluation.
_MOST_SUGGESTED = 5


class Evaluator:
    """Finds the contents of images: from the cache or the index, or by one evaluation of all other names.

    Args:
        source: provides package sets.
        nix: evaluates; ``None`` if there is none.
        cache: of results; ``None`` if they depend on more than the package set.
        index: of the package set; ``None`` likewise.

    Attributes:
        source: as above.
    """

    def __init__(
        self,
        source: PackageSource,
        nix: Nix | None,
        cache: EvaluationCache | None,
        index: PackageIndex | None = None,
    ) -> None:
        self.source = source
        self._nix = nix
        self._cache = cache
        self._index = index

    async def contents(self, request: ImageRequest, pin: Pin, *, indexed: bool = True) -> Contents:
        """Evaluate everything that a request asks for.

        Args:
            request: for an image.
            pin: the state of the package source.
            indexed: whether the package index may answer. It may name outputs that are in the Nix store without
                their derivation.

        Raises:
            PackagesUnavailable: with every unavailable package.
            InvalidName: it asks for two image definitions, or for too many packages.
            AnswerTooLarge: its packages have too many outputs.
            NotIndexed: neither cache nor index knows a name, and there is no Nix.
            PackageSetChanged: that state of the package set no longer exists.
            BuildError: Nix cannot evaluate.
        """
        names = (*_names(request), FACTS)
        found = await self._cached(request, pin, names)
        if self._index is not None and indexed:
            unknown = [name for name in names if found[name] is None]
            listed = await self._listed(self._index, request, pin, unknown)
            found.update((name, _expected(request, name, items)) for name, items in listed.items())
        unknown = [name for name in names if found[name] is None]
        known = [item for name in request.packages for item in found[name] or ()]
        if unknown == [FACTS] and any(isinstance(item, UnavailablePackage) for item in known):
            unknown = []  # there will be no image that needs the facts
        if unknown:
            if self._nix is None:
                named = [_WORDS.get(name, name) for name in unknown if name != FACTS]
                raise NotIndexed(named or ["the package set itself"])
            wanted = [name for name in unknown if name in request.packages]
            optional = [name for name in unknown if name not in wanted]
            async with self.source.open(pin) as package_set:
                evaluated = await self._nix.evaluate(wanted, optional, request.platform, package_set)
            if self._cache:
                for name, items in evaluated.items():
                    self._cache.add(pin, request.platform, name, items)
            found.update((name, evaluated.get(name, ())) for name in unknown)
        return _contents(request, [item for items in found.values() for item in items or ()])

    async def arguments(self, platform: Platform, pin: Pin) -> frozenset[str]:
        """Return the names of the arguments that the package set declares.

        Raises:
            NotIndexed: there is no Nix.
            PackageSetChanged: that state of the package set no longer exists.
            BuildError: Nix cannot evaluate.
        """
        if self._nix is None:
            raise NotIndexed(["its arguments"])
        async with self.source.open(pin) as package_set:
            return await self._nix.arguments(platform, package_set)

    async def keep(self, request: ImageRequest, pin: Pin) -> None:
        """Store the results of a built image, so that they survive a restart.

        Raises:
            StorageError: a record cannot be written.
        """
        if self._cache:
            await self._cache.keep(pin, request.platform, (*_names(request), FACTS))

    async def known(self, request: ImageRequest, pin: Pin) -> Sequence[Package]:
        """Return those packages of a request that are in the cache or the index, up to the most packages of an image.

        Raises:
            StorageError: the storage cannot be read.
        """
        names = _names(request)
        known: list[Package] = []
        for start in range(0, len(names), _READ_AT_ONCE):
            some = names[start : start + _READ_AT_ONCE]
            found = await asyncio.gather(*(self._known(request, pin, name) for name in some))
            known += (item for items in found for item in items or () if isinstance(item, Package))
            if len(known) > _MOST_PACKAGES:
                break  # no build stored an image of so many: another program wrote the records
        return known[:_MOST_PACKAGES]

    async def _known(self, request: ImageRequest, pin: Pin, name: str) -> Sequence[EvaluatedItem] | None:
        found = await self._find(request, pin, name)
        if found is None and self._index is not None:
            found = await self._index.find(pin, request.platform, name, realisable=False, suggest=False)
        return found

    async def _listed(
        self, index: PackageIndex, request: ImageRequest, pin: Pin, names: Sequence[str]
    ) -> Mapping[str, Sequence[EvaluatedItem] | None]:
        """Find names in the index; the first missing ones get near names."""
        items = await asyncio.gather(
            *(index.find(pin, request.platform, name, suggest=False) for name in names)
        )
        found = dict(zip(names, items, strict=True))
        missing = [name for name in names if any(map(_is_missing, found[name] or ()))]
        for name in missing[:_MOST_SUGGESTED]:
            if name in request.packages:
                found[name] = await index.find(pin, request.platform, name)
        return found

    async def _cached(
        self, request: ImageRequest, pin: Pin, names: Sequence[str]
    ) -> dict[str, Sequence[EvaluatedItem] | None]:
        """Find names in the cache, up to the most packages of an image.

        Raises:
            InvalidName: they stand for more.
        """
        found: dict[str, Sequence[EvaluatedItem] | None] = {}
        packages = 0
        for start in range(0, len(names), _READ_AT_ONCE):
            some = names[start : start + _READ_AT_ONCE]
            items = await asyncio.gather(*(self._find(request, pin, name) for name in some))
            found.update(zip(some, items, strict=True))
            packages += sum(len(each or ()) for each in items)
            if packages > _MOST_PACKAGES:
                raise _too_many(request, f"at least {packages}")
        return found

    async def _find(self, request: ImageRequest, pin: Pin, name: str) -> Sequence[EvaluatedItem] | None:
        cached = await self._cache.find(pin, request.platform, name) if self._cache else None
        if cached is None:
            return None
        return _expected(request, name, cached)


def _expected(
    request: ImageRequest, name: str, found: Sequence[EvaluatedItem] | None
) -> Sequence[EvaluatedItem] | None:
    """Return a known result as this request expects it; ``None`` if it needs another one."""
    if found is None:
        return None
    if name in request.packages:
        # The cached result of a missing optional name is empty; a required name needs the reason.
        return found or None
    # A client may have required the name and got the answer that it is missing; here it may be.
    return [item for item in found if not _is_missing(item)]


def _names(request: ImageRequest) -> Sequence[str]:
    return (*request.packages, *request.optional_packages)


def _contents(request: ImageRequest, items: Sequence[EvaluatedItem]) -> Contents:
    name = "/".join(request.requested)
    unavailable = [item for item in items if isinstance(item, UnavailablePackage)]
    if unavailable:
        # Clients cannot mend what the set says of itself: their own names come first.
        named = [item for item in unavailable if item.name != FACTS]
        raise PackagesUnavailable(tuple(map(_explained, named or unavailable)))
    definitions = [item for item in items if isinstance(item, Definition)]
    if len(definitions) > 1:
        attributes = " and ".join(definition.attribute for definition in definitions)
        raise InvalidName(name, f"{attributes} are image definitions; an image can have one")
    packages = tuple(item for item in items if isinstance(item, Package))
    commands = [item.command for item in items if isinstance(item, MetaPackageFound) and item.command]
    facts = next((item.os_release for item in items if isinstance(item, Facts)), {})
    if len(packages) > _MOST_PACKAGES:
        raise _too_many(request, str(len(packages)))
    if sum(len(package.outputs) for package in packages) > _MOST_OUTPUTS:
        # Before they are sorted: an evaluation may return a hundred thousand.
        raise AnswerTooLarge("the list of what Nix has to provide for the image", ARGUMENTS)
    return Contents(packages, definitions[0] if definitions else None, commands[0] if commands else (), facts)


def _too_many(request: ImageRequest, packages: str) -> InvalidName:
    name = "/".join(request.requested)
    return InvalidName(name, f"it stands for {packages} packages, and {_MOST_PACKAGES} is the limit")


def _explained(item: UnavailablePackage) -> UnavailablePackage:
    return replace(item, name=_WORDS.get(item.name, item.name))


def _is_missing(item: EvaluatedItem) -> bool:
    return isinstance(item, UnavailablePackage) and item.reason is Reason.MISSING
