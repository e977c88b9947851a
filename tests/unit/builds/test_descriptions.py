"""Descriptions of images. The images are made up."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import cast

import pytest
from pydantic import BaseModel, ValidationError

from nixery.builds.build_cache import BuildCache
from nixery.builds.descriptions import ImageDescription, ImageDescriptions, _Config, _Manifest, _parsed
from nixery.builds.evaluator import Evaluator
from nixery.builds.history import BuildHistory
from nixery.builds.image_closure import ImageClosures
from nixery.builds.pins import Pins
from nixery.errors import TooBusy
from nixery.image.name import ImageRequest, parse_image_name
from nixery.oci.digest import Digest
from nixery.request_context import Client, RequestContext, enter_request
from nixery.sources.source import Pin
from nixery.storage.blobs import BlobStore
from tests.support.event_loop import settle

PIN = Pin("source", "identity", "revision")


class SlowCache:
    """Finds nothing, and answers when the test allows it."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()

    async def find_recent(self, pin: Pin, request: ImageRequest) -> None:
        pass

    async def find(self, pin: Pin, request: ImageRequest) -> None:  # noqa: ARG002 -- ignored
        self.asked += 1
        await self.may_answer.wait()


async def test_one_client_has_few_descriptions_at_once_and_blocks_no_other() -> None:
    cache = SlowCache()
    descriptions = ImageDescriptions(
        cast(Pins, None),
        cast(BuildCache, cache),
        cast(Evaluator, None),
        cast(BlobStore, None),
        cast(BuildHistory, None),
        cast(ImageClosures, None),
    )

    async def describe(client: str) -> ImageDescription | None:
        enter_request(RequestContext("id", Client(client)))
        return await descriptions.describe(parse_image_name("hello"), PIN, compare=True)

    def ask(client: str) -> asyncio.Task[ImageDescription | None]:
        return asyncio.get_running_loop().create_task(describe(client), context=Context())

    many = [ask("192.0.2.1") for _ in range(500)]
    for _ in range(3):
        await asyncio.sleep(0)
    other = ask("192.0.2.2")
    for _ in range(3):
        await asyncio.sleep(0)
    assert cache.asked == 4
    assert sum(isinstance(task.exception(), TooBusy) for task in many if task.done()) == 500 - 4 - 63
    assert not other.done()
    cache.may_answer.set()
    assert await other is None
    await asyncio.gather(*many, return_exceptions=True)


class CountedClosures:
    """Counts look-ups, and finds nothing."""

    def __init__(self) -> None:
        self.asked = 0

    async def find(self, manifest: Digest) -> None:  # noqa: ARG002 -- all are the same
        self.asked += 1


@pytest.mark.security
async def test_few_pages_have_the_store_paths_of_their_image_in_memory() -> None:
    """They waited for their turn with them: 65 pages of an image with 20,000 store paths took two gigabytes."""
    closures = CountedClosures()
    descriptions = ImageDescriptions(
        cast(Pins, None),
        cast(BuildCache, None),
        cast(Evaluator, None),
        cast(BlobStore, None),
        cast(BuildHistory, None),
        cast(ImageClosures, closures),
    )
    image = ImageDescription("linux/amd64", str(Digest.of(b"")), (), (), {}, {}, ())
    may_write = asyncio.Event()

    async def page(client: str) -> None:
        enter_request(RequestContext("id", Client(client)))
        async with descriptions.closures([image]) as found:
            assert found == [None]
            await may_write.wait()

    def ask(client: str) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(page(client), context=Context())

    pages = [ask("192.0.2.1") for _ in range(500)]
    await settle()
    assert closures.asked == 2
    assert sum(isinstance(one.exception(), TooBusy) for one in pages if one.done()) == 500 - 2 - 64
    may_write.set()
    await asyncio.gather(*pages, return_exceptions=True)


@pytest.mark.security
@pytest.mark.parametrize(
    ("model", "start", "element", "end"),
    [
        (_Manifest, b'{"config": {"digest": "", "size": 0}, "layers": [', b"{}", b"]}"),
        (
            _Manifest,
            b'{"config": {"digest": "", "size": 0}, "layers": [], "annotations": {',
            b'"a": 0',
            b"}}",
        ),
        (_Config, b'{"config": {}, "history": [', b"0", b"]}"),
    ],
)
def test_a_planted_manifest_is_read_up_to_its_first_wrong_element(
    model: type[BaseModel], start: bytes, element: bytes, end: bytes
) -> None:
    """A report of a build leads to any blob of 4 MiB, and pydantic made a gigabyte of errors of it, on the event loop."""
    with pytest.raises(ValidationError) as error:
        model.model_validate_json(start + b",".join([element] * 10_000) + end)
    assert error.value.error_count() < 10


@pytest.mark.security
def test_a_planted_manifest_with_more_layers_than_images_have() -> None:
    layer = b'{"digest": "", "size": 0}'
    content = b'{"config": %s, "layers": [%s]}' % (layer, b",".join([layer] * 100_000))
    assert _parsed(_Manifest, content) is None
