"""Who may pull what, by tag and by digest. The one place that decides about manifests and blobs.

A digest says nothing about packages. So a manifest or a blob is answered under a name that the asker may pull, if it is
part of an image that the name stood for at a tag that the asker may pull, or is attached to such an image. That is known
from memory to the server that answered the manifest; another server reads it from the records and manifests of the name
(``Catalogue.manifests``). It reads nearly the same, whether or not the digest exists elsewhere, and delays a refusal to a
multiple of some milliseconds: so the time that an answer takes does not tell (``make bench-refusals``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
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
from nixery.storage.catalogue import MOST_TAGS, Catalogue

# Bytes for the parts of images in memory; an image has a hundred.
_CAPACITY = 32 * 1024 * 1024

# Names whose meaning is kept.
_NAMES = 4096

# Seconds: the time of a refused digest is a multiple. A digest at a tag that is denied costs microseconds more than one
# that is missing.
_REFUSAL = 0.005

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
        # Likewise, the tags that the parts of a manifest have.
        self._noted: LRUCache[tuple[str, Digest], tuple[str, ...]] = LRUCache(_CAPACITY // 16)
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

    def require_login(self, request: Request, name: str) -> None:
        """Check that the sender of a request has credentials, or that none show more of a name than everyone may pull.

        Clients send credentials if they are challenged, and not before.

        Raises:
            LoginRequired: they may show more, and the request has none.
        """
        access = current_access()
        if access.identity.is_anonymous and "authorization" not in request.headers:
            requests = self._requests(name)
            if any(access.others_may_have_more(Right.PULL, one) for one in requests):
                raise LoginRequired(f"log in, or get a token without credentials, to see all of {name}")

    async def require_digest(self, request: Request, name: str, digest: Digest, unknown: NixeryError) -> None:
        """Check that the asker may pull a manifest or a blob under a name.

        Raises:
            NixeryError: they may not pull the name; or ``unknown``: the digest is part of none of its images that they
                may pull.
            LoginRequired: it may be part of one that others may pull.
            TooBusy: too many readings of manifests are waiting.
        """
        access = current_access()
        if not access.is_restricted:
            return
        requests = self._requests(name)
        for tag in self._tags.get((name, digest)) or ():
            if access.allows(Right.PULL, requests, tag):
                return
        allowed = partial(access.allows, Right.PULL, requests)
        access.require_anywhere(Right.PULL, requests, name)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        if not await self._find(name, digest, allowed):
            await asyncio.sleep(_REFUSAL - (loop.time() - begin) % _REFUSAL)
            self.require_login(request, name)
            raise unknown

    async def note(self, name: str, tag: str, listed: str, document: Document) -> None:
        """Remember that a manifest or an index was answered for a tag, and its parts.

        Args:
            name: that the client asked for.
            tag: likewise.
            listed: tag of the image in listings. A source without versions has one, and clients make others up.
            document: the answer.
        """
        digest = document.descriptor.digest
        known = self._tags.get((name, digest)) or ()
        if tag != listed:
            # Only for askers who may pull none of the tags so far, since the number of tags is bounded.
            allowed = partial(current_access().allows, Right.PULL, self._requests(name))
            tag = next(filter(allowed, (listed, *known)), tag)
        await self._catalogue.record_name(name, tag, digest)
        if current_access().is_restricted and tag not in known:
            self._add(name, (tag,), digest, document.content)

    def note_part(self, name: str, document: Document) -> None:
        """Remember the parts of a manifest that ``require_digest`` has found to be a part of an image of a name."""
        key = (name, document.descriptor.digest)
        tags = self._tags.get(key) if current_access().is_restricted else None
        # A request for a cached manifest does not parse it.
        if tags and self._noted.get(key) != tags:
            self._noted.put(key, tags, sum(map(len, tags)))
            self._add(name, tags, document.descriptor.digest, document.content)

    def _add(self, name: str, tags: Iterable[str], digest: Digest, content: bytes) -> list[Digest]:
        parts = [part for part, _ in referenced_blobs(content)]
        for one in (digest, *parts):
            present = self._tags.get((name, one)) or ()
            merged = tuple(dict.fromkeys((*tags, *present)))[:MOST_TAGS]
            if merged != present:
                self._tags.put((name, one), merged, sum(map(len, merged)))
        return parts

    async def _find(self, name: str, digest: Digest, allowed: Callable[[str], bool]) -> bool:
        """Whether a digest belongs to an image of a name that the asker may pull, by the records of the storage."""
        async with self._slots.slot():
            # Another request may have read it meanwhile.
            if any(map(allowed, self._tags.get((name, digest)) or ())):
                return True
            tags = await self._catalogue.tags_of(name, digest)
            if any(map(allowed, tags)):
                self._add(name, tags, digest, b"")
                return True
            for manifest, its in await self._catalogue.manifests(name, _MANIFESTS):
                if any(map(allowed, its)) and await self._has(name, its, manifest, digest):
                    return True
        return False

    async def _has(self, name: str, tags: Sequence[str], manifest: Digest, wanted: Digest) -> bool:
        """Whether something is a part of a manifest, or attached to it."""
        content = await self._content(manifest)
        parts = self._add(name, tags, manifest, content)
        if wanted in parts:
            return True
        # The manifests of an index are its parts.
        for part in parts if b'"layers"' not in content else ():
            nested = await self._content(part)
            if nested and wanted in self._add(name, tags, part, nested):
                return True
        if await self._catalogue.is_referrer(manifest, wanted):
            self._add(name, tags, wanted, b"")
            return True
        return False

    async def _content(self, digest: Digest) -> bytes:
        blob = await self._blobs.find(digest)
        return (await self._blobs.read(blob) or b"") if blob is not None else b""
