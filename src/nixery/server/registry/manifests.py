"""``/v2/<name>/manifests/<reference>``: built by tag, looked up by digest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from nixery.access.identity import Right
from nixery.access.policy import current_access, note_quota, note_refusal
from nixery.builds.image import Image, ImageIndex
from nixery.builds.images import Images
from nixery.builds.index_records import PackageVersion
from nixery.builds.package_index import PackageIndex
from nixery.builds.slots import Slots
from nixery.caching import LRUCache
from nixery.errors import BuildNotAllowed, LoginRequired, ManifestUnknown, NixeryError, TagUnknown, TooBusy
from nixery.image.name import ImageRequest, Tag, parse_reference, requests_for, validate_name
from nixery.oci.digest import Digest
from nixery.oci.documents import Descriptor, Document, MediaType, referenced_blobs
from nixery.plain_text import shortened
from nixery.server.http import IMMUTABLE, BytesResponse, NotModified, Request, Response, elements, matches
from nixery.server.published_packages import visible_versions
from nixery.server.registry.permissions import Permissions
from nixery.source_location import COMMIT
from nixery.storage.blobs import BlobStore, are_there
from nixery.storage.catalogue import Catalogue
from nixery.storage.leases import Leases

# The header field with the state of the package source that an image was made from.
REVISION = "Nixery-Revision"

# Bytes of manifests that are cached.
_CAPACITY = 32 * 1024 * 1024

_MANIFEST_TYPES = (
    MediaType.OCI_MANIFEST,
    MediaType.OCI_INDEX,
    MediaType.DOCKER_MANIFEST,
    MediaType.DOCKER_INDEX,
)

# Bytes up to which any blob is parsed to learn whether it is a manifest: a layer or a config may have 4 MiB,
# and the event loop parses it. A larger blob has to end as canonical manifests do (``oci.documents``).
_SMALL = 64 * 1024
_ENDS = {
    f'"mediaType":"{media_type.value}","schemaVersion":2}}'.encode(): media_type
    for media_type in _MANIFEST_TYPES
}

# Concurrent reads of manifests from the storage, and waiting ones, which exceed the default number of
# connections. Any client can request a layer or a config as a manifest, and the server has to read all of it
# to refuse: without a limit, each connection would hold a document in memory.
_READS, _WAITING = 16, 2048

# In the error about an unknown tag: packages, the latest states for each, and characters of versions and tags; and the
# seconds that the answer waits for them.
_EXPLAINED, _SHOWN = 2, 3
_LONGEST_VERSION, _LONGEST_TAG = 40, 64
_VERSIONS_TIMEOUT = 2.0

# Clients take a tag for a version, but a directory has one state.
_IGNORED = "the tag was ignored: the package source has one state, latest; a tag is no version of a package"

_WILDCARDS = frozenset({"*/*", "application/*"})


class Manifests:
    """Answers with manifests and indexes.

    Args:
        images: builds them.
        blobs: has the stored ones.
        leases: of what clients are pulling.
        catalogue: of names and tags.
        permissions: decides who may pull what.
        index: knows versions of packages, for the error about an unknown tag; ``None`` without any.
    """

    def __init__(
        self,
        images: Images,
        blobs: BlobStore,
        leases: Leases,
        catalogue: Catalogue,
        permissions: Permissions,
        index: PackageIndex | None = None,
    ) -> None:
        self._images = images
        self._permissions = permissions
        self._index = index
        self._blobs = blobs
        self._leases = leases
        self._catalogue = catalogue
        self._documents: LRUCache[Digest, Document] = LRUCache(_CAPACITY)
        self._reads = Slots(_READS, _WAITING, busy=TooBusy.IMAGES)

    async def get(self, request: Request, name: str, reference: str) -> Response:
        """Answer GET and HEAD: containerd and Docker begin with a HEAD of the tag and rely on its digest.

        Raises:
            NixeryError: the image cannot be built, or there is no such manifest.
        """
        match parse_reference(reference):
            case Digest() as digest:
                validate_name(name)
                await self._permissions.require_digest(request, name, digest, _unknown(digest))
                document = self._cached(digest) or await self._stored(digest)
                self._permissions.note_part(name, document)
                return _answer(request, document, {"Cache-Control": IMMUTABLE})
            case Tag(is_derived_from_digest=True) as tag:
                validate_name(name)
                raise ManifestUnknown(str(tag), "does not exist: nothing is attached to that image")
            case Tag() as tag:
                requests = requests_for(name, self._permissions.platforms)
                may_build = self._permissions.may_build(requests, name, tag.name)
                try:
                    found = await self._images.get(requests, tag.name, may_build=may_build)
                except TagUnknown as error:
                    raise await self._explained(error, requests[0]) from None
                except BuildNotAllowed as error:
                    # Who logs in may be allowed to.
                    if current_access().identity.is_anonymous:
                        raise LoginRequired(f"log in to have {name} built, which was not built yet") from None
                    note_refusal(Right.BUILD, name, str(error))
                    raise
                except NixeryError as error:
                    note_quota(name, error)
                    raise
                image = found.image
                document = image.index if isinstance(image, ImageIndex) else image.manifest
                await self._catalogue.record_tag(name, found.tag, document.descriptor.digest)
                # Caches between the server and the client have to keep the two families apart.
                headers = {"Vary": "Accept", REVISION: found.pinned.pin.revision}
                warning = found.pinned.warning or (_IGNORED if found.tag != tag.name else "")
                if warning:
                    # RFC 7234, 5.5.7; containerd shows it.
                    headers["Warning"] = f'299 - "{_quotable(warning)}"'
                answered = _negotiate(elements(request, "accept"), image)
                await self._permissions.note(name, tag.name, found.tag, answered)
                return _answer(request, answered, headers)

    async def _explained(self, error: TagUnknown, request: ImageRequest) -> TagUnknown:
        """Add the versions that the client may have meant: users expect tags such as ``python3:3.11``."""
        if self._index is None or not request.requested or COMMIT.fullmatch(error.tag):
            return error
        try:
            versions = self._index.known_versions(request.requested[:_EXPLAINED])
            found = await asyncio.wait_for(versions, _VERSIONS_TIMEOUT)
        except (TimeoutError, NixeryError):
            found = {}
        shown = {name: visible_versions(name, versions) for name, versions in found.items()}
        known = "; ".join(f"{name} is {_at_tags(versions)}" for name, versions in shown.items() if versions)
        hint = f"; here, {known}" if known else ""
        return TagUnknown(
            error.tag,
            f"{error.reason} (a tag is a state of the package set, not a version of a package{hint})",
        )

    def _cached(self, digest: Digest) -> Document | None:
        return self._documents.get(digest) if self._leases.renew([digest]) else None

    async def _stored(self, digest: Digest) -> Document:
        async with self._reads.slot():
            # Another request may have read it meanwhile.
            cached = self._cached(digest)
            document = None if cached is not None else await self._read(digest)
        if cached is not None:
            return cached
        if document is not None:
            # The client is going to pull the parts: lease them first, then check that all exist.
            parts = referenced_blobs(document.content)
            await self._leases.acquire([digest], (part for part, _ in parts))
            if await are_there(self._blobs, (*parts, (digest, document.descriptor.size))):
                self._documents.put(digest, document, len(document.content))
                return document
        raise _unknown(digest)

    async def _read(self, digest: Digest) -> Document | None:
        blob = await self._blobs.find(digest)
        content = await self._blobs.read(blob) if blob is not None else None
        media_type = _media_type(content) if content is not None else None
        if content is None or media_type is None:
            return None
        return Document(Descriptor(media_type, digest, len(content)), content)


def _unknown(digest: Digest) -> ManifestUnknown:
    return ManifestUnknown(str(digest), "is not stored here; pull the image by its tag to have it built")


def _at_tags(versions: Sequence[PackageVersion]) -> str:
    shown = []
    for one in versions[:_SHOWN]:
        tag = one.tag or one.revision
        shown.append(f"{shortened(one.version, _LONGEST_VERSION)} at {shortened(tag, _LONGEST_TAG)}")
    return ", ".join(shown)


def _negotiate(accept: Sequence[str], found: Image | ImageIndex) -> Document:
    """Choose the family of media types, and between an index and the manifest of its first platform.

    A client that accepts none of these types gets OCI's manifest, never a 406. So does one that wants
    Docker's, if the layers are compressed in a way that only OCI has a name for.
    """
    accepted = {part.partition(";")[0].strip().lower() for part in accept}
    knows_docker = not accepted.isdisjoint((MediaType.DOCKER_MANIFEST, MediaType.DOCKER_INDEX))
    wants_docker = knows_docker and not any(t.startswith("application/vnd.oci.") for t in accepted)
    if isinstance(found, ImageIndex):
        index = (found.docker_index if wants_docker else None) or found.index
        # Clients that name Docker's types name all types they know; their "*/*" is for error bodies.
        anything = not knows_docker and not accepted.isdisjoint(_WILDCARDS)
        if anything or index.descriptor.media_type in accepted:
            return index
        found = found.first
    return (found.docker_manifest if wants_docker else None) or found.manifest


def _quotable(text: str) -> str:
    """Replace characters that a quoted string in a header field cannot contain."""
    return "".join(c if " " <= c <= "~" and c not in '"\\' else " " for c in text)


def _media_type(content: bytes) -> MediaType | None:
    """Return the type of a manifest or an index; ``None`` for configs and layers, which are blobs, too."""
    if len(content) > _SMALL:
        return next((media_type for end, media_type in _ENDS.items() if content.endswith(end)), None)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    named = document.get("mediaType") if isinstance(document, dict) else None
    return next((media_type for media_type in _MANIFEST_TYPES if media_type == named), None)


def _answer(request: Request, document: Document, more: dict[str, str]) -> Response:
    digest = str(document.descriptor.digest)
    etag = f'"{digest}"'
    headers = {
        "Content-Type": document.descriptor.media_type.value,
        "Docker-Content-Digest": digest,
        "ETag": etag,
        **more,
    }
    return NotModified(headers) if matches(request, etag) else BytesResponse(200, document.content, headers)
