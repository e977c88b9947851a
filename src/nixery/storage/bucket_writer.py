"""One blob on its way into a bucket, in memory that does not grow with it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, NotSupportedError

from nixery.errors import BlobVerificationFailed, StorageError
from nixery.oci.digest import Digest
from nixery.storage.bucket_access import CONTENT_TYPE, Bucket
from nixery.storage.store import StoredBlob

if TYPE_CHECKING:  # obstore's types are not there at run time
    from obstore import Attributes, WritableFile

# Bytes of a part. S3 takes 10,000 parts of at least 5 MiB each, so the largest layer has 80 GB. What fits into one is not uploaded
# in parts.
PART = 8 * 1024 * 1024

# Parts of one blob that are underway at the same time.
CONCURRENCY = 3

# Bytes that a store copies in one go; S3's bound is 5 GiB. What is larger goes through us once more.
_COPIED = 5 * 1024**3

# Limit in bytes for an object with a blob's size.
_SIZE = 20

_ATTRIBUTES: Attributes = {"Content-Type": CONTENT_TYPE}


def blob_name(digest: Digest) -> str:
    """Where a blob is, below the prefix."""
    return f"blobs/sha256/{digest.hex[:2]}/{digest.hex}"


def size_name(digest: Digest) -> str:
    """Where it says how long that blob is."""
    return f"{blob_name(digest)}.size"


def put_small(bucket: Bucket, digest: Digest, content: bytes) -> None:
    """Store a blob that is in memory and not there, or not as it should be.

    Raises:
        StorageError: it cannot be stored.
    """
    put_size(bucket, digest, len(content))
    if not _create(bucket, blob_name(digest), content):
        # There is something under that name. Either another writer had the same bytes, or it is what was found to be broken.
        found = _size(bucket, blob_name(digest))
        if found != len(content) or _content(bucket, blob_name(digest), found) != content:
            _overwrite(bucket, blob_name(digest), content)
    _require_size(bucket, blob_name(digest), len(content))


def put_size(bucket: Bucket, digest: Digest, size: int) -> None:
    """Say how long a blob is, before there is one: without it, it would not be found.

    Raises:
        StorageError: it cannot be written.
    """
    _overwrite(bucket, size_name(digest), b"%d" % size)


class BucketBlobWriter:
    """The ``BlobWriter`` of a bucket: parts are uploaded while the next are made, under a name that nobody looks for."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._name = f"uploads/{secrets.token_hex(16)}"
        self._pending = bytearray()
        self._upload: WritableFile | None = None
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes, /) -> None:
        """See ``BlobWriter.write``."""
        self._hash.update(data)
        self._size += len(data)
        self._pending += data
        if len(self._pending) >= PART:
            self._send()

    def _send(self) -> None:
        with _uploading(self._bucket):
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

    def commit(self) -> StoredBlob:
        """See ``BlobWriter.commit``."""
        digest = Digest(self._hash.hexdigest())
        blob = StoredBlob(digest, self._size)
        if self._is_there(blob):
            return blob
        if self._upload is None:
            put_small(self._bucket, digest, bytes(self._pending))
            return blob
        if self._pending:
            self._send()
        self._complete(self._upload)
        # S3 has compared each part with its SHA-256, which the signature covers. That all of them arrived, the size tells.
        _require_size(self._bucket, self._name, self._size)
        put_size(self._bucket, digest, self._size)
        # Over whatever is there: it was found to be broken just now, or another writer has put the same bytes there since.
        with _uploading(self._bucket):
            copy_object(self._bucket, self._name, blob_name(digest), self._size)
        _require_size(self._bucket, blob_name(digest), self._size)
        return blob

    def _complete(self, upload: WritableFile) -> None:
        try:
            with _uploading(self._bucket):
                upload.close()
        except StorageError:
            # What got lost may have been the answer alone; whoever asks again is told that there is no such upload.
            if _size(self._bucket, self._name) != self._size:
                raise

    def discard(self) -> None:
        """Leave nothing behind, whether or not it was committed. What cannot be deleted is left to the bucket's lifecycle rule."""
        if self._upload is None:
            return
        with suppress(Exception):
            # There is no way to abort an upload. As a whole it can be deleted at least; its parts would be invisible.
            if not self._upload.closed():
                self._upload.close()
        with suppress(StorageError, FileNotFoundError), self._bucket.doing("write to"):
            obstore.delete(self._bucket.store, self._bucket.key(self._name))
        self._upload = None

    def _is_there(self, blob: StoredBlob) -> bool:
        # The size that is written down is the one of these bytes, whoever wrote it, or it is replaced.
        if _size(self._bucket, blob_name(blob.digest)) != blob.size:
            return False
        return _content(self._bucket, size_name(blob.digest), _SIZE) == b"%d" % blob.size


def copy_object(bucket: Bucket, source: str, target: str, size: int) -> None:
    """Copy an object within a bucket, over whatever is there.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it cannot be copied.
    """
    with bucket.doing("write to"):
        if size < _COPIED:
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


def _create(bucket: Bucket, name: str, content: bytes) -> bool:
    """Write a small object; return ``False`` if there is one. Where the store cannot tell, it is overwritten."""
    with _uploading(bucket):
        try:
            obstore.put(bucket.store, bucket.key(name), content, attributes=_ATTRIBUTES, mode="create")
        except AlreadyExistsError:
            return False
        except NotSupportedError:
            _overwrite(bucket, name, content)
    return True


def _overwrite(bucket: Bucket, name: str, content: bytes) -> None:
    with _uploading(bucket):
        obstore.put(bucket.store, bucket.key(name), content, attributes=_ATTRIBUTES, use_multipart=False)


def _size(bucket: Bucket, name: str) -> int | None:
    try:
        with bucket.doing("look up a blob in"):
            return obstore.head(bucket.store, bucket.key(name))["size"]
    except FileNotFoundError:
        return None


def _content(bucket: Bucket, name: str, largest: int) -> bytes | None:
    try:
        with bucket.doing("read a blob from"):
            found = obstore.get(bucket.store, bucket.key(name))
            return bytes(found.bytes()) if found.meta["size"] <= largest else None
    except FileNotFoundError:
        return None


def _require_size(bucket: Bucket, name: str, size: int) -> None:
    found = _size(bucket, name)
    if found != size:
        raise BlobVerificationFailed(f"{size} bytes were written of {name}, {found or 0} are stored")


@contextmanager
def _uploading(bucket: Bucket) -> Iterator[None]:
    """Write what is not there yet: if anything is missing then, it is the bucket, or an upload that somebody aborted."""
    try:
        with bucket.doing("write to"):
            yield
    except FileNotFoundError as error:
        raise StorageError(f"cannot write to {bucket.name}: there is no such bucket or upload") from error
