import pytest

from nixery.closure import Closure, PathInfo, StorePath

A, B = StorePath("a" * 32 + "-a"), StorePath("b" * 32 + "-b")


def test_is_in_the_order_of_paths() -> None:
    closure = Closure([PathInfo(B, "", 1, ()), PathInfo(A, "", 1, (B,))])
    assert [info.path for info in closure] == [A, B]


def test_a_reference_must_not_lead_out() -> None:
    with pytest.raises(ValueError, match="not in the closure"):
        Closure([PathInfo(A, "", 1, (B,))])
