"""A storage in a bucket of S3, Google Cloud Storage or Azure, or in memory (obstore).

Objects have the names that the files of a storage directory have (``nixery.storage.filesystem``), below a
prefix, and ``uploads/<random>`` for uploads in parts. An upload in parts gets its final name by a copy within
the bucket, after all parts arrived, so that neither a broken upload nor a second writer can be seen.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

from nixery.errors import BlobVerificationFailed, StorageError
from nixery.storage.driver import StoredObject

if TYPE_CHECKING:  # obstore has no types at run time
    from obstore import Attributes, ObjectMeta, WritableFile

Store = S3Store | GCSStore | AzureStore | MemoryStore

# Bytes of a part. S3 takes 10,000 parts of at least 5 MiB each, so the largest layer has 80 GB. A smaller
# object is uploaded in one request.
PART = 8 * 1024 * 1024

# Parts of one object that are uploaded at the same time.
CONCURRENCY = 3

# Lifetime of a signed URL: a client has to begin its download in this time. A client that retries asks the
# server for another URL.
LIFETIME = timedelta(minutes=10)

# Bytes that a store copies in one request; S3's limit is 5 GiB. A larger object is downloaded and uploaded
# again.
_LARGEST_COPY = 5 * 1024**3

# Bytes of a piece of a stream: of a client that reads slowly, two or three are in memory.
_CHUNK = 256 * 1024

# Objects that are listed in a request.
_PAGE = 1000

# Seconds for which a listing that breaks off is resumed, counted from the last object, and between two
# attempts.
_RETRY_FOR, _PAUSE = 10.0, 0.1

_DELETE_ATTEMPTS = 3

# The bucket sends every object to clients under this type, as the server does.
_ATTRIBUTES: Attributes = {"Content-Type": "application/octet-stream"}

_HTTP_STATUS = re.compile(r"non-2xx status code: (\d+ [\w -]+)")
_LONGEST_REASON = 160

# Parts of the messages of S3 and Azure.
_WRONG_CREDENTIALS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AuthenticationFailed",
    "failed to authenticate",
)
_DENIED = ("(code: AccessDenied)", "(code: 403)")


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket, the prefix in it, and how to reach both.

    Attributes:
        name: for messages, such as ``s3://bucket``.
        store: how the server reaches it.
        prefix: of all keys; empty, or ends in a slash.
        signed: makes a URL of a key that a client can read for a time; ``None`` if clients cannot reach it.
    """

    name: str
    store: Store
    prefix: str = ""
    signed: Callable[[str, timedelta], str] | None = None

    def key(self, name: str) -> str:
        """Return the key of an object."""
        return f"{self.prefix}{name}"

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Translate obstore's errors; a missing object stays a ``FileNotFoundError``.

        Raises:
            StorageError: ``cannot <what> <bucket>``, with the reason in one line.
        """
        try:
            yield
        except (BaseError, ValueError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise StorageError(f"cannot {what} {self.name}: {_reason(error)}") from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Translate errors of writing a new object, where a missing one is the bucket, or an upload that was aborted.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            with self.doing("write to"):
                yield
        except FileNotFoundError as error:
            raise StorageError(f"cannot write to {self.name}: there is no such bucket or upload") from error


class BucketDriver:
    """The ``Driver`` of a bucket."""

    is_remote = True

    def __init__(self, bucket: Bucket) -> None:
        self.name = bucket.name
        self.bucket = bucket

    async def stat(self, name: str) -> StoredObject | None:
        """See ``Driver.stat``."""
        try:
            with self.bucket.doing("look up an object in"):
                return self._entry(await obstore.head_async(self.bucket.store, self.bucket.key(name)))
        except FileNotFoundError:
            return None

    def _entry(self, found: ObjectMeta) -> StoredObject:
        name = found["path"].removeprefix(self.bucket.prefix)
        return StoredObject(name, found["size"], found["last_modified"].timestamp())

    async def read(self, name: str, largest: int) -> bytes | None:
        """See ``Driver.read``. The contents of a larger object are not transferred."""
        try:
            with self.bucket.doing("read from"):
                found = await obstore.get_async(self.bucket.store, self.bucket.key(name))
                return bytes(await found.bytes_async()) if found.meta["size"] <= largest else None
        except FileNotFoundError:
            return None

    async def stream(self, name: str, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        """See ``Driver.stream``."""
        left = None if last is None else last - first + 1
        with self.bucket.doing("read from"):
            found = await obstore.get_async(
                self.bucket.store,
                self.bucket.key(name),
                options={} if last is None else {"range": (first, last + 1)},
            )
            async for transferred in found.stream(_CHUNK):
                # The transport may have buffered more, and a server that ignores the range sends more.
                chunk = bytes(transferred)[:left]
                left = None if left is None else left - len(chunk)
                for start in range(0, len(chunk), _CHUNK):
                    yield chunk[start : start + _CHUNK]
        if left:
            raise StorageError(f"cannot read {name} from {self.name}: {left} bytes are missing at its end")

    async def write(self, name: str, content: bytes, *, renew: bool = False) -> None:  # noqa: ARG002 -- see below
        """See ``Driver.write``. An object's time is that of its last writing, so a renewal writes it again."""
        with self.bucket.writing():
            await obstore.put_async(
                self.bucket.store, self.bucket.key(name), content, attributes=_ATTRIBUTES, use_multipart=False
            )

    @contextmanager
    def create(self) -> Iterator[BucketUpload]:
        """See ``Driver.create``."""
        upload = BucketUpload(self.bucket)
        try:
            yield upload
        finally:
            upload.discard()

    async def move(self, name: str, target: str) -> None:
        """See ``Driver.move``."""
        found = await self.stat(name)
        if found is None:
            return
        with suppress(FileNotFoundError), self.bucket.doing("write to"):
            await asyncio.to_thread(_copy, self.bucket, name, target, found.size)
        await self.delete(name)

    async def delete(self, name: str) -> None:
        """See ``Driver.delete``."""
        with suppress(FileNotFoundError):
            await self._delete(self.bucket.key(name))

    async def list(self, directory: str, after: str = "") -> AsyncGenerator[StoredObject, None]:
        """See ``Driver.list``.

        obstore retries a request that fails, but not a response that breaks off: the listing resumes after
        the last object. S3 and Google start at ``after`` themselves; obstore skips what Azure lists before
        it.
        """
        last = self.bucket.key(after) if after else None
        until = time.monotonic() + _RETRY_FOR
        while True:
            try:
                with self.bucket.doing("list"):
                    async for page in obstore.list(
                        self.bucket.store, self.bucket.key(directory), offset=last, chunk_size=_PAGE
                    ):
                        for found in page:
                            yield self._entry(found)
                            last = found["path"]
                            until = time.monotonic() + _RETRY_FOR
            except StorageError as error:
                if time.monotonic() > until or _is_denied(error.__cause__):
                    raise
                await asyncio.sleep(_PAUSE)
            else:
                return

    async def url(self, name: str) -> str | None:
        """See ``Driver.url``."""
        signed = self.bucket.signed
        if signed is None:
            return None
        with self.bucket.doing("make a URL for"):
            # The credentials may have to be fetched first.
            return await asyncio.to_thread(signed, self.bucket.key(name), LIFETIME)

    async def probe(self) -> None:
        """See ``Driver.probe``."""
        key = self.bucket.key(f"uploads/{secrets.token_hex(16)}")
        try:
            with self.bucket.doing("write to"):
                await obstore.put_async(self.bucket.store, key, b"nixery", use_multipart=False)
            await self._delete(key)
        except FileNotFoundError as error:
            raise StorageError(f"there is no bucket {self.name}") from error

    async def _delete(self, key: str) -> None:
        # As a listing: obstore does not retry a deletion whose response breaks off. Repeating it does no
        # harm.
        for left in reversed(range(_DELETE_ATTEMPTS)):
            try:
                with self.bucket.doing("delete from"):
                    await obstore.delete_async(self.bucket.store, key)
            except StorageError as error:
                if not left or _is_denied(error.__cause__):
                    raise
                await asyncio.sleep(_PAUSE)
            else:
                return


class BucketUpload:
    """The ``Upload`` of a bucket: uploads parts under a temporary name while the next parts are made."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._name = f"uploads/{secrets.token_hex(16)}"
        self._pending = bytearray()
        self._upload: WritableFile | None = None
        self._size = 0

    def write(self, data: bytes, /) -> None:
        """See ``Upload.write``."""
        self._size += len(data)
        self._pending += data
        if len(self._pending) >= PART:
            self._send()

    def _send(self) -> None:
        with self._bucket.writing():
            if self._upload is None:
                self._upload = obstore.open_writer(
                    self._bucket.store,
                    self._bucket.key(self._name),
                    attributes=_ATTRIBUTES,
                    buffer_size=PART,
                    max_concurrency=CONCURRENCY,
                )
            self._upload.write(bytes(self._pending))
        self._pending = bytearray()

    def commit(self, name: str, beside: Mapping[str, bytes]) -> StoredObject:
        """See ``Upload.commit``."""
        found = self._look_up(name)
        if found is None or found["size"] != self._size or not all(map(self._holds, beside.items())):
            if self._upload is not None:
                self._complete(self._upload)
            for other, content in beside.items():
                self._put(other, content)
            # Over a broken object, or the same bytes that another writer put there since.
            if self._upload is None:
                self._put(name, bytes(self._pending))
            else:
                with self._bucket.writing():
                    _copy(self._bucket, self._name, name, self._size)
            found = self._require_all(name)
        return StoredObject(name, self._size, found["last_modified"].timestamp())

    def _complete(self, upload: WritableFile) -> None:
        if self._pending:
            self._send()
        try:
            with self._bucket.writing():
                upload.close()
        except StorageError:
            # If the bucket completed the upload and only its response was lost, the retry fails: the upload is closed.
            found = self._look_up(self._name)
            if found is None or found["size"] != self._size:
                raise
        # S3 has compared each part with its SHA-256, which the signature covers. The size shows that all of
        # them arrived.
        self._require_all(self._name)

    def discard(self) -> None:
        """Delete the temporary object, whether or not it was committed. The bucket's lifecycle rule deletes leftovers."""
        if self._upload is None:
            return
        with suppress(Exception):
            # An upload cannot be aborted with obstore, and its parts would be invisible; a complete one can
            # be deleted.
            if not self._upload.closed():
                self._upload.close()
        with suppress(StorageError, FileNotFoundError), self._bucket.doing("write to"):
            obstore.delete(self._bucket.store, self._bucket.key(self._name))
        self._upload = None

    def _put(self, name: str, content: bytes) -> None:
        with self._bucket.writing():
            obstore.put(
                self._bucket.store,
                self._bucket.key(name),
                content,
                attributes=_ATTRIBUTES,
                use_multipart=False,
            )

    def _look_up(self, name: str) -> ObjectMeta | None:
        try:
            with self._bucket.doing("look up an object in"):
                return obstore.head(self._bucket.store, self._bucket.key(name))
        except FileNotFoundError:
            return None

    def _holds(self, item: tuple[str, bytes]) -> bool:
        name, content = item
        try:
            with self._bucket.doing("read from"):
                found = obstore.get(self._bucket.store, self._bucket.key(name))
                return found.meta["size"] == len(content) and bytes(found.bytes()) == content
        except FileNotFoundError:
            return False

    def _require_all(self, name: str) -> ObjectMeta:
        found = self._look_up(name)
        if found is None or found["size"] != self._size:
            stored = 0 if found is None else found["size"]
            raise BlobVerificationFailed(f"{self._size} bytes of {name} were written, {stored} are stored")
        return found


def _copy(bucket: Bucket, source: str, target: str, size: int) -> None:
    if size < _LARGEST_COPY:
        obstore.copy(bucket.store, bucket.key(source), bucket.key(target))
        return
    obstore.put(
        bucket.store,
        bucket.key(target),
        obstore.get(bucket.store, bucket.key(source)).stream(PART),
        attributes=_ATTRIBUTES,
        use_multipart=True,
        chunk_size=PART,
        max_concurrency=CONCURRENCY,
    )


def _is_denied(error: BaseException | None) -> bool:
    """Whether the permissions or the credentials are wrong, so that a retry fails as well."""
    text = str(error)
    status = _HTTP_STATUS.search(text)
    # obstore has no error of its own for a listing that is denied, and S3 reports deletions in a list of
    # results.
    return (
        isinstance(error, (PermissionDeniedError, UnauthenticatedError))
        or (status is not None and status[1].startswith("403"))
        or any(code in text for code in _DENIED)
    )


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, UnauthenticatedError):
        return "the credentials are not accepted"
    status = _HTTP_STATUS.search(text)
    if _is_denied(error):
        wrong = any(code in text for code in _WRONG_CREDENTIALS)
        return "the credentials are wrong" if wrong else "there is no permission to"
    if status is not None:
        return f"it answers {status[1].strip()}"
    if "error sending request" in text:
        return "it cannot be reached"
    return text.partition("\n")[0][:_LONGEST_REASON]


def signing(store: S3Store | GCSStore | AzureStore) -> Callable[[str, timedelta], str]:
    """Sign URLs with the credentials of a store, which need not be the one that is written to but has to know its bucket."""
    return lambda key, lifetime: obstore.sign(store, "GET", key, lifetime)


def public(base: str) -> Callable[[str, timedelta], str]:
    """Make plain URLs, for a bucket that everyone may read."""
    return lambda key, _: f"{base}/{quote(key)}"
