"""``/nix-cache/``: the store paths of stored images as a binary cache, for Nix's ``substituters``.

A path is for those who may pull an image that has it. Its NAR is read from the Nix store of this machine, if it is
small and still there, and else made from the image's layer that has the path.

Source: Nix manual, "HTTP Binary Cache Store"; Nix, ``nar-info.cc``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from nixery.access.policy import current_access
from nixery.builds.cache_signing import CacheKeys
from nixery.builds.served_paths import ImageOfPath, ServedPaths
from nixery.builds.slots import Share, Slots
from nixery.caching import LRUCache, SingleFlight
from nixery.closure import STORE_DIRECTORY, PathInfo, encode_base32
from nixery.errors import LoginRequired, NixeryError, StorePathUnknown, TooBusy
from nixery.oci.digest import Digest
from nixery.oci.documents import referenced_blobs
from nixery.packing.nar_writer import PIECE, NarWriter, stored_nar
from nixery.server.errors import error_response, errors_body
from nixery.server.http import (
    IMMUTABLE,
    BytesResponse,
    NotModified,
    Request,
    Response,
    StreamResponse,
    matches,
)
from nixery.server.registry.permissions import Permissions
from nixery.storage.blobs import BlobStore, SmallBlobs, StoredBlob
from nixery.storage.leases import Leases

# Beginning of all paths.
PREFIX = "/nix-cache/"

# Lower than that of public caches, which is 40 or less: Nix asks caches with small numbers first.
_PRIORITY = 50

_HASH = "[0-9abcdfghijklmnpqrsvwxyz]{32}"
_ROUTE = re.compile(
    rf"{PREFIX}(?:(?P<information>nix-cache-info)|(?P<key>public-key)|(?P<hash>{_HASH})\.narinfo|"
    rf"nar/(?P<path>{_HASH})-(?P<nar>[0-9a-f]{{64}})\.nar)",
    re.ASCII,
)

# Images with a path that are tried: those that were deleted a moment ago have lost it.
_MOST_TRIED = 16

# Bytes of a NAR up to which all of it is in memory, and the Nix store is read: a larger path has a layer of its own, or
# most of one.
_SMALL = 4 * 1024 * 1024

# NARs that are sent at once, of those the ones of one client, and waiting ones. Each holds the window of a
# decompressor, or a small NAR, for as long as its client reads.
_AT_ONCE, _OF_CLIENT, _QUEUE = 64, 32, 512

# Bytes of small NARs that are kept: a small path may be the last one of a large layer.
_CAPACITY = 32 * 1024 * 1024

# Small NARs that are made at once, also for clients that have left.
_SMALL_AT_ONCE = 8

# Pieces of NARs that are made at once, in some hundredths of a second each; clients take turns. The queue has room for
# all NARs, since one cannot be refused once it has begun.
_MADE_AT_ONCE = 2

_NarParts = tuple[PathInfo, StoredBlob]


class BinaryCache:
    """Answers as a binary cache, read-only.

    Args:
        served: knows which images have a path.
        keys: that sign them.
        blobs: has the layers.
        small: has the manifests.
        leases: of the images whose paths are fetched.
        permissions: decides who may pull what.
    """

    def __init__(
        self,
        served: ServedPaths,
        keys: CacheKeys,
        blobs: BlobStore,
        small: SmallBlobs,
        leases: Leases,
        permissions: Permissions,
    ) -> None:
        self._served = served
        self._keys = keys
        self._blobs = blobs
        self._small = small
        self._leases = leases
        self._permissions = permissions
        self._sent = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.NARS, share=Share(running=_OF_CLIENT))
        self._in_memory = Slots(_SMALL_AT_ONCE, _QUEUE, busy=TooBusy.NARS)
        self._made = Slots(_MADE_AT_ONCE, _AT_ONCE + _SMALL_AT_ONCE, busy=TooBusy.NARS)
        self._kept: LRUCache[str, bytes] = LRUCache(_CAPACITY)
        self._small_nars: SingleFlight[str, bytes] = SingleFlight()

    async def read_paths(self) -> None:
        """Read which paths the stored images have, before the first request asks for one."""
        await self._served.read_all()

    async def close(self) -> None:
        """End all work, also for clients that have left."""
        await asyncio.gather(self._small_nars.close(), self._served.close())

    async def answer(self, request: Request) -> Response:  # noqa: PLR0911 -- a route each
        """Answer a request for a path below ``/nix-cache/``; never raises for anything a client can do."""
        if request.method not in ("GET", "HEAD"):
            message = "this binary cache is read-only: use GET or HEAD"
            return errors_body(405, "UNSUPPORTED", message, headers={"Allow": "GET, HEAD"})
        match = _ROUTE.fullmatch(request.path)
        if match is None:
            return errors_body(404, "UNSUPPORTED", f"no such route: {request.path}")
        try:
            if match["information"]:
                return self.information()
            if match["key"]:
                return await self.public_key()
            if match["hash"]:
                return await self.narinfo(request, match["hash"])
            return await self.nar(request, match["path"], match["nar"])
        except NixeryError as error:
            return error_response(error)

    def information(self) -> Response:
        """Describe the cache."""
        text = f"StoreDir: {STORE_DIRECTORY}\nWantMassQuery: 1\nPriority: {_PRIORITY}\n"
        return _text(text, "text/x-nix-cache-info")

    async def public_key(self) -> Response:
        """Answer with a key for ``trusted-public-keys``.

        Raises:
            StorageError: the keys cannot be read, or written at first.
        """
        keys = await self._keys.current()
        return _text(keys[0].public + "\n", "text/plain; charset=utf-8")

    async def narinfo(self, request: Request, digits: str) -> Response:
        """Answer with what Nix has registered of a path.

        Raises:
            StorePathUnknown: no stored image has it, or the client may pull none that has it.
            LoginRequired: the same, for a client without credentials.
            TooBusy: the records are still being read.
            StorageError: the storage cannot be read.
        """
        info, _ = await self._find(request, digits)
        signatures = [key.sign(info) for key in await self._keys.current()]
        return _text(_narinfo(info, digits, signatures), "text/x-nix-narinfo")

    async def nar(self, request: Request, digits: str, nar_hash: str) -> Response:
        """Answer with the NAR of a path.

        Raises:
            StorePathUnknown, LoginRequired, TooBusy, StorageError: as ``narinfo``.
        """
        info, layer = await self._find(request, digits, nar_hash)
        etag = f'"{nar_hash}"'
        headers = {"Content-Type": "application/x-nix-nar", "ETag": etag, "Cache-Control": IMMUTABLE}
        if matches(request, etag):
            return NotModified(headers)
        return StreamResponse(200, info.nar_size, partial(self._stream, info, layer), headers)

    async def _find(self, request: Request, digits: str, nar_hash: str | None = None) -> _NarParts:
        """Find a path in an image that the client may pull, and the layer that has it.

        A derivation may give another result each time, so that two images have a path with different contents.
        """
        access, tried = current_access(), 0
        for image in await self._served.find(digits):
            names = [name for name in image.names if self._may_pull(name)] if access.is_restricted else [""]
            if not names:
                continue
            tried += 1
            found = await self._in_image(request, image, digits, names)
            if found is not None and nar_hash in {None, found[0].nar_hash}:
                return found
            if tried == _MOST_TRIED:
                break
        if access.is_restricted and access.identity.is_anonymous:
            # The answer for a path that does not exist, too.
            raise LoginRequired("log in to fetch store paths of more images")
        raise StorePathUnknown(digits)

    def _may_pull(self, name: str) -> bool:
        try:
            return self._permissions.may_pull(name)
        except NixeryError:
            return False  # of a planted record

    async def _in_image(
        self, request: Request, image: ImageOfPath, digits: str, names: list[str]
    ) -> _NarParts | None:
        registered = await self._served.info(image.manifest, digits)
        parts = () if registered is None else referenced_blobs(await self._manifest(image.manifest))
        # The first part is the config.
        if registered is None or not 0 < registered[1] < len(parts):
            return None
        info, number = registered
        layer, size = parts[number]
        if current_access().is_restricted and not await self._is_allowed(request, names, layer):
            return None
        if not self._leases.renew([image.manifest]):
            await self._leases.acquire([image.manifest], (digest for digest, _ in parts))
        blob = await self._blobs.find_cached(layer)
        return (info, blob) if blob is not None and blob.size == size else None

    async def _manifest(self, digest: Digest) -> bytes:
        content = self._small.kept(digest)
        blob = await self._blobs.find_cached(digest) if content is None else None
        return content or (await self._small.read(blob) if blob is not None else None) or b""

    async def _is_allowed(self, request: Request, names: list[str], layer: Digest) -> bool:
        for name in names:
            try:
                await self._permissions.require_digest(request, name, layer, StorePathUnknown(""))
            except TooBusy:
                raise
            except NixeryError:
                continue
            return True
        return False

    async def _stream(self, info: PathInfo, layer: StoredBlob) -> AsyncGenerator[bytes, None]:
        async with self._sent.slot():
            if info.nar_size > _SMALL:
                async with aclosing(self._from_layer(info, layer)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            nar = self._kept.get(info.nar_hash)
            if nar is None:
                nar = await self._small_nars.run(info.nar_hash, partial(self._small_nar, info, layer))
            for start in range(0, len(nar), PIECE):
                yield nar[start : start + PIECE]

    async def _small_nar(self, info: PathInfo, layer: StoredBlob) -> bytes:
        async with self._in_memory.slot():
            nar = await self._from_store(info)
            if nar is None:
                async with aclosing(self._from_layer(info, layer)) as pieces:
                    nar = b"".join([piece async for piece in pieces])
            self._kept.put(info.nar_hash, nar, len(nar))
            return nar

    async def _from_store(self, info: PathInfo) -> bytes | None:
        async with self._made.slot():
            try:
                return await asyncio.to_thread(stored_nar, info)
            except NixeryError:
                return None  # Nix has deleted it, or it was changed

    async def _from_layer(self, info: PathInfo, layer: StoredBlob) -> AsyncGenerator[bytes, None]:
        writer = NarWriter(info, f"layer {layer.digest}")
        async with aclosing(self._blobs.stream(layer, 0, layer.size - 1)) as chunks:
            async for chunk in chunks:
                steps = writer.add_compressed(chunk)
                while True:
                    async with self._made.slot():
                        piece = await asyncio.to_thread(next, steps, None)
                    if piece is None:
                        break
                    if piece:
                        yield piece
                if writer.is_complete:
                    break
        yield await asyncio.to_thread(writer.end)


def _narinfo(info: PathInfo, digits: str, signatures: list[str]) -> str:
    nar_hash = f"sha256:{encode_base32(bytes.fromhex(info.nar_hash))}"
    own = (info.path,) if info.refers_to_itself else ()
    references = " ".join(path.base_name for path in sorted((*info.references, *own)))
    deriver = [f"Deriver: {info.deriver.rpartition('/')[2]}"] if info.deriver else []
    lines = [
        f"StorePath: {info.path}",
        f"URL: nar/{digits}-{info.nar_hash}.nar",
        "Compression: none",
        f"FileHash: {nar_hash}",
        f"FileSize: {info.nar_size}",
        f"NarHash: {nar_hash}",
        f"NarSize: {info.nar_size}",
        f"References: {references}",
        *deriver,
        *(f"Sig: {signature}" for signature in signatures),
    ]
    return "\n".join(lines) + "\n"


def _text(text: str, media_type: str) -> Response:
    # Whether a path is served changes, and Nix has a cache of its own.
    return BytesResponse(200, text.encode(), {"Content-Type": media_type, "Cache-Control": "no-cache"})
