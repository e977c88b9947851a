"""Pages of names and tags, above a catalogue in memory."""

from __future__ import annotations

import asyncio
import json
from contextvars import copy_context
from typing import cast

import pytest

from nixery.errors import InvalidName, NameUnknown, TooBusy
from nixery.image.platform import AMD64
from nixery.oci.digest import Digest
from nixery.oci.documents import MediaType
from nixery.request_context import Client, RequestContext, enter_request
from nixery.server.http import BytesResponse, Request
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.permissions import Permissions
from nixery.storage.blobs import BlobStore
from nixery.storage.catalogue import Catalogue
from tests.unit.server.conftest import StoredImage

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


def discovery_of(catalogue: Catalogue, *, public: bool = True) -> Discovery:
    # Without rules, nothing is read to decide.
    permissions = Permissions(catalogue, cast("BlobStore", None), [AMD64])
    return Discovery(catalogue, permissions, public=public)


@pytest.fixture
def discovery(recorded: Recorded) -> Discovery:
    return discovery_of(cast("Catalogue", recorded))


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


async def test_a_page_reads_one_entry_more_than_it_shows(discovery: Discovery, recorded: Recorded) -> None:
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


async def test_a_private_server_lists_nothing_and_reads_no_records(recorded: Recorded) -> None:
    private = discovery_of(cast("Catalogue", recorded), public=False)
    assert (await private.catalog(request())).status == 403
    assert (await private.tags(request(), "a")).status == 403
    assert recorded.limits == []


class Endless:
    """A ``Catalogue`` whose listings end when the test lets them."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.may_end = asyncio.Semaphore(0)

    async def names(self, after: str, limit: int) -> list[str]:
        return await self.tags(after, "", limit)

    async def tags(self, name: str, after: str, limit: int) -> list[str]:  # noqa: ARG002 -- of the real one
        self.running.append(name)
        await self.may_end.acquire()
        return NAMES

    async def referrers(self, subject: Digest) -> list[str]:
        return await self.tags(str(subject), "", 0)


async def test_one_client_has_few_listings_at_once_and_blocks_no_other() -> None:
    catalogue = Endless()
    discovery = discovery_of(cast("Catalogue", catalogue))

    def ask(address: str, name: str) -> asyncio.Task[BytesResponse]:
        async def get() -> BytesResponse:
            enter_request(RequestContext("id", Client(address)))
            if name.startswith("sha256:"):
                return await discovery.referrers(request(), "mine", name)
            return await (discovery.tags(request(), name) if name else discovery.catalog(request()))

        return copy_context().run(asyncio.ensure_future, get())

    paths = ("mine", "", str(Digest.of(b"subject")))
    theirs = [ask("192.0.2.1", paths[number % 3]) for number in range(200)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(catalogue.running) < 10
    asked = ask("192.0.2.2", "other")
    for _ in range(5):
        await asyncio.sleep(0)
    catalogue.may_end.release()
    for _ in range(5):
        await asyncio.sleep(0)
    assert catalogue.running[-1] == "other", "the other client is next"
    for _ in range(201):
        catalogue.may_end.release()
    outcomes = await asyncio.gather(*theirs, return_exceptions=True)
    assert any(isinstance(outcome, TooBusy) for outcome in outcomes)
    assert (await asked).status == 200


async def listed(stored: StoredImage, path: str, *, public: bool = True, **query: str) -> BytesResponse:
    registry, _ = stored.registry(public=public)
    answer = await registry.answer(Request("GET", path, {}, query))
    assert isinstance(answer, BytesResponse)
    return answer


async def test_a_catalog_is_listed_in_pages_that_link_to_the_next(stored: StoredImage) -> None:
    for name in ("a", "b", "c"):
        await stored.catalogue.record_tag(name, "latest", stored.image.manifest.descriptor.digest)
    first = await listed(stored, "/v2/_catalog", n="2")
    assert json.loads(first.content) == {"repositories": ["a", "b"]}
    assert first.headers["Link"] == '</v2/_catalog?n=2&last=b>; rel="next"'
    second = await listed(stored, "/v2/_catalog", n="2", last="b")
    assert json.loads(second.content) == {"repositories": ["c"]}
    assert "Link" not in second.headers
    everything = await listed(stored, "/v2/_catalog", n="-1")
    assert json.loads(everything.content) == {"repositories": ["a", "b", "c"]}


async def test_tags_are_listed_by_name(stored: StoredImage) -> None:
    for tag in ("v2", "v1"):
        await stored.catalogue.record_tag("git", tag, stored.image.manifest.descriptor.digest)
    answer = await listed(stored, "/v2/git/tags/list")
    assert json.loads(answer.content) == {"name": "git", "tags": ["v1", "v2"]}
    unknown = await listed(stored, "/v2/htop/tags/list")
    assert (unknown.status, json.loads(unknown.content)["errors"][0]["code"]) == (404, "NAME_UNKNOWN")


@pytest.mark.parametrize("path", ["/v2/_catalog", "/v2/git/tags/list", "/v2/htop/tags/list"])
async def test_a_server_whose_builds_are_not_public_lists_nothing(stored: StoredImage, path: str) -> None:
    await stored.catalogue.record_tag("git", "latest", stored.image.manifest.descriptor.digest)
    answer = await listed(stored, path, public=False)
    assert (answer.status, json.loads(answer.content)["errors"][0]["code"]) == (403, "DENIED")


async def test_a_manifest_without_referrers_has_an_empty_index(stored: StoredImage) -> None:
    path = f"/v2/git/referrers/{stored.image.manifest.descriptor.digest}"
    answer = await listed(stored, path, public=False, artifactType="application/spdx+json")
    assert json.loads(answer.content)["manifests"] == []
    assert answer.headers["Content-Type"] == MediaType.OCI_INDEX
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"
