"""Where popularity data comes from."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from nixery.errors import SettingsError
from nixery.layering.popularity import Popularity

_COUNTS = TypeAdapter(dict[str, Annotated[int, Field(ge=0)]])
_TIMEOUT = 30.0
_CHUNK = 1 << 16
_LARGEST = 64 * 1024 * 1024


def load_popularity(url: str) -> Popularity:
    """Fetch and check popularity data; blocks.

    A server that cannot have the data it is configured with does not start: it would group layers differently, and
    every image would have another digest than its neighbours give it.

    Args:
        url: an http, https or file URL, or a path.

    Raises:
        SettingsError: it cannot be fetched, or is not an object of counts by package name.
    """
    try:
        content = (
            _fetch(url) if url.startswith(("http://", "https://", "file://")) else Path(url).read_bytes()
        )
        return Popularity(_COUNTS.validate_json(content))
    except urllib.error.HTTPError as error:
        error.close()  # it is a response as well
        raise SettingsError((f"NIX_POPULARITY_URL is wrong: {url}: {error}",)) from None
    except ValidationError:
        what = "it is not a JSON object of reference counts by package name"
        raise SettingsError((f"NIX_POPULARITY_URL is wrong: {url}: {what}",)) from None
    except (OSError, ValueError) as error:
        raise SettingsError((f"NIX_POPULARITY_URL is wrong: {url}: {error}",)) from None


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:  # noqa: S310 -- the operator's own URL
        end = time.monotonic() + _TIMEOUT
        content = b""
        while len(content) < _LARGEST and (chunk := response.read1(_CHUNK)):
            content += chunk
            # The timeout of a socket is for each read alone; a server that trickles would hold us up for ever.
            if time.monotonic() > end:
                raise TimeoutError(f"it takes longer than {_TIMEOUT:g} seconds")
        return content
