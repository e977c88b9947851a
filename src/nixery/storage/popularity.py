"""Popularity data: fetched from the operator's URL, with a copy for when that fails."""

from __future__ import annotations

import hashlib
import ssl
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated
from urllib.parse import unquote, urlsplit

import httpx
import structlog
from pydantic import Field, TypeAdapter, ValidationError

from nixery.errors import SettingsError
from nixery.files import read_regular
from nixery.layering.popularity import Popularity
from nixery.oci.documents import canonical_json
from nixery.source_location import redacted
from nixery.storage.files import write_file
from nixery.storage.records import CheckedDict

_COUNTS: TypeAdapter[dict[str, int]] = TypeAdapter(CheckedDict[Annotated[int, Field(ge=0)]])

# Seconds for the whole download.
_TIMEOUT = 30.0
# Bytes of the data.
_LARGEST = 64 * 1024 * 1024
_MOST_REDIRECTS = 10


@dataclass(frozen=True, slots=True)
class PopularityCopies:
    """Copies of the last data of each URL.

    Attributes:
        root: of the storage.
        temporary: for unfinished files, on the same file system.
    """

    root: Path
    temporary: Path

    def keep(self, url: str, popularity: Popularity) -> None:
        """Store a copy.

        Raises:
            StorageError: it cannot be written.
        """
        write_file(self.temporary, self._place(url), canonical_json(dict(popularity.counts)))

    def find(self, url: str) -> tuple[Popularity, timedelta] | None:
        """Return the copy and its age; ``None`` if there is no valid one."""
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

    A server without its configured data must not start: it would group layers differently, and give images
    other digests than its neighbours. Invalid data stops it as well, while the operator who changed it is
    present.

    Args:
        url: an http, https or file URL, or a path.
        copies: of fetched data; ``None`` to keep none.

    Raises:
        SettingsError: it cannot be fetched and there is no copy, or it is not an object of counts by package
            name.
        StorageError: the copy cannot be written.
    """
    shown = redacted(url)
    try:
        content = _fetch(url)
    except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
        copy = copies.find(url) if copies else None
        if copy is None:
            raise SettingsError((f"NIX_POPULARITY_URL is wrong: {shown}: {redacted(str(error))}",)) from None
        popularity, age = copy
        structlog.get_logger("nixery.popularity").warning(
            "cannot fetch NIX_POPULARITY_URL; using its copy",
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
    if not url.startswith(("http://", "https://")):
        return _read(url)
    # httpx has a timeout for each read only: a server that trickles, even in its header fields, would block
    # for ever. A daemon thread does not keep the process from exiting.
    answers: SimpleQueue[bytes | Exception] = SimpleQueue()
    threading.Thread(target=_download, args=(url, answers), daemon=True).start()
    try:
        answer = answers.get(timeout=_TIMEOUT)
    except Empty:
        raise TimeoutError(f"it takes longer than {_TIMEOUT:g} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _read(place: str) -> bytes:
    if place.startswith("file://"):
        parts = urlsplit(place)
        if parts.netloc not in {"", "localhost"}:
            raise OSError("a file URL must name a file of this machine: file:///...")
        place = unquote(parts.path)
    # A symlink is allowed, but no FIFO, which may block, and no device, which may never end.
    content = read_regular(Path(place).resolve(strict=True), _LARGEST)
    if content is None:
        raise OSError(f"it is not a regular file of at most {_LARGEST} bytes")
    return content


def _download(url: str, answers: SimpleQueue[bytes | Exception]) -> None:
    try:
        # The certificates that the machine trusts.
        with httpx.Client(
            verify=ssl.create_default_context(), timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"}
        ) as client:
            content = _get(client, url)
    except Exception as error:  # noqa: BLE001 -- raised again by the waiting thread
        answers.put(error)
    else:
        answers.put(content)


def _get(client: httpx.Client, url: str) -> bytes:
    request = client.build_request("GET", url)
    for _ in range(_MOST_REDIRECTS + 1):
        # If httpx followed redirects, it would read their bodies, of any size.
        with closing(client.send(request, stream=True)) as response:
            if response.next_request is None:
                return _content(response)
            request = response.next_request
    raise OSError(f"it has more than {_MOST_REDIRECTS} redirects")


def _content(response: httpx.Response) -> bytes:
    if not response.is_success:
        raise OSError(f"HTTP {response.status_code} {response.reason_phrase}")
    content = bytearray()
    # Undecoded: a few kilobytes that a server compressed twice would fill the memory.
    for piece in response.iter_raw():
        content += piece
        if len(content) > _LARGEST:
            raise OSError(f"it has more than {_LARGEST} bytes")
    return bytes(content)
