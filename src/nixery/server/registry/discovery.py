"""``_catalog``, ``tags/list`` and ``referrers`` (distribution specification, "Content Discovery")."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from nixery.builds.slots import Slots
from nixery.errors import LoginRequired, ManifestUnknown, NameUnknown, TooBusy
from nixery.image.name import validate_name
from nixery.oci.digest import Digest
from nixery.oci.documents import MediaType
from nixery.server.errors import errors_body
from nixery.server.http import BytesResponse, Request
from nixery.server.registry.permissions import Permissions
from nixery.server.visible_entries import visible_entries
from nixery.storage.catalogue import Catalogue

# Entries of a page by default, and at most.
_PAGE = 1000

# Concurrent listings, and waiting ones. A page of many names may read tens of thousands of keys, and a
# listing continues after its client has disconnected.
_AT_ONCE, _QUEUE = 2, 64

_NUMBER = re.compile(r"\d{1,9}", re.ASCII)


class Discovery:
    """Lists images, and manifests attached to others. Requests here never start a build.

    Args:
        catalogue: of built images.
        permissions: decides who may pull what.
        public: whether every client may list names and tags. A client that knows a manifest's digest may
            always list what is attached to it.
    """

    def __init__(self, catalogue: Catalogue, permissions: Permissions, *, public: bool = True) -> None:
        self._permissions = permissions
        self._catalogue = catalogue
        self._public = public
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.CATALOGUE)

    async def catalog(self, request: Request) -> BytesResponse:
        """List the names of built images.

        Raises:
            TooBusy: too many listings are waiting.
        """
        if not self._public:
            return _denied()
        if not request.catalog:
            raise LoginRequired("the token is not for the catalog")
        size = _page_size(request)
        async with self._slots.slot():
            names = await visible_entries(
                self._catalogue.names, self._permissions.may_pull, request.query.get("last", ""), size + 1
            )
        page, headers = _page(names, size, "/v2/_catalog")
        return _json({"repositories": page}, "application/json", headers)

    async def tags(self, request: Request, name: str) -> BytesResponse:
        """List the tags built for a name.

        Raises:
            InvalidName: the name is outside the grammar.
            LoginRequired: the client sent no credentials, and some may show more tags.
            NameUnknown: no image of this name was built.
            TooBusy: too many listings are waiting.
        """
        validate_name(name)
        if not self._public:
            return _denied()  # the same answer whether or not tags exist
        self._permissions.require_some_tag(name)
        self._permissions.require_login(request, name)
        size, last = _page_size(request), request.query.get("last", "")
        async with self._slots.slot():
            read = partial(self._catalogue.tags, name)
            may_pull = partial(self._permissions.may_pull, name)
            tags = await visible_entries(read, may_pull, last, size + 1)
            if not tags and not (last and await visible_entries(read, may_pull, "", 1)):
                raise NameUnknown(name)
        page, headers = _page(tags, size, f"/v2/{quote(name)}/tags/list")
        return _json({"name": name, "tags": page}, "application/json", headers)

    async def referrers(self, request: Request, name: str, digest: str) -> BytesResponse:
        """List what is attached to a manifest. The index is empty if nothing is, whether or not the manifest exists.

        Raises:
            InvalidName: the name is outside the grammar.
            InvalidDigest: so is the digest.
            LoginRequired: the client sent no credentials, and some may show more.
            TooBusy: too many listings are waiting.
        """
        validate_name(name)
        subject = Digest.parse(digest)
        try:
            await self._permissions.require_digest(
                request, name, subject, ManifestUnknown(digest, "is not stored here")
            )
        except ManifestUnknown:
            # Like a digest that does not exist (distribution specification, Listing Referrers).
            descriptors: list[dict[str, Any]] = []
        else:
            async with self._slots.slot():
                descriptors = await self._catalogue.referrers(subject)
        headers = {}
        if wanted := request.query.get("artifactType"):
            descriptors = [
                descriptor for descriptor in descriptors if descriptor.get("artifactType") == wanted
            ]
            headers["OCI-Filters-Applied"] = "artifactType"
        index = {"schemaVersion": 2, "mediaType": MediaType.OCI_INDEX, "manifests": descriptors}
        return _json(index, MediaType.OCI_INDEX, headers)


def _denied() -> BytesResponse:
    message = "this server does not list images (NIXERY_PUBLIC_BUILDS=0): pull an image by its name"
    return errors_body(403, "DENIED", message)


def _page_size(request: Request) -> int:
    """Return the number of entries that a client asks for, within bounds; the default if it is not a number."""
    wanted = request.query.get("n", "")
    return min(int(wanted), _PAGE) if _NUMBER.fullmatch(wanted) else _PAGE


def _page(entries: Sequence[str], size: int, path: str) -> tuple[Sequence[str], dict[str, str]]:
    """Return a page, and the header that links to the next page, if any."""
    page = entries[:size]
    if not page or len(page) == len(entries):
        return page, {}
    query = urlencode({"n": size, "last": page[-1]})
    return page, {"Link": f'<{path}?{query}>; rel="next"'}


def _json(document: dict[str, object], media_type: str, headers: dict[str, str]) -> BytesResponse:
    return BytesResponse(200, json.dumps(document).encode(), {"Content-Type": media_type, **headers})
