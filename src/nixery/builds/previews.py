"""Previews of images: what they would be and what Nix would have to do for them, without doing it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum

from nixery.builds.builder import ImageBounds
from nixery.builds.evaluator import Evaluator
from nixery.builds.images import require_package_count
from nixery.errors import (
    AnswerTooLarge,
    BuildError,
    ClosureTooLarge,
    InvalidName,
    PackagesUnavailable,
    RequestError,
    UnavailablePackage,
)
from nixery.image.meta_packages import SHELL
from nixery.image.name import ImageRequest
from nixery.nix.packages import Contents, Package
from nixery.nix.plan import Plan
from nixery.nix.realisation import Nix
from nixery.sources.source import Pin


class Origin(StrEnum):
    """Where Nix has, or would get, the outputs of a package from."""

    STORE = "store"
    DOWNLOAD = "download"
    BUILD = "build"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ImagePreview:
    """What an image would be.

    Attributes:
        request: for the image.
        packages: those that it would have, each with its origin; in the order of the request.
        definition: attribute path of the image definition that it is made from; empty if there is none.
        unavailable: packages that it asks for and cannot have.
        error: why it cannot be made, or cannot be previewed; ``None`` if it can be made as far as this shows.
        plan: what Nix would do for those packages; ``None`` if that is unknown.
        paths: number of its store paths; ``None`` unless all of them are in the Nix store.
        size: bytes of these (NAR size); likewise.
    """

    request: ImageRequest
    packages: tuple[tuple[Package, Origin], ...] = ()
    definition: str = ""
    unavailable: tuple[UnavailablePackage, ...] = ()
    error: RequestError | BuildError | None = None
    plan: Plan | None = None
    paths: int | None = None
    size: int | None = None


class ImagePreviews:
    """Previews images. Nix evaluates, and asks binary caches; it builds and downloads no package.

    Args:
        evaluator: of package sets.
        nix: knows the Nix store and the binary caches.
        bounds: of images.
        most_packages: the most that a name may ask for.
    """

    def __init__(self, evaluator: Evaluator, nix: Nix, bounds: ImageBounds, most_packages: int) -> None:
        self._evaluator = evaluator
        self._nix = nix
        self._bounds = bounds
        self._most_packages = most_packages

    async def evaluate(self, requests: Iterable[ImageRequest], pin: Pin) -> None:
        """Evaluate the packages of several requests at once, one evaluation for each platform.

        Their previews then find the results in the cache of evaluations.

        Raises:
            BuildError: the package set cannot be evaluated.
            StorageError: the storage cannot be read.
        """
        by_platform: dict[str, list[ImageRequest]] = {}
        for request in requests:
            if len(request.requested) <= self._most_packages:
                by_platform.setdefault(str(request.platform), []).append(request)
        for together in by_platform.values():
            if len(together) > 1:
                # The previews explain what is wrong with their own packages.
                with suppress(PackagesUnavailable, InvalidName, AnswerTooLarge):
                    await self._contents(_combined(together), pin)

    async def preview(self, request: ImageRequest, pin: Pin) -> ImagePreview:
        """Preview an image; the result holds what is wrong with it.

        Raises:
            StorageError: the storage cannot be read.
        """
        try:
            require_package_count(request, self._most_packages)
            return await self._available(request, pin)
        except PackagesUnavailable as error:
            left_out = {package.name for package in error.packages}
            if request.shell and "shell" in left_out:
                left_out.add(SHELL)
            rest = replace(
                request,
                packages=tuple(name for name in request.packages if name not in left_out),
                optional_packages=tuple(name for name in request.optional_packages if name not in left_out),
            )
            found = ImagePreview(request)
            with suppress(RequestError, BuildError):
                found = await self._available(rest, pin)
            return replace(found, request=request, unavailable=error.packages, error=error)
        except (RequestError, BuildError) as error:
            return ImagePreview(request, error=error)

    async def _available(self, request: ImageRequest, pin: Pin) -> ImagePreview:
        contents = await self._contents(request, pin)
        plan = await self._nix.plan(contents.installables)
        origins = _Origins(plan)
        found = ImagePreview(
            request,
            packages=tuple((package, origins.of(package)) for package in contents.packages),
            definition=contents.definition.attribute if contents.definition else "",
            plan=plan,
        )
        if not plan.is_empty:
            return found
        closure = await self._nix.closure(contents.store_paths)
        found = replace(found, paths=len(closure), size=sum(info.nar_size for info in closure))
        try:
            self._bounds.require(closure)
        except ClosureTooLarge as error:
            return replace(found, error=error)
        return found

    async def _contents(self, request: ImageRequest, pin: Pin) -> Contents:
        # Without the index: a command would read all of it, which takes longer than an evaluation, and it may
        # name outputs that another derivation built.
        return await self._evaluator.contents(request, pin, indexed=False)


class _Origins:
    def __init__(self, plan: Plan) -> None:
        self._builds, self._downloads = frozenset(plan.builds), frozenset(plan.downloads)
        self._unknown = frozenset(plan.unknown)

    def of(self, package: Package) -> Origin:
        outputs = package.outputs.values()
        if not self._unknown.isdisjoint(outputs):
            return Origin.UNKNOWN
        if package.derivation in self._builds:
            return Origin.BUILD
        return Origin.STORE if self._downloads.isdisjoint(outputs) else Origin.DOWNLOAD


def _combined(requests: Sequence[ImageRequest]) -> ImageRequest:
    """Return one request for the packages of all of them."""
    packages = {name for request in requests for name in request.packages}
    optional = {name for request in requests for name in request.optional_packages}
    return replace(
        requests[0],
        packages=tuple(sorted(packages)),
        optional_packages=tuple(sorted(optional - packages)),
        requested=tuple(sorted({name for request in requests for name in request.requested})),
    )
