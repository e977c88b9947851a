"""``/api/v1/images``: what is in an image that is there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nixery.builds.descriptions import ImageDescriptions
from nixery.errors import ManifestUnknown
from nixery.image.name import Tag, parse_reference, requests_for
from nixery.image.platform import Platform
from nixery.server.api.documents import description_document, json_response
from nixery.server.http import Response


class ImageDocuments:
    """Tells about images; builds none.

    Args:
        descriptions: of images.
        platforms: of a name that says none.
        compare: whether the names of other images may be told.
    """

    def __init__(
        self, descriptions: ImageDescriptions, platforms: Sequence[Platform], *, compare: bool
    ) -> None:
        self._descriptions = descriptions
        self._platforms = platforms
        self._compare = compare

    async def get(self, image: str) -> Response:
        """Tell about the image of a name and a tag.

        Raises:
            ManifestUnknown: it was not built yet.
            NixeryError: the name or the tag cannot be one.
        """
        name, _, tag = image.partition(":")
        requests = requests_for(name, self._platforms)
        match parse_reference(tag or "latest"):
            case Tag(is_derived_from_digest=False) as parsed:
                pin = await self._descriptions.pin(parsed.name)
            case _:
                raise ManifestUnknown(tag, "is not a tag of the package source")
        found = await asyncio.gather(
            *(self._descriptions.describe(request, pin, compare=self._compare) for request in requests)
        )
        there = [description for description in found if description is not None]
        if not there:
            raise ManifestUnknown(image, "was not built yet; pull it, or have it built")
        answer = {
            "name": name,
            "tag": tag or "latest",
            # The source may be a directory of this machine, whose path clients must not learn.
            "pin": {"revision": pin.revision, "url": pin.url},
            "platforms": [description_document(d, self._platforms) for d in there],
        }
        # Off the event loop: an author may have given an image thousands of packages.
        return await asyncio.to_thread(json_response, answer)
