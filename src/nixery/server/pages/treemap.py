"""Rectangles whose areas are sizes ("Squarified Treemaps", Bruls, Huizing, van Wijk, 2000)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Left upper corner, width and height."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        """Of its inside."""
        return self.width * self.height


def squarified(sizes: Sequence[int], whole: Rectangle) -> list[Rectangle]:
    """Divide a rectangle.

    Args:
        sizes: all above zero; the best result has the largest first.
        whole: what is divided.

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
    """How far the least square rectangle of a row is from a square; 1 is one."""
    total = sum(row)
    if not total or not side:
        return float("inf")
    return max(side**2 * max(row) / total**2, total**2 / (side**2 * min(row)))
