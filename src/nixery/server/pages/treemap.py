"""The map of an image's layers: rectangles whose areas are sizes.

After "Squarified Treemaps" (Bruls, Huizing, van Wijk, 2000).
"""

from __future__ import annotations

from collections.abc import Sequence
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


MAP = Rectangle(0, 0, 960, 400)

# In units of the map: the room for a label, the width of a letter, and the room for a size.
_LABEL_HEIGHT, _LABEL_WIDTH, _LETTER = 22, 46, 8.4
_SIZE_WIDTH = 66

# Colours in the style sheet.
_COLOURS = 6


@dataclass(frozen=True, slots=True)
class Cell:
    """A layer on the map.

    Attributes:
        label: empty if there is no room for one.
        full: whether there is room for its size below the label.
    """

    area: Rectangle
    layer: DescribedLayer
    number: int
    colour: int
    label: str
    full: bool


def treemap(image: ImageDescription) -> list[Cell]:
    """Place the layers of an image on ``MAP``, the largest first."""
    numbered = [(layer, number) for number, layer in enumerate(image.layers, 1) if layer.size]
    numbered.sort(key=lambda pair: (-pair[0].size, pair[1]))
    if not numbered:
        return []
    areas = squarified([layer.size for layer, _ in numbered], MAP)
    cells = []
    for area, (layer, number) in zip(areas, numbered, strict=True):
        room = int((area.width - 16) / _LETTER)
        label = _label(layer)
        fits = area.height >= _LABEL_HEIGHT and area.width >= _LABEL_WIDTH
        short = label if len(label) <= room else label[: max(0, room - 1)] + "…"
        full = fits and area.height >= 2 * _LABEL_HEIGHT and area.width >= _SIZE_WIDTH
        cells.append(Cell(area, layer, number, number % _COLOURS, short if fits else "", full))
    return cells


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


def _label(layer: DescribedLayer) -> str:
    if not layer.packages:
        return "root"
    more = len(layer.packages) - 1
    return f"{layer.packages[0]} +{more}" if more else layer.packages[0]
