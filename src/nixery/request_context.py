"""The request and the clients that the running code serves: context variables, and ids of requests."""

from __future__ import annotations

import asyncio
import itertools
import re
import secrets
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

# A wait of a request for shared work; cancelling it does not cancel the work.
Wait = asyncio.Future[Any]

# Ids that proxies and clients send: UUIDs, ULIDs, Amazon's "Root=1-...". Only characters that are safe in
# logs and header fields.
_WELL_FORMED = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")


@dataclass(frozen=True, slots=True)
class Client:
    """A client, for shares, limits and logs.

    Without authentication it is an address; only this class would change for an authenticated identity.

    Attributes:
        name: ``192.0.2.7``, or the network of an IPv6 address, ``2001:db8:1:2::/64``.
    """

    name: str


# For commands, timers and other work that no client requested.
INTERNAL = Client("internal")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that a request asked for, and that is not allowed.

    Attributes:
        right: that is missing; ``None`` if any would do.
        name: of an image, a package or a build, or the path of a page.
        reason: for people.
    """

    right: str | None
    name: str
    reason: str


class RequestContext:
    """A request in progress.

    Attributes:
        id: from a trusted proxy, or generated; safe to log and to send back.
        waited: whether the answer was not in memory, so that the server read the storage or built it.
        abandoned: whether its client has disconnected.
        refused: the last thing that was not allowed; ``None`` for none.
    """

    __slots__ = ("_client", "_waits", "abandoned", "id", "refused", "waited")

    def __init__(self, identity: str, client: Client = INTERNAL) -> None:
        self.id = identity
        self.waited = False
        self.abandoned = False
        self.refused: Refusal | None = None
        self._client: Client | None = client
        self._waits: list[Wait] | None = None

    def abandon(self) -> None:
        """Cancel this request's waits for shared work, since its client has disconnected. The work continues."""
        self.abandoned = True
        for wait in tuple(self._waits or ()):
            wait.cancel()

    def track(self, wait: Wait) -> None:
        """Let ``abandon`` cancel a wait until it is done; cancel it now if the client has disconnected already."""
        waits = self._waits = self._waits or []
        waits.append(wait)
        wait.add_done_callback(waits.remove)
        if self.abandoned:
            wait.cancel()

    @property
    def client(self) -> Client:
        """The client that sent the request."""
        return self._client or INTERNAL

    @property
    def address(self) -> str:
        """The address that sent the request, as a client's name; empty if it is not known any more."""
        return self.client.name


class Parties:
    """The clients of a piece of work. Others may join while it runs.

    Attributes:
        clients: without duplicates; the first one started the work.
        awaited: whether a client waits for the result, rather than only for the work to start.
    """

    __slots__ = ("_listeners", "awaited", "clients")

    def __init__(self, client: Client, *, awaited: bool) -> None:
        self.clients: dict[Client, None] = {client: None}
        self.awaited = awaited
        self._listeners: list[Callable[[Parties], None]] = []

    def join(self, others: Parties) -> None:
        """Add other clients, and all that join them later."""
        if others is not self:
            self._add(others)
            others._listeners.append(self._add)

    def on_join(self, listener: Callable[[Parties], None]) -> Callable[[], None]:
        """Call a listener with the parties that join; return a function that removes the listener."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _add(self, others: Parties) -> None:
        if others.clients.keys() <= self.clients.keys() and self.awaited >= others.awaited:
            return
        self.clients.update(others.clients)
        self.awaited = self.awaited or others.awaited
        for listener in tuple(self._listeners):
            listener(self)


class RequestIds:
    """Accepts the id of a client's request, or makes one: a prefix of this process and a number, cheaper than a UUID."""

    def __init__(self) -> None:
        self._prefix = f"{secrets.token_hex(8)}-"
        self._numbers = itertools.count(1)

    def identify(self, given: str | None) -> str:
        """Return the id of a request.

        Args:
            given: its ``X-Request-Id``; ignored unless it is well-formed.
        """
        if given is not None and _WELL_FORMED.fullmatch(given):
            return given
        return f"{self._prefix}{next(self._numbers)}"


# asyncio copies both into tasks and threads that a request starts; so a build has the request that began it.
_current: ContextVar[RequestContext | None] = ContextVar("nixery_request", default=None)
_parties: ContextVar[Parties | None] = ContextVar("nixery_parties", default=None)


def current_request() -> RequestContext | None:
    """Return the request that the running code works for; ``None`` in a command or a timer."""
    return _current.get()


def enter_request(request: RequestContext) -> None:
    """Work for a request from now on, in this task and in those that it starts."""
    _current.set(request)


def track_wait(wait: Wait) -> None:
    """Let the current request abandon a wait for shared work."""
    request = _current.get()
    # Shared work belongs to all of its parties, although its context has the request that began it.
    if request is not None and _parties.get() is None:
        request.track(wait)


def current_parties() -> Parties:
    """Return the clients of the running work: the parties of shared work, or the request's client."""
    parties = _parties.get()
    if parties is None:
        request = _current.get()
        parties = Parties(request.client if request is not None else INTERNAL, awaited=True)
    return parties


def enter_parties(parties: Parties) -> None:
    """Work for these clients from now on, in this task and in those that it starts."""
    _parties.set(parties)
