from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nixery.server.pages.treemap import Rectangle, squarified

WHOLE = Rectangle(10, 20, 600, 400)
SIZES = st.lists(st.integers(1, 10**9), min_size=1, max_size=60).map(
    lambda sizes: sorted(sizes, reverse=True)
)


@given(SIZES)
def test_areas_are_proportional_to_sizes(sizes: list[int]) -> None:
    areas = squarified(sizes, WHOLE)
    assert len(areas) == len(sizes)
    for area, size in zip(areas, sizes, strict=True):
        assert abs(area.area - size * WHOLE.area / sum(sizes)) < 1


@given(SIZES)
def test_rectangles_are_inside_the_map_and_do_not_overlap(sizes: list[int]) -> None:
    areas = squarified(sizes, WHOLE)
    for area in areas:
        assert area.x >= WHOLE.x - 1e-6
        assert area.y >= WHOLE.y - 1e-6
        assert area.x + area.width <= WHOLE.x + WHOLE.width + 1e-3
        assert area.y + area.height <= WHOLE.y + WHOLE.height + 1e-3
    for i, one in enumerate(areas):
        for other in areas[:i]:
            width = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
            height = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
            assert min(width, height) < 1e-3


def test_the_example_in_the_paper() -> None:
    areas = squarified([6, 6, 4, 3, 2, 2, 1], Rectangle(0, 0, 6, 4))
    assert [(round(a.width, 2), round(a.height, 2)) for a in areas[:4]] == [
        (3, 2),
        (3, 2),
        (1.71, 2.33),
        (1.29, 2.33),
    ]
