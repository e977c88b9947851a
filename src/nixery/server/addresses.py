"""Where a client reaches this server, as far as it says so."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from nixery.image.platform import Platform
from nixery.server.requests import Request

# RFC 3986, host and port; user names and whatever else could be put into a link have no place here.
_HOST = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::\d{1,5})?", re.ASCII | re.IGNORECASE
)

_UNKNOWN = "localhost"


def host(request: Request) -> str:
    """Return our public host and port: from ``NIXERY_PUBLIC_URL``, else from a trusted proxy or the client.

    A client can lie, but only to itself: caches must not store an answer that contains a host.
    """
    if request.public_url is not None:
        return request.public_url.partition("://")[2]
    for header in ("x-forwarded-host", "host"):
        told = request.headers.get(header, "").partition(",")[0].strip()
        if _HOST.fullmatch(told):
            return told
    return _UNKNOWN


def is_encrypted(request: Request) -> bool:
    """Whether the client used TLS, according to the proxy; this server has no TLS itself."""
    if request.public_url is not None:
        return request.public_url.startswith("https:")
    return request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower() == "https"


def base_url(request: Request) -> str:
    """Return our URL, without a slash at its end."""
    return f"{'https' if is_encrypted(request) else 'http'}://{host(request)}"


def image_path(name: str, platform: str, defaults: Sequence[Platform], tag: str = "latest") -> str:
    """Return name and tag of the image for one platform, fit for the path of a URL.

    Args:
        name: without its platform.
        platform: such as ``linux/arm64``.
        defaults: the platforms of a name that says none.
        tag: left out if it is the usual one.
    """
    architecture = platform.rpartition("/")[2]
    is_default = [str(default) for default in defaults] == [platform]
    full = name if is_default or name == architecture else f"{architecture}/{name}"
    return quote(full if tag == "latest" else f"{full}:{tag}", safe="/:")
