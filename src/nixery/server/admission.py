"""Refuse requests before any handler reads them."""

from __future__ import annotations

import re
from functools import lru_cache

from nixery.server.addresses import base_url
from nixery.server.registry.errors import errors_body
from nixery.server.requests import Request
from nixery.server.responses import BytesResponse
from nixery.server.rsgi_interface import Scope

# Characters of a path, decoded, and of a query. A name, its host and its tag are 383 at most.
_LONGEST_PATH = 1024
_LONGEST_QUERY = 4096

# RFC 9110, 7.2, and RFC 3986, 3.2: a name or an address, and a port. Repeated fields were joined with a
# comma, which no DNS name can contain.
_HOST = re.compile(
    r"(?:[a-z0-9._~!$&'()*+;=%-]{0,255}|\[[0-9a-f:.]{2,45}\])(?::\d{0,5})?", re.ASCII | re.IGNORECASE
)

# Checked hosts that are cached: each request has one, and nearly all have the same.
_HOSTS = 256
_LONGEST_HOST = 300

# Paths that registry clients request, where a request may cause a build or a look-up.
_FOR_CLIENTS = ("/v2/", "/api/")

# HTML, Fetch Metadata: values by which a browser says that no other site caused a request.
_OWN = frozenset({"same-origin", "none"})


def refusal(request: Request, query: str, scope: Scope) -> BytesResponse | None:
    """Return the answer that refuses a request; ``None`` if it is admitted.

    Args:
        request: with trusted header fields only.
        query: undecoded.
        scope: unchanged.
    """
    host = request.headers.get("host")
    # HTTP/1.0 has no Host field.
    if (scope.http_version != "1") if host is None else (len(host) > _LONGEST_HOST or not _is_host(host)):
        message = "the request needs one Host header field, with a host and perhaps a port (RFC 9112, 3.2)"
        return errors_body(400, "UNSUPPORTED", message)
    # The distribution specification defines the answer to a name or a reference that is too long.
    if len(request.path) > _LONGEST_PATH and not request.path.startswith("/v2/"):
        message = f"the path has more than {_LONGEST_PATH} characters, and the name of an image 255 at most"
        return errors_body(414, "UNSUPPORTED", message)
    if len(query) > _LONGEST_QUERY:
        message = f"the query has more than {_LONGEST_QUERY} characters, which nothing here takes"
        return errors_body(414, "UNSUPPORTED", message)
    if _comes_from_another_site(request):
        message = (
            "a page of another site sent this request; it has to come from a client of a registry or from a page of this server "
            f"({base_url(request)}/)"
        )
        return errors_body(403, "DENIED", message, headers={"Vary": "Origin, Sec-Fetch-Site"})
    return None


def _comes_from_another_site(request: Request) -> bool:
    """Whether a browser says that it sent a request on behalf of another site's page."""
    headers = request.headers
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if origin is site is None:
        # To a server without TLS, browsers omit these fields from requests that need no permission, such as
        # one for an image. None of our pages requests a path below /v2, and registry clients do not identify
        # as browsers.
        return request.path.startswith("/v2/") and headers.get("user-agent", "").startswith("Mozilla/")
    # Prefer the browser's own statement about the site to a comparison of names, unless we know our public
    # name: a page can have its own name resolve to our address, and then has the same origin.
    told = site is not None and request.public_url is None
    if origin is not None and not told and not _is_own(request, origin):
        return True
    if site is None or site in _OWN:
        return False
    # Other sites may link to our pages; but an image or a script element that loads one of our pages serves
    # no reader.
    return request.path.startswith(_FOR_CLIENTS) or headers.get("sec-fetch-dest") != "document"


def _is_own(request: Request, origin: str) -> bool:
    ours, theirs = base_url(request), origin.strip().lower()
    # Without a proxy's statement, we do not know whether a client used TLS.
    known = request.public_url is not None or "x-forwarded-proto" in request.headers
    return theirs == ours.lower() if known else theirs.partition("://")[2] == ours.lower().partition("://")[2]


@lru_cache(_HOSTS)
def _is_host(host: str) -> bool:
    return _HOST.fullmatch(host) is not None
