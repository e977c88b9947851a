"""The map of an image's layers: rectangles whose areas are sizes.

After "Squarified Treemaps" (Bruls, Huizing, van Wijk, 2000).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nixery.builds.descriptions import DescribedLayer, ImageDescription


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Upper left corner, width and height."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        """Width times height."""
        return self.width * self.height


# The label of the layer with the root file system.
ROOT = "/bin, /etc"

# In the pixels that a map has about on a wide and on a narrow screen. The page stretches it, so that texts keep their
# size and tiles their shares.
WIDE, NARROW = Rectangle(0, 0, 950, 400), Rectangle(0, 0, 320, 440)


@dataclass(frozen=True, slots=True)
class Tile:
    """A layer on a map.

    Attributes:
        area: in percent of the width and the height of the map.
        number: of the layer in the image, from 1.
        label: a few words for it.
    """

    area: Rectangle
    layer: DescribedLayer
    number: int
    label: str


def treemap(image: ImageDescription, whole: Rectangle, names: Mapping[int, str]) -> list[Tile]:
    """Place the layers of an image on a map, the largest first.

    Args:
        image: with the layers.
        whole: the map.
        names: of the largest store paths of layers, by number, if they are known.
    """
    numbered = [(layer, number) for number, layer in enumerate(image.layers, 1) if layer.size]
    numbered.sort(key=lambda pair: (-pair[0].size, pair[1]))
    if not numbered:
        return []
    areas = squarified([layer.size for layer, _ in numbered], whole)
    return [
        Tile(
            _in_percent(area, whole),
            layer,
            number,
            _label(layer, number == len(image.layers), names.get(number)),
        )
        for area, (layer, number) in zip(areas, numbered, strict=True)
    ]


def _in_percent(area: Rectangle, whole: Rectangle) -> Rectangle:
    x, y = 100 / whole.width, 100 / whole.height
    return Rectangle(area.x * x, area.y * y, area.width * x, area.height * y)


def squarified(sizes: Sequence[int], whole: Rectangle) -> list[Rectangle]:
    """Divide a rectangle.

    Args:
        sizes: all above zero; the best result has the largest first.
        whole: the rectangle to divide.

    Returns:
        A rectangle for each size, in the same order, about as wide as high.
    """
    total = sum(sizes)
    areas = [size * whole.area / total for size in sizes]
    placed: list[Rectangle] = []
    free = whole
    while areas:
        side = min(free.width, free.height)
        count = 1
        while count < len(areas) and _worst(areas[: count + 1], side) <= _worst(areas[:count], side):
            count += 1
        row, areas = areas[:count], areas[count:]
        thickness = sum(row) / side if side else 0.0
        offset = 0.0
        for area in row:
            length = area / thickness if thickness else 0.0
            if free.width >= free.height:
                placed.append(Rectangle(free.x, free.y + offset, thickness, length))
            else:
                placed.append(Rectangle(free.x + offset, free.y, length, thickness))
            offset += length
        if free.width >= free.height:
            free = Rectangle(free.x + thickness, free.y, max(0.0, free.width - thickness), free.height)
        else:
            free = Rectangle(free.x, free.y + thickness, free.width, max(0.0, free.height - thickness))
    return placed


def _worst(row: Sequence[float], side: float) -> float:
    """Return the largest aspect ratio in a row of areas along a side; 1 is a square."""
    total = sum(row)
    if not total or not side:
        return float("inf")
    return max(side**2 * max(row) / total**2, total**2 / (side**2 * min(row)))


def _label(layer: DescribedLayer, is_last: bool, largest: str | None) -> str:  # noqa: FBT001 -- of this module
    # The last layer has the root file system: links to the store paths of the others.
    if is_last or not layer.packages:
        return ROOT
    more = len(layer.packages) - 1
    name = largest or layer.packages[0]
    return f"{name} +{more}" if more else name
