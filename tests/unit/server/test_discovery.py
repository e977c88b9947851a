"""Pages of names and tags, above a catalogue in memory."""

from __future__ import annotations

import json
from typing import cast

import pytest

from nixery.errors import InvalidName, NameUnknown
from nixery.server.http import Request
from nixery.server.registry.discovery import Discovery
from nixery.storage.catalogue import Catalogue

NAMES = ["a", "a/b", "c"]
TAGS = ["1", "2", "latest"]


class Recorded:
    """A ``Catalogue`` that counts how many entries it is asked for."""

    def __init__(self) -> None:
        self.limits: list[int] = []

    async def names(self, after: str, limit: int) -> list[str]:
        self.limits.append(limit)
        return [name for name in NAMES if name > after][:limit]

    async def tags(self, name: str, after: str, limit: int) -> list[str]:
        self.limits.append(limit)
        return [tag for tag in TAGS if tag > after][:limit] if name == "a" else []


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def discovery(recorded: Recorded) -> Discovery:
    return Discovery(cast("Catalogue", recorded))


def request(**query: str) -> Request:
    return Request("GET", "/v2/", query=query)


@pytest.mark.parametrize(
    ("query", "page", "link"),
    [
        ({}, NAMES, None),
        ({"n": "2"}, ["a", "a/b"], "n=2&last=a%2Fb"),
        ({"n": "2", "last": "a/b"}, ["c"], None),
        ({"n": "3"}, NAMES, None),
        ({"n": "0"}, [], None),
        ({"n": "-1"}, NAMES, None),
        ({"last": "z"}, [], None),
    ],
)
async def test_a_page_of_names_links_to_the_next_one(
    discovery: Discovery, query: dict[str, str], page: list[str], link: str | None
) -> None:
    answer = await discovery.catalog(request(**query))
    assert json.loads(answer.content) == {"repositories": page}
    expected = None if link is None else f'</v2/_catalog?{link}>; rel="next"'
    assert answer.headers.get("Link") == expected


async def test_a_page_asks_for_one_entry_more_than_it_has(discovery: Discovery, recorded: Recorded) -> None:
    await discovery.catalog(request(n="1"))
    await discovery.tags(request(n="1"), "a")
    await discovery.catalog(request(n="999999999"))
    assert recorded.limits == [2, 2, 1001]


async def test_a_page_after_the_last_tag_is_empty(discovery: Discovery) -> None:
    answer = await discovery.tags(request(last="z"), "a")
    assert json.loads(answer.content) == {"name": "a", "tags": []}


@pytest.mark.parametrize("query", [{}, {"last": "z"}])
async def test_tags_of_an_image_that_was_never_built_are_an_error(
    discovery: Discovery, query: dict[str, str]
) -> None:
    with pytest.raises(NameUnknown):
        await discovery.tags(request(**query), "b")


async def test_an_invalid_name_is_refused(discovery: Discovery) -> None:
    with pytest.raises(InvalidName):
        await discovery.tags(request(), "A")


async def test_a_private_server_lists_nothing_and_asks_nothing(recorded: Recorded) -> None:
    private = Discovery(cast("Catalogue", recorded), public=False)
    assert (await private.catalog(request())).status == 403
    assert (await private.tags(request(), "a")).status == 403
    assert recorded.limits == []
