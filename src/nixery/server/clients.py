"""Tell which client sent a request, and which of its header fields to trust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from nixery.request_context import INTERNAL, Client

Address = IPv4Address | IPv6Address

FORWARDED_FOR = "x-forwarded-for"
REQUEST_ID = "x-request-id"

# Fields by which a proxy describes a request, in lower case. Any client can send them, so they are trusted
# only from a trusted proxy. The last ones give the trace of a request, and whether to sample it.
FROM_PROXIES = frozenset(
    {
        "forwarded",
        FORWARDED_FOR,
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
        REQUEST_ID,
        "traceparent",
        "tracestate",
        "baggage",
    }
)

# The prefix of an IPv6 address that a site gets; one client may use all addresses in it.
_SITE = 64

# Of them, the fields that show that a proxy passed the request on.
_PASSED_ON = frozenset({"forwarded", FORWARDED_FOR, "x-forwarded-host", "x-forwarded-proto", "x-real-ip"})

# Addresses whose clients are cached; a proxy's clients come back.
_KEPT = 4096

# Characters of an address; the longest has a zone id.
_LONGEST = 64


class Clients:
    """Tells clients apart by their addresses, and knows which addresses are proxies.

    Args:
        trusted: networks of proxies, which have to set ``X-Forwarded-For``, or append to it.
    """

    def __init__(self, trusted: Sequence[IPv4Network | IPv6Network] = ()) -> None:
        self._trusted = tuple(trusted)
        self.client_of_host = lru_cache(_KEPT)(_client)
        self.trusts_host = lru_cache(_KEPT)(self._trusts)

    def believed(self, headers: Mapping[str, str], peer: str) -> Mapping[str, str]:
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
        while forwarded and self.trusts_host(host):
            forwarded, _, last = forwarded.rpartition(",")
            said = _host(last.strip())
            if _address(said) is None:
                break
            host = said
        return self.client_of_host(host)

    def _trusts(self, host: str) -> bool:
        address = _address(host)
        return address is not None and any(address in network for network in self._trusted)


def is_forwarded(headers: Mapping[str, str]) -> bool:
    """Whether header fields, trusted or not, say that a proxy passed the request on."""
    return not _PASSED_ON.isdisjoint(headers)


def host_of(peer: str) -> str:
    """Return the address in ``192.0.2.7:51234`` or ``[2001:db8::7]:51234``."""
    return peer.rpartition(":")[0].strip("[]")


def peer_key(peer: str) -> tuple[Address | None, str]:
    """Return one normal form for all spellings of an address and port."""
    host, _, port = peer.rpartition(":")
    return _address(host.strip("[]").partition("%")[0]), port


def _host(said: str) -> str:
    """Return the address in an element of ``X-Forwarded-For``, with or without a port."""
    if said.startswith("[") or (said.count(":") == 1 and "." in said):
        return host_of(said) if not said.endswith("]") else said.strip("[]")
    return said


def _address(host: str) -> Address | None:
    if len(host) > _LONGEST:
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
