"""``/images/<name>[:<tag>]``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from nixery.builds.descriptions import DescribedLayer, ImageDescription, ImageDescriptions
from nixery.errors import ManifestUnknown
from nixery.image.name import Tag, parse_reference, requests_for
from nixery.image.platform import Platform
from nixery.server.clients import image_path
from nixery.server.http import Request, Response
from nixery.server.pages.pulling import pull_lines
from nixery.server.pages.templating import Templates
from nixery.server.pages.treemap import Rectangle, squarified

_MAP = Rectangle(0, 0, 960, 400)

# In units of the map: what a label needs, and how wide a letter is; and what a size needs.
_LABEL_HEIGHT, _LABEL_WIDTH, _LETTER = 22, 46, 8.4
_SIZE_WIDTH = 66

# Colours in the style sheet.
_COLOURS = 6


@dataclass(frozen=True, slots=True)
class Cell:
    """A layer on the map.

    Attributes:
        label: empty if there is no room for one.
        full: whether there is room for its size below.
    """

    area: Rectangle
    layer: DescribedLayer
    number: int
    colour: int
    label: str
    full: bool


class ImagePage:
    """Shows what is in an image, or how to have it built.

    Args:
        descriptions: of images.
        templates: of pages.
        platforms: of a name that says none.
        compare: whether the names of other images may be shown.
    """

    def __init__(
        self,
        descriptions: ImageDescriptions,
        templates: Templates,
        platforms: Sequence[Platform],
        *,
        compare: bool,
    ) -> None:
        self._descriptions = descriptions
        self._templates = templates
        self._platforms = platforms
        self._compare = compare

    async def get(self, request: Request, image: str) -> Response:
        """Answer with the page.

        Raises:
            NixeryError: name or tag cannot be one.
        """
        name, _, told = image.partition(":")
        requests = requests_for(name, self._platforms)
        match parse_reference(told or "latest"):
            case Tag(name=tag, is_derived_from_digest=False):
                pin = await self._descriptions.pin(tag)
            case _:
                raise ManifestUnknown(told, "is not a tag of the package source")
        found = await asyncio.gather(
            *(self._descriptions.describe(one, pin, compare=self._compare) for one in requests)
        )
        there = [description for description in found if description is not None]
        # Off the event loop: an author may have given an image thousands of packages.
        return await asyncio.to_thread(
            self._templates.response,
            "image.html",
            name=name,
            tag=tag,
            pin=pin,
            lines=pull_lines(request, f"{name}:{tag}"),
            images=[(description, treemap(description)) for description in there],
            missing=[str(r.platform) for r, d in zip(requests, found, strict=True) if d is None],
            shared=[
                (shared, image_path(shared.build.name, shared.build.platform, self._platforms))
                for shared in (there[0].shared if there else ())
            ],
            view=_MAP,
        )


def treemap(image: ImageDescription) -> list[Cell]:
    """Place the layers of an image on a map, the largest first."""
    numbered = [(layer, number) for number, layer in enumerate(image.layers, 1) if layer.size]
    numbered.sort(key=lambda pair: (-pair[0].size, pair[1]))
    if not numbered:
        return []
    areas = squarified([layer.size for layer, _ in numbered], _MAP)
    cells = []
    for area, (layer, number) in zip(areas, numbered, strict=True):
        room = int((area.width - 16) / _LETTER)
        label = _label(layer)
        fits = area.height >= _LABEL_HEIGHT and area.width >= _LABEL_WIDTH
        short = label if len(label) <= room else label[: max(0, room - 1)] + "…"
        cells.append(
            Cell(
                area,
                layer,
                number,
                number % _COLOURS,
                short if fits else "",
                fits and area.height >= 2 * _LABEL_HEIGHT and area.width >= _SIZE_WIDTH,
            )
        )
    return cells


def _label(layer: DescribedLayer) -> str:
    if not layer.packages:
        return "root"
    more = len(layer.packages) - 1
    return f"{layer.packages[0]} +{more}" if more else layer.packages[0]
