"""Ids of requests."""

from __future__ import annotations

import pytest

from nixery.request_context import RequestIds


@pytest.mark.parametrize(
    "given",
    ["a", "0190163d-8694-739b-aea5-966c26f8ad91", "Root=1-67891233-abcdef012345678912345678", "x" * 128],
)
def test_a_well_formed_id_of_a_client_is_accepted(given: str) -> None:
    assert RequestIds().identify(given) == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\n", "a\x1b[31m", 'a"', "é", "a,b", "a\x00"])
def test_a_malformed_id_is_replaced(given: str | None) -> None:
    ids = RequestIds()
    made = [ids.identify(given) for _ in range(3)]
    assert given not in made
    assert len(set(made)) == 3
    assert all(ids.identify(one) == one for one in made), "one server takes over what another one made"


def test_servers_make_different_ids() -> None:
    assert RequestIds().identify(None) != RequestIds().identify(None)
