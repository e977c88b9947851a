"""Previews of images, with stand-ins for the evaluator and for Nix."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nixery.builds.builder import ImageBounds
from nixery.builds.previews import ImagePreviews, Origin
from nixery.closure import Closure, PathInfo, StorePath
from nixery.errors import (
    ClosureTooLarge,
    EvaluationFailed,
    InvalidName,
    PackagesUnavailable,
    Reason,
    UnavailablePackage,
)
from nixery.image.name import ImageRequest, requests_for
from nixery.image.platform import AMD64, ARM64
from nixery.nix.packages import Contents, Package
from nixery.nix.plan import Plan
from nixery.sources.source import Pin

PIN = Pin("fake:", "one", "one")


def path(name: str) -> StorePath:
    return StorePath("0" * 32 + f"-{name}")


class World:
    """Stands in for the evaluator and for Nix: packages by name, whose outputs have a size of ten bytes.

    Attributes:
        names: of the set.
        evaluated: the names of each evaluation.
        planned: the answer to a dry run.
    """

    def __init__(self) -> None:
        self.names = {"a", "b", "cacert"}
        self.evaluated: list[tuple[str, ...]] = []
        self.planned = Plan()
        self.is_broken = False

    async def contents(self, request: ImageRequest, pin: Pin, *, indexed: bool = True) -> Contents:
        # The index may name outputs that another derivation built.
        assert (pin, indexed) == (PIN, False)
        self.evaluated.append(request.packages)
        if self.is_broken:
            raise EvaluationFailed(("it is broken",))
        missing = [name for name in request.packages if name not in self.names]
        if missing:
            raise PackagesUnavailable(tuple(UnavailablePackage(name, Reason.MISSING) for name in missing))
        return Contents(
            tuple(
                Package(name, name, path(f"{name}.drv"), {"out": path(name)}, name)
                for name in request.packages
            )
        )

    async def plan(self, installables: Sequence[str]) -> Plan:
        assert all(installable.endswith(".drv!out") for installable in installables)
        return self.planned

    async def closure(self, paths: Sequence[StorePath]) -> Closure:
        return Closure(PathInfo(one, "00", 10, ()) for one in paths)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def previews(world: World) -> ImagePreviews:
    return ImagePreviews(world, world, ImageBounds(94, 25), 3)  # type: ignore[arg-type]


def request(name: str) -> ImageRequest:
    return requests_for(name, (AMD64,))[0]


async def test_an_image_in_the_store_has_a_size(previews: ImagePreviews) -> None:
    found = await previews.preview(request("a/b"), PIN)
    assert [origin for _, origin in found.packages] == [Origin.STORE, Origin.STORE]
    assert (found.paths, found.size, found.error) == (2, 20, None)


async def test_packages_have_the_origins_of_the_plan(world: World, previews: ImagePreviews) -> None:
    world.planned = Plan(builds=(path("a.drv"), path("x.drv")), downloads=(path("b"), path("y")))
    found = await previews.preview(request("a/b"), PIN)
    assert {package.name: origin for package, origin in found.packages} == {
        "a": Origin.BUILD,
        "b": Origin.DOWNLOAD,
    }
    assert (found.paths, found.size) == (None, None)
    world.planned = Plan(unknown=(path("a"),))
    found = await previews.preview(request("a"), PIN)
    assert found.packages[0][1] is Origin.UNKNOWN


async def test_the_other_packages_of_an_unavailable_image_are_previewed(previews: ImagePreviews) -> None:
    found = await previews.preview(request("a/nosuch"), PIN)
    assert found.request == request("a/nosuch")
    assert [package.name for package in found.unavailable] == ["nosuch"]
    assert [package.name for package, _ in found.packages] == ["a"]
    assert isinstance(found.error, PackagesUnavailable)


async def test_limits_of_images_apply(world: World, previews: ImagePreviews) -> None:
    world.names |= {"c", "d"}
    assert isinstance((await previews.preview(request("a/b/c"), PIN)).error, ClosureTooLarge)
    before = len(world.evaluated)
    assert isinstance((await previews.preview(request("a/b/c/d"), PIN)).error, InvalidName)
    assert len(world.evaluated) == before


async def test_names_of_a_platform_are_evaluated_at_once(world: World, previews: ImagePreviews) -> None:
    names = ("a", "a/b", "nosuch", "a/b/c/d")
    requests = [request(name) for name in names] + list(requests_for("a", (ARM64,)))
    await previews.evaluate(requests, PIN)
    assert world.evaluated == [("a", "b", "nosuch")]


async def test_a_broken_set_is_evaluated_once(world: World, previews: ImagePreviews) -> None:
    world.is_broken = True
    with pytest.raises(EvaluationFailed):
        await previews.evaluate([request("a"), request("b")], PIN)
    assert isinstance((await previews.preview(request("a"), PIN)).error, EvaluationFailed)
