"""Descriptions of images. The images are made up."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import cast

from nixery.builds.build_cache import BuildCache
from nixery.builds.descriptions import ImageDescription, ImageDescriptions
from nixery.builds.evaluator import Evaluator
from nixery.builds.history import BuildHistory
from nixery.builds.image_closure import ImageClosures
from nixery.builds.pins import Pins
from nixery.errors import TooBusy
from nixery.image.name import ImageRequest, parse_image_name
from nixery.request_context import Client, RequestContext, enter_request
from nixery.sources.source import Pin
from nixery.storage.blobs import BlobStore

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
