"""Who may pull what, by tag and by digest. The one place that decides about manifests and blobs.

A digest says nothing about packages. So a manifest or a blob is answered under a name that the asker may pull, if it is
part of an image that the name stood for. That is known from memory to the server that answered the manifest; another
server reads it from the records and manifests of the name (``Catalogue.manifests``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

from nixery.access.identity import Right
from nixery.access.policy import current_access
from nixery.builds.slots import Slots
from nixery.caching import LRUCache
from nixery.errors import LoginRequired, NixeryError, TooBusy
from nixery.image.name import ImageRequest, requests_for
from nixery.image.platform import Platform
from nixery.oci.digest import Digest
from nixery.oci.documents import Document, referenced_blobs
from nixery.server.http import Request
from nixery.storage.blobs import BlobStore
from nixery.storage.catalogue import Catalogue

# Bytes for the parts of images in memory; an image has a hundred.
_CAPACITY = 32 * 1024 * 1024

# Tags of a digest that are kept: rules may allow one, and no other.
_TAGS = 8

# Names whose meaning is kept.
_NAMES = 4096

# Manifests of a name that are read to find a blob, and concurrent such readings, and waiting ones.
_MANIFESTS = 256
_AT_ONCE, _QUEUE = 4, 256


class Permissions:
    """Decides about manifests and blobs.

    Args:
        catalogue: knows which manifests a name stood for.
        blobs: has the manifests.
        platforms: of a name without a platform.

    Attributes:
        platforms: as above.
    """

    def __init__(self, catalogue: Catalogue, blobs: BlobStore, platforms: Sequence[Platform]) -> None:
        self._catalogue = catalogue
        self._blobs = blobs
        self.platforms = platforms
        # By name as clients write it, and digest.
        self._tags: LRUCache[tuple[str, Digest], tuple[str, ...]] = LRUCache(_CAPACITY)
        self._noted: LRUCache[tuple[str, str, Digest], bool] = LRUCache(_CAPACITY // 16)
        self._requests = lru_cache(_NAMES)(partial(requests_for, default_platforms=tuple(platforms)))
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.IMAGES)

    def require_name(self, request: Request, name: str) -> None:
        """Check that the credentials are for a name.

        Raises:
            LoginRequired: they are a token for other images; the client has to ask for another token.
        """
        if request.repositories is not None and name not in request.repositories:
            # Rules allow the name, or the token would not help: then the answer is that of the rules.
            current_access().require_anywhere(Right.PULL, self._requests(name), name)
            raise LoginRequired(f"the token is not for {name}")

    def may_build(self, requests: Sequence[ImageRequest], name: str, tag: str) -> bool:
        """Check that the asker may pull a tag; return whether it may be built for them.

        Raises:
            NixeryError: they may not pull it; see ``Access.require``.
        """
        access = current_access()
        access.require(Right.PULL, requests, name, tag)
        return access.allows(Right.BUILD, requests, tag)

    def may_pull(self, name: str, tag: str | None = None) -> bool:
        """Whether the asker may pull a name, at a tag or at some tag."""
        access = current_access()
        if tag is not None:
            return access.allows(Right.PULL, self._requests(name), tag)
        return access.allows_name(Right.PULL, self._requests(name)[0])

    def require_some_tag(self, name: str) -> None:
        """Check that the asker may pull a name at some tag.

        Raises:
            NixeryError: they may not; see ``Access.require``.
        """
        current_access().require_anywhere(Right.PULL, self._requests(name), name)

    async def require_digest(self, name: str, digest: Digest, unknown: NixeryError) -> None:
        """Check that the asker may pull a manifest or a blob under a name.

        Raises:
            NixeryError: they may not pull the name; or ``unknown``: the digest is part of none of its images that they
                may pull.
            TooBusy: too many readings of manifests are waiting.
        """
        access = current_access()
        if not access.is_restricted:
            return
        requests = self._requests(name)
        tags = self._tags.get((name, digest)) or ()
        if any(access.allows(Right.PULL, requests, tag) for tag in tags):
            return
        access.require_anywhere(Right.PULL, requests, name)
        tags = tags or await self._find(name, digest)
        if not any(access.allows(Right.PULL, requests, tag) for tag in tags):
            raise unknown

    async def note(self, name: str, tag: str, document: Document) -> None:
        """Remember that a manifest or an index was answered for a tag, and its parts."""
        await self._catalogue.record_name(name, tag, document.descriptor.digest)
        self._note(name, tag, document)

    def note_part(self, name: str, document: Document) -> None:
        """Remember the parts of a manifest that ``require_digest`` has found to be a part of an image of a name."""
        for tag in self._tags.get((name, document.descriptor.digest)) or ():
            self._note(name, tag, document)

    def _note(self, name: str, tag: str, document: Document) -> None:
        key = (name, tag, document.descriptor.digest)
        if not current_access().is_restricted or self._noted.get(key):
            return
        self._noted.put(key, True, len(name) + len(tag))
        self._add(name, tag, document.descriptor.digest, document.content)

    def _add(self, name: str, tag: str, digest: Digest, content: bytes) -> list[Digest]:
        parts = [part for part, _ in referenced_blobs(content)]
        for one in (digest, *parts):
            others = [other for other in self._tags.get((name, one)) or () if other != tag]
            self._tags.put((name, one), (tag, *others)[:_TAGS], 64 * (1 + len(others)))
        return parts

    async def _find(self, name: str, digest: Digest) -> tuple[str, ...]:
        async with self._slots.slot():
            tags = self._tags.get((name, digest))
            if not tags and (tag := await self._catalogue.tag_of(name, digest)) is not None:
                tags = (tag,)
            if not tags:
                await self._read(name, digest)
                tags = self._tags.get((name, digest))
        return tags or ()

    async def _read(self, name: str, wanted: Digest) -> None:
        """Read the manifests of a name until one has a part."""
        for digest, tag in await self._catalogue.manifests(name, _MANIFESTS):
            content = await self._content(digest)
            parts = self._add(name, tag, digest, content)
            # The manifests of an index are its parts.
            for part in parts if wanted not in parts else ():
                nested = await self._content(part) if b'"layers"' not in content else b""
                if nested and wanted in self._add(name, tag, part, nested):
                    return
            if wanted in parts:
                return

    async def _content(self, digest: Digest) -> bytes:
        blob = await self._blobs.find(digest)
        return (await self._blobs.read(blob) or b"") if blob is not None else b""
