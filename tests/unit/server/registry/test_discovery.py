"""Listings: the catalog, tags and referrers."""

from __future__ import annotations

import asyncio
import json

import pytest

from nixery.oci.documents import MediaType
from nixery.server.http import BytesResponse, Request
from nixery.server.registry.discovery import Discovery
from tests.unit.server.conftest import StoredImage


class Recorded:
    """A ``Catalogue`` that takes its time."""

    def __init__(self) -> None:
        self.all = ["first"]
        self.scans = self.running = self.most = 0
        self.may_end = asyncio.Event()

    async def names(self) -> list[str]:
        self.scans += 1
        self.running += 1
        self.most = max(self.most, self.running)
        found = list(self.all)
        await self.may_end.wait()
        self.running -= 1
        return found


async def test_concurrent_requests_share_one_listing_at_a_time() -> None:
    recorded = Recorded()
    discovery = Discovery(recorded)  # type: ignore[arg-type]

    def ask() -> asyncio.Task[bytes]:
        async def catalog() -> bytes:
            return (await discovery.catalog(Request("GET", "/v2/_catalog"))).content

        return asyncio.ensure_future(catalog())

    first = ask()
    for _ in range(5):
        await asyncio.sleep(0)
    recorded.all.append("second")
    others = [ask() for _ in range(100)]
    for _ in range(5):
        await asyncio.sleep(0)
    others[0].cancel()
    recorded.may_end.set()
    assert b"second" not in await first
    assert all([b"second" in await other for other in others[1:]])
    assert (recorded.scans, recorded.most) == (2, 1)
    recorded.all.append("third")
    assert b"third" in await ask()


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
