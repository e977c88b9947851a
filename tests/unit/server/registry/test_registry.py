"""The routes of the registry."""

from __future__ import annotations

import json

import pytest

from nixery.server.http import BytesResponse, Request
from tests.unit.server.conftest import StoredImage


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_the_version_check_succeeds(stored: StoredImage, path: str) -> None:
    registry, _ = stored.registry()
    answer = await registry.answer(Request("GET", path))
    assert (answer.status, answer.headers["Docker-Distribution-Api-Version"]) == (200, "registry/2.0")


@pytest.mark.parametrize("path", ["/v2/git", "/v2/git/tags/other", "/v2/manifests/latest"])
async def test_an_unknown_path_is_not_found(stored: StoredImage, path: str) -> None:
    registry, images = stored.registry()
    answer = await registry.answer(Request("GET", path))
    assert answer.status == 404
    assert images.asked == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_the_registry_is_read_only(stored: StoredImage, method: str) -> None:
    registry, images = stored.registry()
    answer = await registry.answer(Request(method, "/v2/git/manifests/latest"))
    assert isinstance(answer, BytesResponse)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert json.loads(answer.content)["errors"][0]["code"] == "UNSUPPORTED"
    assert images.asked == []


async def test_the_end_of_a_path_selects_the_handler(stored: StoredImage) -> None:
    registry, images = stored.registry()
    await registry.answer(Request("GET", "/v2/blobs/tags/list/manifests/v1/"))
    ((requests, tag),) = images.asked
    assert (requests[0].requested, tag) == (("blobs", "list", "tags"), "v1")
