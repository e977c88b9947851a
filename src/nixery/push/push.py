"""Pushing an image: blobs concurrently, then manifests, then the tag, so that a tag never refers to an incomplete image."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from nixery.errors import BlobUnknown, PushFailed
from nixery.oci.digest import Digest
from nixery.push.auth import Authorisation, find_credentials
from nixery.push.client import RegistryClient, Target, cause_of, open_client
from nixery.storage.blobs import BlobStore, StoredBlob

# Concurrent uploads.
_UPLOADS = 4
_PRESENT = frozenset({200, 404})
_CREATED = frozenset({201})


@dataclass(frozen=True, slots=True)
class PushStarted:
    """A push begins.

    Attributes:
        blobs: number of blobs of the image.
        size: of all blobs, in bytes.
    """

    target: str
    blobs: int
    size: int


@dataclass(frozen=True, slots=True)
class BytesPushed:
    """Bytes were sent; a negative number takes back bytes of a failed attempt."""

    target: str
    size: int


@dataclass(frozen=True, slots=True)
class BlobPushed:
    """The target has a blob.

    Attributes:
        how: ``uploaded``, ``mounted`` from another repository, or ``present`` already.
    """

    target: str
    digest: str
    size: int
    how: str


@dataclass(frozen=True, slots=True)
class Pushed:
    """The target has the image."""

    target: str
    digest: str


PushEvent = PushStarted | BytesPushed | BlobPushed | Pushed


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How to push.

    Attributes:
        tls_verify: whether the certificate has to be trusted; if not, plain HTTP is allowed, too, as it
            always is for loopback.
        mount_from: name of a repository on the same host to mount blobs from; or empty.
        delay: seconds before the second attempt.
    """

    tls_verify: bool = True
    mount_from: str = ""
    delay: float = 1.0


@dataclass(frozen=True, slots=True)
class _Manifest:
    digest: Digest
    media_type: str
    content: bytes


async def push(
    blobs: BlobStore,
    root: Digest,
    target: Target,
    environment: Mapping[str, str],
    observe: Callable[[PushEvent], None],
    options: PushOptions,
) -> None:
    """Push an image, or an index and all its images.

    Args:
        blobs: the storage of the image.
        root: digest of the manifest or index.
        target: its tag is replaced.
        environment: locates the credentials.
        observe: receives the events.
        options: of the push.

    Raises:
        PushFailed: the registry refuses, or cannot be reached.
        BlobUnknown: a part of the image is missing.
    """
    credentials = await asyncio.to_thread(find_credentials, target.host, environment)
    scope = f"repository:{target.name}:pull,push"
    if options.mount_from:
        scope += f" repository:{options.mount_from}:pull"
    async with open_client(verify=options.tls_verify) as http:
        base = await _base(http, target, tls_verify=options.tls_verify)
        authorisation = Authorisation(credentials, scope, insecure=not options.tls_verify)
        client = RegistryClient(http, target, base, authorisation, delay=options.delay)
        await _Push(blobs, client, target, observe, options.mount_from).run(root)


async def _base(http: httpx.AsyncClient, target: Target, *, tls_verify: bool) -> str:
    if target.is_loopback or not tls_verify:
        # Probe for TLS without credentials; other errors recur in the push itself.
        try:
            await http.get(f"https://{target.host}/v2/")
        except httpx.TransportError as error:
            speaks_tls = isinstance(cause_of(error), ssl.SSLCertVerificationError)
            return f"{'https' if speaks_tls else 'http'}://{target.host}"
    return f"https://{target.host}"


class _Push:
    def __init__(
        self,
        blobs: BlobStore,
        client: RegistryClient,
        target: Target,
        observe: Callable[[PushEvent], None],
        mount_from: str,
    ) -> None:
        self._blobs = blobs
        self._client = client
        self._target = target
        self._observe = observe
        self._mount_from = mount_from
        self._slots = asyncio.Semaphore(_UPLOADS)
        self._path = f"/v2/{target.name}"

    async def run(self, root: Digest) -> None:
        manifests = await self._manifests(root)
        parts = {digest: await self._find(digest) for m in manifests for digest in _parts(m)}
        self._observe(PushStarted(str(self._target), len(parts), sum(blob.size for blob in parts.values())))
        # The first failure cancels the other uploads.
        try:
            async with asyncio.TaskGroup() as group:
                for blob in parts.values():
                    group.create_task(self._push_blob(blob))
        except BaseExceptionGroup as failures:
            raise next(_leaves(failures)) from None
        for manifest in manifests[:-1]:
            await self._put(manifest, str(manifest.digest))
        await self._put(manifests[-1], self._target.tag)
        self._observe(Pushed(str(self._target), str(root)))

    async def _manifests(self, root: Digest) -> list[_Manifest]:
        """Return the root's manifests, and the root last."""
        top = await self._manifest(root)
        inner = [
            await self._manifest(Digest.parse(entry["digest"]))
            for entry in json.loads(top.content).get("manifests", [])
        ]
        return [*inner, top]

    async def _manifest(self, digest: Digest) -> _Manifest:
        content = await self._blobs.read(await self._find(digest))
        if content is None:
            raise BlobUnknown(str(digest))
        return _Manifest(digest, str(json.loads(content)["mediaType"]), content)

    async def _find(self, digest: Digest) -> StoredBlob:
        blob = await self._blobs.find(digest)
        if blob is None:
            raise BlobUnknown(str(digest))
        return blob

    async def _push_blob(self, blob: StoredBlob) -> None:
        async with self._slots:
            url = self._client.url(f"{self._path}/blobs/{blob.digest}")
            answer = await self._client.request("HEAD", url, expected=_PRESENT)
            how = "present"
            if answer.status_code == httpx.codes.NOT_FOUND:
                uploaded = await self._client.retried(lambda: self._upload(blob), _CREATED)
                how = "mounted" if uploaded.request.method == "POST" else "uploaded"
            if how != "uploaded":
                self._observe(BytesPushed(str(self._target), blob.size))
            self._observe(BlobPushed(str(self._target), str(blob.digest), blob.size, how))

    async def _upload(self, blob: StoredBlob) -> httpx.Response:
        """Upload a blob in one request (POST, then PUT), the way that all registries support."""
        query = f"?mount={blob.digest}&from={self._mount_from}" if self._mount_from else ""
        begun = await self._client.once(
            "POST",
            self._client.url(f"{self._path}/blobs/uploads/{query}"),
            headers={"Content-Length": "0"},
        )
        if begun.status_code != httpx.codes.ACCEPTED:
            return begun
        location = begun.headers.get("location")
        if location is None:
            raise PushFailed(f"{self._target.host}: the answer to an upload has no Location")
        place = self._client.url(location).copy_merge_params({"digest": str(blob.digest)})
        sent = 0

        async def content() -> AsyncIterator[bytes]:
            nonlocal sent
            self._observe(BytesPushed(str(self._target), -sent))
            sent = 0
            async for chunk in self._blobs.stream(blob, 0, blob.size - 1):
                yield chunk
                sent += len(chunk)
                self._observe(BytesPushed(str(self._target), len(chunk)))

        headers = {"Content-Length": str(blob.size), "Content-Type": "application/octet-stream"}
        stored = False
        try:
            answer = await self._client.once("PUT", place, body=content, headers=headers)
            stored = answer.status_code in _CREATED
        finally:
            if not stored:
                self._observe(BytesPushed(str(self._target), -sent))
        return answer

    async def _put(self, manifest: _Manifest, reference: str) -> None:
        answer = await self._client.request(
            "PUT",
            self._client.url(f"{self._path}/manifests/{reference}"),
            expected=_CREATED,
            content=manifest.content,
            headers={"Content-Type": manifest.media_type},
        )
        stored = answer.headers.get("docker-content-digest")
        if stored not in {None, str(manifest.digest)}:
            raise PushFailed(f"{self._target}: the registry stored {manifest.digest} as {stored}")


def _parts(manifest: _Manifest) -> list[Digest]:
    document: dict[str, Any] = json.loads(manifest.content)
    described = [document["config"], *document["layers"]] if "config" in document else []
    return [Digest.parse(descriptor["digest"]) for descriptor in described]


def _leaves(failures: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for failure in failures.exceptions:
        if isinstance(failure, BaseExceptionGroup):
            yield from _leaves(failure)
        else:
            yield failure
