"""Clients by address, the public URL, and refused requests: everything that header fields and addresses decide."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import quote

from nixery.image.platform import Platform
from nixery.request_context import INTERNAL, Client
from nixery.server.errors import errors_body
from nixery.server.http import BytesResponse, Request, Scope

FORWARDED_FOR = "x-forwarded-for"
REQUEST_ID = "x-request-id"

# Of the fields below, those that show that a proxy forwarded the request.
_FORWARDING_FIELDS = frozenset(
    {"forwarded", FORWARDED_FOR, "x-forwarded-host", "x-forwarded-proto", "x-real-ip"}
)

# Fields by which a proxy describes a request, in lower case. Any client can send them, so they are trusted
# only from a trusted proxy. The last ones give the trace of a request, and whether to sample it.
FROM_PROXIES = _FORWARDING_FIELDS | {REQUEST_ID, "traceparent", "tracestate", "baggage"}

# The prefix of an IPv6 address that a site gets; one client may use all addresses in it.
_SITE = 64

# Cached clients of addresses; a proxy's clients recur.
_CLIENTS = 4096

# Proxies that a request passes. A client whose own address is that of a proxy may claim thousands.
_MOST_PROXIES = 16

# Characters of an address; the longest has a zone id.
_LONGEST_ADDRESS = 64

# A host and a port that a link may contain (RFC 3986), without a user name.
_PUBLIC_HOST = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::\d{1,5})?", re.ASCII | re.IGNORECASE
)
_UNKNOWN_HOST = "localhost"

# A host, and a port, that only the machine itself reaches.
_LOCAL = re.compile(r"(?:localhost|127\.[0-9.]+|\[::1\])(?::\d+)?", re.ASCII | re.IGNORECASE)

# A valid Host field (RFC 9110, 7.2, and RFC 3986, 3.2): a name or an address, and a port. Repeated fields
# were joined with a comma, which no DNS name can contain.
_HOST_FIELD = re.compile(
    r"(?:[a-z0-9._~!$&'()*+;=%-]{0,255}|\[[0-9a-f:.]{2,45}\])(?::\d{0,5})?", re.ASCII | re.IGNORECASE
)
_LONGEST_HOST = 300

# Cached results for hosts: each request has one, and nearly all have the same.
_HOSTS = 256

# Characters of a path, decoded, and of a query. A name, its host and its tag are 383 at most.
_LONGEST_PATH = 1024
_LONGEST_QUERY = 4096

# Paths that registry clients and Nix request, where a request may cause a build or a look-up.
_CLIENT_PREFIXES = ("/v2/", "/api/", "/nix-cache/")

# Values by which a browser says that no other site caused a request (HTML, Fetch Metadata).
_OWN_SITE = frozenset({"same-origin", "none"})

Address = IPv4Address | IPv6Address


class Clients:
    """Tells clients apart by their addresses, and knows which addresses are proxies.

    Args:
        trusted: networks of proxies, which have to set ``X-Forwarded-For``, or append to it.
    """

    def __init__(self, trusted: Sequence[IPv4Network | IPv6Network] = ()) -> None:
        self._trusted = tuple(trusted)
        self.client_of_host = lru_cache(_CLIENTS)(_client)
        self.trusts_host = lru_cache(_CLIENTS)(self._trusts)

    def trusted_headers(self, headers: Mapping[str, str], peer: str) -> Mapping[str, str]:
        """Return the trusted header fields.

        Args:
            headers: by name in lower case.
            peer: the other end of the connection, as ``host_of`` takes it.
        """
        if self._trusted and self.trusts_host(host_of(peer)):
            return headers
        return {name: value for name, value in headers.items() if name not in FROM_PROXIES}

    def client(self, peer: str, headers: Mapping[str, str]) -> Client:
        """Return the client of a request: the peer, or the last address before the trusted proxies.

        Args:
            peer: the other end of the connection, as ``host_of`` takes it.
            headers: the trusted ones.
        """
        host = host_of(peer)
        forwarded = headers.get(FORWARDED_FOR)
        # Each proxy appends the address of its peer; a client's own text stands to the left of those.
        for _ in range(_MOST_PROXIES):
            if not forwarded or not self.trusts_host(host):
                break
            forwarded, _, last = forwarded.rpartition(",")
            address = _forwarded_host(last.strip())
            if _address(address) is None:
                break
            host = address
        return self.client_of_host(host)

    def _trusts(self, host: str) -> bool:
        address = _address(host)
        return address is not None and any(address in network for network in self._trusted)


def is_forwarded(headers: Mapping[str, str]) -> bool:
    """Whether header fields, trusted or not, say that a proxy forwarded the request."""
    return not _FORWARDING_FIELDS.isdisjoint(headers)


def host_of(peer: str) -> str:
    """Return the address in ``192.0.2.7:51234`` or ``[2001:db8::7]:51234``."""
    return peer.rpartition(":")[0].strip("[]")


def peer_key(peer: str) -> tuple[Address | None, str]:
    """Return one normal form for all spellings of an address and port."""
    host, _, port = peer.rpartition(":")
    return _address(host.strip("[]").partition("%")[0]), port


def host(request: Request) -> str:
    """Return the public host and port: from ``NIXERY_PUBLIC_URL``, else from a trusted proxy or the client.

    A client's wrong host affects only its own response: caches must not store a response that contains a
    host.
    """
    if request.public_url is not None:
        return request.public_url.partition("://")[2]
    for header in ("x-forwarded-host", "host"):
        name = request.headers.get(header, "").partition(",")[0].strip()
        if _PUBLIC_HOST.fullmatch(name):
            return name
    return _UNKNOWN_HOST


def is_local(host: str) -> bool:
    """Whether only the machine itself reaches a host by this name."""
    return _LOCAL.fullmatch(host) is not None


def is_encrypted(request: Request) -> bool:
    """Whether the client used TLS: by the public URL, else by what a trusted proxy says, else with this server."""
    if request.public_url is not None:
        return request.public_url.startswith("https:")
    forwarded = request.headers.get("x-forwarded-proto")
    return request.encrypted if forwarded is None else forwarded.partition(",")[0].strip().lower() == "https"


def base_url(request: Request) -> str:
    """Return the server's URL, without a slash at its end."""
    return f"{'https' if is_encrypted(request) else 'http'}://{host(request)}"


def image_path(name: str, platform: str, defaults: Sequence[Platform], tag: str = "latest") -> str:
    """Return name and tag of the image for one platform, escaped for the path of a URL.

    Args:
        name: without its platform.
        platform: such as ``linux/arm64``.
        defaults: the platforms of a name without a platform.
        tag: left out if it is ``latest``.
    """
    architecture = platform.rpartition("/")[2]
    is_default = [str(default) for default in defaults] == [platform]
    full = name if is_default or name == architecture else f"{architecture}/{name}"
    return quote(full if tag == "latest" else f"{full}:{tag}", safe="/:")


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
        message = "the request needs one Host header field: a host, and optionally a port (RFC 9112, 3.2)"
        return errors_body(400, "UNSUPPORTED", message)
    # The distribution specification defines the answer to a name or a reference that is too long.
    if len(request.path) > _LONGEST_PATH and not request.path.startswith("/v2/"):
        message = f"the path has more than {_LONGEST_PATH} characters; an image name has 255 at most"
        return errors_body(414, "UNSUPPORTED", message)
    if len(query) > _LONGEST_QUERY:
        message = f"the query has more than {_LONGEST_QUERY} characters"
        return errors_body(414, "UNSUPPORTED", message)
    if _is_cross_site(request):
        message = (
            "a page of another site sent this request: use a registry client, or a page of this server "
            f"({base_url(request)}/)"
        )
        return errors_body(403, "DENIED", message, headers={"Vary": "Origin, Sec-Fetch-Site"})
    return None


def _is_cross_site(request: Request) -> bool:
    """Whether a browser says that it sent a request on behalf of another site's page."""
    headers = request.headers
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if origin is site is None:
        # To a server without TLS, browsers omit these fields from requests that need no permission, such as
        # one for an image. None of the server's pages requests a path below /v2, and registry clients do not
        # identify as browsers.
        return request.path.startswith("/v2/") and headers.get("user-agent", "").startswith("Mozilla/")
    # Prefer the browser's own statement about the site to a comparison of names, unless the public name is
    # known: a page can have its own name resolve to the server's address, and then has the same origin.
    decides = site is not None and request.public_url is None
    if origin is not None and not decides and not _is_own(request, origin):
        return True
    if site is None or site in _OWN_SITE:
        return False
    # Other sites may link to the pages, but must not load one as an image or a script.
    return request.path.startswith(_CLIENT_PREFIXES) or headers.get("sec-fetch-dest") != "document"


def is_of_own_site(request: Request) -> bool:
    """Whether no page of another site caused a request, as far as browsers say: old ones, and programs, say nothing."""
    return request.headers.get("sec-fetch-site", "none") in _OWN_SITE


def _is_own(request: Request, origin: str) -> bool:
    ours, theirs = base_url(request), origin.strip().lower()
    # Without a proxy's statement, it is unknown whether a client used TLS with the proxy.
    known = (
        request.public_url is not None
        or "x-forwarded-proto" in request.headers
        or (request.encrypted and not request.forwarded)
    )
    return theirs == ours.lower() if known else theirs.partition("://")[2] == ours.lower().partition("://")[2]


@lru_cache(_HOSTS)
def _is_host(host: str) -> bool:
    return _HOST_FIELD.fullmatch(host) is not None


def _forwarded_host(element: str) -> str:
    """Return the address in an element of ``X-Forwarded-For``, with or without a port."""
    if element.startswith("[") or (element.count(":") == 1 and "." in element):
        return host_of(element) if not element.endswith("]") else element.strip("[]")
    return element


def _address(host: str) -> Address | None:
    if len(host) > _LONGEST_ADDRESS:
        return None
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _client(host: str) -> Client:
    address = _address(host)
    if address is None:
        return INTERNAL  # a Unix socket has no address
    if isinstance(address, IPv4Address):
        return Client(str(address))
    return Client(str(IPv6Network((int(address), _SITE), strict=False)))
