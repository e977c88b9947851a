"""Where popularity data comes from, and a copy for when it cannot be had there."""

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
_TIMEOUT = 30.0
_LARGEST = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PopularityCopies:
    """The last data of each URL.

    Attributes:
        root: of the storage.
        temporary: where files are written, on the same file system.
    """

    root: Path
    temporary: Path

    def keep(self, url: str, popularity: Popularity) -> None:
        """Write what was fetched just now.

        Raises:
            StorageError: it cannot be written.
        """
        write_file(self.temporary, self._place(url), canonical_json(dict(popularity.counts)))

    def find(self, url: str) -> tuple[Popularity, timedelta] | None:
        """Return the copy, if there is a good one, and its age."""
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
    """Fetch and check popularity data, or take the copy of the last time if it cannot be fetched; blocks.

    A server that has no data though it is configured with some does not start: it would group layers differently, and
    every image would have another digest than its neighbours give it. Neither does it with data that is wrong: whoever
    changed it is there to hear it.

    Args:
        url: an http, https or file URL, or a path.
        copies: where one is kept.

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
            "NIX_POPULARITY_URL cannot be fetched, its copy is used",
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
            raise OSError(f"it is no regular file of at most {_LARGEST} bytes")
        return found
    # The timeout of a socket is for each read alone: a server that trickles, be it in its header fields, would hold us up for ever. The
    # thread that it holds up instead keeps nothing from ending.
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
    except Exception as error:  # noqa: BLE001 -- raised again by the one who waits
        answers.put(error)
    else:
        is_whole = len(content) >= length
        answers.put(content if is_whole else OSError(f"{len(content)} bytes came of {length}"))
