"""From a request to what is to be in its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nixery.errors import InvalidName, PackagesUnavailable, Reason, UnavailablePackage
from nixery.image.request import ImageRequest
from nixery.nix.builder import Contents, Definition, Evaluated, NixBuilder, Package
from nixery.pipeline.evaluation_cache import EvaluationCache
from nixery.sources.source import PackageSource, Pin

# Packages of an image, including those of lists and definitions. Their outputs have to fit into the arguments
# of one command.
_MOST_PACKAGES = 5000


class Evaluator:
    """Asks Nix for what nobody has asked before.

    Args:
        source: where the package set is.
        nix: evaluates.
        cache: what is known already; ``None`` where results depend on more than the package set.
    """

    def __init__(self, source: PackageSource, nix: NixBuilder, cache: EvaluationCache | None) -> None:
        self._source = source
        self._nix = nix
        self._cache = cache

    async def contents(self, request: ImageRequest, pin: Pin) -> Contents:
        """Find everything a request asks for.

        Raises:
            PackagesUnavailable: with every package that cannot be had.
            InvalidName: it asks for two image definitions.
            PackageSetChanged: there is no such state of the package set any more.
            BuildError: Nix cannot tell.
        """
        found = await self._evaluated(request, pin)
        flaws = [item for name in found for item in found[name] if isinstance(item, UnavailablePackage)]
        if flaws:
            raise PackagesUnavailable(tuple(_explained(flaw, request) for flaw in flaws))
        definitions = [item for name in found for item in found[name] if isinstance(item, Definition)]
        if len(definitions) > 1:
            names = " and ".join(definition.attribute for definition in definitions)
            raise InvalidName(
                "/".join(request.requested), f"{names} are image definitions; an image can have one"
            )
        packages = tuple(item for name in found for item in found[name] if isinstance(item, Package))
        if len(packages) > _MOST_PACKAGES:
            reason = f"it stands for {len(packages)} packages, and {_MOST_PACKAGES} is the limit"
            raise InvalidName("/".join(request.requested), reason)
        return Contents(packages, definitions[0] if definitions else None)

    async def keep(self, request: ImageRequest, pin: Pin) -> None:
        """Write the evaluation results of a built image to records, which survive a restart.

        Raises:
            StorageError: a record cannot be written.
        """
        if self._cache:
            await self._cache.keep(pin, request.platform, (*request.packages, *request.optional_packages))

    async def known(self, request: ImageRequest, pin: Pin) -> Sequence[Package]:
        """Return those packages of a request that are known without asking Nix.

        Raises:
            StorageError: the store cannot be asked.
        """
        found = [
            await self._known(request, pin, name) or ()
            for name in (*request.packages, *request.optional_packages)
        ]
        return [item for items in found for item in items if isinstance(item, Package)]

    async def confirm(self, pin: Pin) -> None:
        """Make sure that answers about a pin are still of use.

        Raises:
            PackageSetChanged: there is no such state of the package set any more.
            SourceUnreachable: nobody knows.
        """
        await self._source.confirm(pin)

    async def _evaluated(self, request: ImageRequest, pin: Pin) -> Mapping[str, Sequence[Evaluated]]:
        """By name, in the order of the request, whether or not it was known before."""
        names = (*request.packages, *request.optional_packages)
        known = {name: await self._known(request, pin, name) for name in names}
        unknown = [name for name in names if known[name] is None]
        evaluated: Mapping[str, Sequence[Evaluated]] = {}
        if unknown:
            wanted = [name for name in unknown if name in request.packages]
            optional = [name for name in unknown if name not in wanted]
            async with self._source.open(pin) as package_set:
                evaluated = await self._nix.evaluate(wanted, optional, request.platform, package_set)
            if self._cache:
                for name, items in evaluated.items():
                    self._cache.add(pin, request.platform, name, items)
        return {name: known[name] or evaluated.get(name, ()) for name in names}

    async def _known(self, request: ImageRequest, pin: Pin, name: str) -> Sequence[Evaluated] | None:
        known = await self._cache.find(pin, request.platform, name) if self._cache else None
        if known is None:
            return None
        if name in request.packages:
            # An optional name that is missing was not looked into any further.
            return known or None
        # Somebody may have asked for it by name and been told that it is missing; here it may be.
        return [item for item in known if not _is_missing(item)]


def _is_missing(item: Evaluated) -> bool:
    return isinstance(item, UnavailablePackage) and item.reason is Reason.MISSING


def _explained(flaw: UnavailablePackage, request: ImageRequest) -> UnavailablePackage:
    if flaw.reason is Reason.MISSING and flaw.name not in request.requested:
        return replace(flaw, explanation="part of every image with a shell")
    return flaw
