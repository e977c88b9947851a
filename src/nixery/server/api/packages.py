"""``/api/v1/packages``: names of packages, while somebody types them."""

from __future__ import annotations

import asyncio
import re

from nixery.builds.packages import ListedPackage, PackageIndex, PackageNames
from nixery.builds.slots import Slots
from nixery.errors import InvalidReference, TooBusy
from nixery.image.name import Tag, parse_reference
from nixery.server.api.documents import json_response
from nixery.server.errors import errors_body
from nixery.server.http import Request, Response

# Packages of an answer when the client does not say, and at most.
_USUAL, _MOST = 20, 100

# Seconds that a client waits for a package set to be listed; that goes on, and the next one has its result.
_PATIENCE = 20.0

# Concurrent searches, and waiting ones: each blocks the event loop for up to 15 ms.
_AT_ONCE, _QUEUE = 1, 64

# Characters of a query that are looked at; no name is longer.
_LONGEST = 255

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)


class Packages:
    """Completes names."""

    def __init__(self, index: PackageIndex) -> None:
        self._index = index
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.SEARCHES)

    async def search(self, request: Request) -> Response:
        """Find packages by parts of their names.

        Raises:
            TooBusy: too many others search.
            NixeryError: the package set is unavailable, or cannot be listed.
        """
        names = await self._names(request)
        if names is None:
            return _not_yet()
        text = request.query.get("q", "")[:_LONGEST]
        wanted = request.query.get("limit", "")
        limit = min(int(wanted), _MOST) if _NUMBER.fullmatch(wanted) else _USUAL
        async with self._slots.turn():
            found = names.search(text, limit) if limit else ()
        return json_response({"packages": [_document(package) for package in found], "total": len(names)})

    async def get(self, request: Request, name: str) -> Response:
        """Tell about one package.

        Raises:
            NixeryError: the package set cannot be had, or not be listed.
        """
        names = await self._names(request)
        if names is None:
            return _not_yet()
        package = names.get(name)
        if package is None:
            return errors_body(404, "NAME_UNKNOWN", f"the package set has no {name}")
        return json_response(_document(package))

    async def _names(self, request: Request) -> PackageNames | None:
        tag = request.query.get("tag", "latest")
        match parse_reference(tag):
            case Tag(name=name):
                pass
            case _:
                raise InvalidReference(tag)
        try:
            return await asyncio.wait_for(self._index.names(name), _PATIENCE)
        except TimeoutError:
            return None


def _not_yet() -> Response:
    message = "the names of the package set are being listed; ask again in a while"
    return errors_body(503, "UNKNOWN", message, headers={"Retry-After": "5"})


def _document(package: ListedPackage) -> dict[str, str]:
    return {"name": package.name, "version": package.version, "description": package.description}
