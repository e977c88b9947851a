"""A bucket, its prefix, and what goes wrong with it in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import quote

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

from nixery.errors import StorageError

Store = S3Store | GCSStore | AzureStore | MemoryStore

# Whatever is in a bucket is sent to clients under this type, by us and by the bucket.
CONTENT_TYPE = "application/octet-stream"

_HTTP_STATUS = re.compile(r"non-2xx status code: (\d+ [\w -]+)")
_LONGEST_REASON = 160

# What S3 and Azure write.
_WRONG_CREDENTIALS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AuthenticationFailed",
    "failed to authenticate",
)
_DENIED = ("(code: AccessDenied)", "(code: 403)")


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket as we use it.

    Attributes:
        name: for messages, such as ``s3://bucket``.
        store: how it is reached from here.
        prefix: of all keys; empty, or ends in a slash.
        signed: makes a URL of a key that a client can read for a time; ``None`` if clients cannot reach it.
    """

    name: str
    store: Store
    prefix: str = ""
    signed: Callable[[str, timedelta], str] | None = None

    def key(self, name: str) -> str:
        """Return the key of what is called so below the prefix."""
        return f"{self.prefix}{name}"

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Do something with it.

        Raises:
            StorageError: it did not work, with the reason in one line. What is not there is ``FileNotFoundError`` still.
        """
        try:
            yield
        except (BaseError, ValueError, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise StorageError(f"cannot {what} {self.name}: {_reason(error)}") from error


async def read_object(bucket: Bucket, key: str, largest: int) -> bytes | None:
    """Return an object's contents; ``None``, without reading them, if they exceed ``largest`` bytes.

    Raises:
        FileNotFoundError: there is no such object.
        BaseError: any other error of obstore.
    """
    answer = await obstore.get_async(bucket.store, key)
    return bytes(await answer.bytes_async()) if answer.meta["size"] <= largest else None


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, UnauthenticatedError):
        return "the credentials are not accepted"
    status = _HTTP_STATUS.search(text)
    # A listing has no error of its own for what may not be done, and an object is deleted with a list of what became of each.
    if (
        isinstance(error, PermissionDeniedError)
        or (status is not None and status[1].startswith("403"))
        or any(code in text for code in _DENIED)
    ):
        wrong = any(code in text for code in _WRONG_CREDENTIALS)
        return "the credentials are wrong" if wrong else "there is no permission to"
    if status is not None:
        return f"it answers {status[1].strip()}"
    if "error sending request" in text:
        return "it cannot be reached"
    return text.partition("\n")[0][:_LONGEST_REASON]


def signing(store: S3Store | GCSStore | AzureStore) -> Callable[[str, timedelta], str]:
    """Make URLs with the credentials of a store, which need not be the one that is written to but has to know its bucket."""
    return lambda key, lifetime: obstore.sign(store, "GET", key, lifetime)


def public(base: str) -> Callable[[str, timedelta], str]:
    """Make plain URLs, for a bucket that everybody may read."""
    return lambda key, _: f"{base}/{quote(key)}"
