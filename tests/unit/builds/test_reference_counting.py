import json

from hypothesis import given
from hypothesis import strategies as st

from nixery.builds.popularity import batches


@given(st.lists(st.text(max_size=255)))
def test_a_batch_fits_into_an_argument(names: list[str]) -> None:
    parts = batches(names * 40)
    assert [name for part in parts for name in part] == names * 40
    assert all(part and len(part) <= 2000 and len(json.dumps(list(part))) <= 110_000 for part in parts)


def test_as_few_as_can_be() -> None:
    assert [len(part) for part in batches([f"p{n}" for n in range(4100)])] == [2000, 2000, 100]
    assert batches([]) == []
