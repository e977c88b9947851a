"""Where is listened, and what one request may cost."""

from __future__ import annotations

import os
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo

from nixery.settings.values import DAY, NotEmpty, Size, listed

# Connections to the public port: fewer would not let a client fetch layers in parallel.
_FEWEST_CONNECTIONS = 16

_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::\d{1,5})?", re.ASCII)


def _networks(value: object) -> object:
    parts = listed(value)
    if not isinstance(parts, tuple):
        return value
    networks = tuple(ip_network(part) if isinstance(part, str) else part for part in parts)
    if any(network.prefixlen == 0 for network in networks):
        raise ValueError("a network of all addresses would have every client believed; list the proxies' own")
    return networks


def _base_url(url: str | None) -> str | None:
    """Check that a URL is a registry's: without a path.

    Raises:
        ValueError: it is not.
    """
    if url is None:
        return None
    parts = urlsplit(url.strip())
    host = parts.netloc.lower()
    if parts.scheme not in {"http", "https"} or not _HOST.fullmatch(host):
        raise ValueError(
            f"{url!r} is no http(s) URL with a host; write for example https://registry.example.org"
        )
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"{url!r} has more than a host; a registry is at the root of its host")
    return f"{parts.scheme}://{host}"


def _another_port(port: int | None, others: ValidationInfo) -> int | None:
    if port is not None and port == others.data.get("port"):
        raise ValueError("it is the same as PORT; health and metrics have a port of their own")
    return port


class ServerSettings(BaseModel):
    """Listen addresses, and limits on requests.

    Attributes:
        host: address to bind. Nixery binds all addresses only if the operator sets that: it builds what
            clients ask for.
        port: TCP port to bind.
        admin_host: address of the listener for health and metrics.
        admin_port: its TCP port; ``None`` for no such listener.
        public_url: scheme and host by which clients reach the server, for links; ``None`` to use each
            request's own.
        trusted_proxies: addresses whose ``X-Forwarded-*``, ``X-Request-Id`` and ``traceparent`` are trusted.
        public_builds: whether every client may see which images are built, and the logs of their builds.
        max_builds: how many images are built at once, and how many tags are looked up at once.
        max_builds_per_client: of them, those of one client; ``None`` for all.
        max_queued: how many others may wait for that; more are rejected and told when to retry.
        max_queued_per_client: of them, those of one client; ``None`` for half of them.
        max_connections: connections to the public port.
        max_connections_per_client: of them, those from one address, unless it is a trusted proxy's.
        max_followers: streams of build events that are open at once.
        max_followers_per_client: of them, those of one client.
        max_packages: of one name. The grammar allows for 128.
        max_closure: bytes of an image's store paths; 0 for no limit.
        build_timeout: seconds for a whole image, once its build has begun.
        send_timeout: seconds after which a client that reads nothing is disconnected.
        failure_ttl: seconds for which a failed build is answered from memory, without a retry.
    """

    host: Annotated[str, NotEmpty, Field(alias="NIXERY_HOST")] = "127.0.0.1"
    port: Annotated[int, NotEmpty, Field(alias="PORT", ge=1, le=65535)]
    admin_host: Annotated[str, NotEmpty, Field(alias="NIXERY_ADMIN_HOST")] = "127.0.0.1"
    admin_port: Annotated[
        int | None, NotEmpty, AfterValidator(_another_port), Field(alias="NIXERY_ADMIN_PORT", ge=1, le=65535)
    ] = None
    public_url: Annotated[
        str | None, NotEmpty, AfterValidator(_base_url), Field(alias="NIXERY_PUBLIC_URL")
    ] = None
    trusted_proxies: Annotated[
        tuple[IPv4Network | IPv6Network, ...],
        BeforeValidator(_networks),
        NotEmpty,  # pydantic applies the last one first
        Field(alias="NIXERY_TRUSTED_PROXIES"),
    ] = ()
    public_builds: Annotated[bool, NotEmpty, Field(alias="NIXERY_PUBLIC_BUILDS")] = True
    failure_ttl: Annotated[int, NotEmpty, Field(alias="NIXERY_FAILURE_TTL", ge=0, le=DAY)] = 30
    max_builds: Annotated[
        int,
        NotEmpty,
        Field(alias="NIXERY_MAX_BUILDS", ge=1, le=1024, default_factory=lambda: os.cpu_count() or 1),
    ]
    max_builds_per_client: Annotated[
        int | None, NotEmpty, Field(alias="NIXERY_MAX_BUILDS_PER_CLIENT", ge=1, le=1024)
    ] = None
    max_queued: Annotated[int, NotEmpty, Field(alias="NIXERY_MAX_QUEUED", ge=0, le=100_000)] = 100
    max_queued_per_client: Annotated[
        int | None, NotEmpty, Field(alias="NIXERY_MAX_QUEUED_PER_CLIENT", ge=0, le=100_000)
    ] = None
    max_connections: Annotated[
        int, NotEmpty, Field(alias="NIXERY_MAX_CONNECTIONS", ge=_FEWEST_CONNECTIONS, le=1 << 16)
    ] = 1024
    max_connections_per_client: Annotated[
        int, NotEmpty, Field(alias="NIXERY_MAX_CONNECTIONS_PER_CLIENT", ge=1, le=1 << 16)
    ] = 256
    max_followers: Annotated[int, NotEmpty, Field(alias="NIXERY_MAX_FOLLOWERS", ge=0, le=10_000)] = 200
    max_followers_per_client: Annotated[
        int, NotEmpty, Field(alias="NIXERY_MAX_FOLLOWERS_PER_CLIENT", ge=0, le=10_000)
    ] = 50
    max_packages: Annotated[int, NotEmpty, Field(alias="NIXERY_MAX_PACKAGES", ge=1, le=128)] = 100
    max_closure: Annotated[int, NotEmpty, Size, Field(alias="NIXERY_MAX_CLOSURE", ge=0)] = 20 * 1024**3
    build_timeout: Annotated[int, NotEmpty, Field(alias="NIXERY_BUILD_TIMEOUT", ge=1, le=7 * DAY)] = 3600
    send_timeout: Annotated[int, NotEmpty, Field(alias="NIXERY_SEND_TIMEOUT", ge=1, le=DAY)] = 300

    @property
    def queued_per_client(self) -> int:
        """The places in the queue for one client."""
        # Rounded up, since a queue of one place needs to admit a client.
        half = (self.max_queued + 1) // 2
        return half if self.max_queued_per_client is None else self.max_queued_per_client
