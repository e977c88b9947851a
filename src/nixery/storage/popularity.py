"""Fetching popularity data, and keeping a copy for when its URL cannot be reached."""

from __future__ import annotations

import hashlib
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPException
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated

import structlog
from pydantic import Field, TypeAdapter, ValidationError

from nixery.errors import SettingsError
from nixery.files import read_regular
from nixery.layering.popularity import Popularity
from nixery.oci.documents import canonical_json
from nixery.source_location import redacted
from nixery.storage.files import write_file

_COUNTS = TypeAdapter(dict[str, Annotated[int, Field(ge=0)]])

# Seconds for a download, and bytes of it.
_TIMEOUT = 30.0
_LARGEST = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PopularityCopies:
    """Copies of the data that each URL gave last.

    Attributes:
        root: of the storage.
        temporary: for unfinished files, on the same file system.
    """

    root: Path
    temporary: Path

    def keep(self, url: str, popularity: Popularity) -> None:
        """Keep a copy of fetched data.

        Raises:
            StorageError: it cannot be written.
        """
        write_file(self.temporary, self._place(url), canonical_json(dict(popularity.counts)))

    def find(self, url: str) -> tuple[Popularity, timedelta] | None:
        """Return the copy and its age; ``None`` if it is missing or torn."""
        place = self._place(url)
        try:
            age = max(0, int(time.time() - place.lstat().st_mtime))
            content = read_regular(place, _LARGEST) or b""
            return Popularity(_COUNTS.validate_json(content)), timedelta(seconds=age)
        except (OSError, ValidationError):
            return None

    def _place(self, url: str) -> Path:
        return self.root / "popularity" / f"{hashlib.sha256(url.encode()).hexdigest()}.json"


def load_popularity(url: str, copies: PopularityCopies | None = None) -> Popularity:
    """Fetch and check popularity data, or use the last copy if it cannot be fetched; blocks.

    Without the data that it is configured with, a server does not start: it would group layers differently, and its
    images would have other digests than those of its neighbours. Nor does it start with invalid data: whoever changed
    the data is there to correct it.

    Args:
        url: an http, https or file URL, or a path.
        copies: of the storage; ``None`` to keep none.

    Raises:
        SettingsError: it cannot be fetched and there is no copy, or it is not an object of counts by package name.
        StorageError: the copy cannot be written.
    """
    shown = redacted(url)
    try:
        content = _fetch(url)
    except (OSError, ValueError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is a response as well
        copy = copies.find(url) if copies else None
        if copy is None:
            raise SettingsError((f"NIX_POPULARITY_URL is wrong: {shown}: {redacted(str(error))}",)) from None
        popularity, age = copy
        structlog.get_logger("nixery.popularity").warning(
            "cannot fetch NIX_POPULARITY_URL, using its copy",
            url=shown,
            reason=redacted(str(error)),
            age_of_copy=str(age),
        )
        return popularity
    try:
        popularity = Popularity(_COUNTS.validate_json(content))
    except ValidationError:
        what = "it is not a JSON object of reference counts by package name"
        raise SettingsError((f"NIX_POPULARITY_URL is wrong: {shown}: {what}",)) from None
    if copies:
        copies.keep(url, popularity)
    return popularity


def _fetch(url: str) -> bytes:
    if not url.startswith(("http://", "https://", "file://")):
        # The operator may name a symlink, but neither a pipe, which may block, nor a device, which may never
        # end.
        found = read_regular(Path(url).resolve(strict=True), _LARGEST)
        if found is None:
            raise OSError(f"not a regular file of at most {_LARGEST} bytes")
        return found
    # The timeout of a socket bounds each read alone, and a server may send a byte at a time, even of its header fields. A daemon
    # thread does not keep the process from exiting.
    answers: SimpleQueue[bytes | Exception] = SimpleQueue()
    threading.Thread(target=_download, args=(url, answers), daemon=True).start()
    try:
        answer = answers.get(timeout=_TIMEOUT)
    except Empty:
        raise TimeoutError(f"it takes longer than {_TIMEOUT:g} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _download(url: str, answers: SimpleQueue[bytes | Exception]) -> None:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:  # noqa: S310 -- the operator's own URL
            content = response.read(_LARGEST)
            length = int(response.headers.get("Content-Length") or len(content))
    except Exception as error:  # noqa: BLE001 -- raised again by the caller
        answers.put(error)
    else:
        is_whole = len(content) >= length
        answers.put(content if is_whole else OSError(f"received {len(content)} of {length} bytes"))
