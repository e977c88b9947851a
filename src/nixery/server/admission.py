"""Requests that are refused before anything looks at what they ask for."""

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

# RFC 9110, 7.2, and RFC 3986, 3.2: a name or an address, and a port. Fields that came twice were joined with a comma, which can
# stand in no name that DNS has.
_HOST = re.compile(
    r"(?:[a-z0-9._~!$&'()*+;=%-]{0,255}|\[[0-9a-f:.]{2,45}\])(?::\d{0,5})?", re.ASCII | re.IGNORECASE
)

# Hosts that were looked at and are kept: each request has one, and nearly all have the same.
_HOSTS = 256
_LONGEST_HOST = 300

# What clients of a registry ask for, where a request may have something built or looked up.
_FOR_CLIENTS = ("/v2/", "/api/")

# HTML, Fetch Metadata: what a browser says of where a request comes from if that is no other site.
_OWN = frozenset({"same-origin", "none"})


def refusal(request: Request, query: str, scope: Scope) -> BytesResponse | None:
    """Return the answer to a request that is not taken; ``None`` if it is.

    Args:
        request: with the header fields that may be believed.
        query: as it came.
        scope: as it came.
    """
    host = request.headers.get("host")
    # HTTP/1.0 has no hosts.
    if (scope.http_version != "1") if host is None else (len(host) > _LONGEST_HOST or not _is_host(host)):
        message = "the request needs one Host header field, with a host and perhaps a port (RFC 9112, 3.2)"
        return errors_body(400, "UNSUPPORTED", message)
    # The specification says what a name or a reference that is too long is.
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
    """Whether a browser sent a request on behalf of a page that is not ours, as far as it says so."""
    headers = request.headers
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if origin is site is None:
        # Browsers tell nothing of a request to a server without TLS that needs no permission, such as one for an image. None of our pages
        # asks for what is below /v2, and no client of a registry takes itself for a browser.
        return request.path.startswith("/v2/") and headers.get("user-agent", "").startswith("Mozilla/")
    # What the browser says about the site is more than a comparison of names can tell, unless our own name is known: a page can have
    # its own name resolved to our address, and is of the same origin then.
    told = site is not None and request.public_url is None
    if origin is not None and not told and not _is_own(request, origin):
        return True
    if site is None or site in _OWN:
        return False
    # Others may link to our pages; but an image or a script of theirs that is one of our pages is meant for no reader.
    return request.path.startswith(_FOR_CLIENTS) or headers.get("sec-fetch-dest") != "document"


def _is_own(request: Request, origin: str) -> bool:
    ours, theirs = base_url(request), origin.strip().lower()
    # Without a proxy that tells, we do not know whether a client came by TLS.
    known = request.public_url is not None or "x-forwarded-proto" in request.headers
    return theirs == ours.lower() if known else theirs.partition("://")[2] == ours.lower().partition("://")[2]


@lru_cache(_HOSTS)
def _is_host(host: str) -> bool:
    return _HOST.fullmatch(host) is not None
