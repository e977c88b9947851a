"""Bar charts in SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import escape

_LEFT, _BAR, _GAP, _WIDTH, _RIGHT, _TITLE = 250, 15, 12, 420, 70, 36
_COLOURS = ("#9ecae1", "#4292c6", "#084594")


def bars(title: str, unit: str, values: Mapping[str, Mapping[str, float]]) -> str:
    """Draw horizontal bars.

    Args:
        title: above the plot.
        unit: of the values.
        values: by the name of a group of bars and the name of a bar in it; the same in each group.
    """
    return "\n".join(_lines(title, unit, values)) + "\n"


def _lines(title: str, unit: str, values: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    largest = max(value for group in values.values() for value in group.values())
    names = list(next(iter(values.values())))
    group_height = len(names) * _BAR + _GAP
    height = 2 * _TITLE + len(values) * group_height
    width = _LEFT + _WIDTH + _RIGHT
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
    yield f'<rect width="{width}" height="{height}" fill="white"/>'
    yield f'<text x="10" y="24" font-size="15">{escape(title)}</text>'
    for number, name in enumerate(names):
        x = _LEFT + number * 120
        yield f'<rect x="{x}" y="{_TITLE}" width="12" height="12" fill="{_COLOURS[number % len(_COLOURS)]}"/>'
        yield f'<text x="{x + 18}" y="{_TITLE + 11}">{escape(name)}</text>'
    for row, (group, bar) in enumerate(values.items()):
        top = 2 * _TITLE - 6 + row * group_height
        middle = top + len(names) * _BAR / 2 + 4
        yield f'<text x="{_LEFT - 10}" y="{middle:.0f}" text-anchor="end">{escape(group)}</text>'
        for number, value in enumerate(bar.values()):
            y = top + number * _BAR
            length = value / largest * _WIDTH
            colour = _COLOURS[number % len(_COLOURS)]
            yield f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR - 2}" fill="{colour}"/>'
            yield f'<text x="{_LEFT + length + 5:.1f}" y="{y + 11}">{value:.0f} {escape(unit)}</text>'
    yield "</svg>"
