"""Context variables: the request, and the clients, that the running code works for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Client:
    """A client, as shares, bounds and logs see it.

    Without authentication that is an address; an authenticated identity would replace it in this class alone.

    Attributes:
        name: ``192.0.2.7``, or the network of an IPv6 address, ``2001:db8:1:2::/64``.
    """

    name: str


# Commands, timers and other work that no client requested.
INTERNAL = Client("internal")


class Wait(Protocol):
    """A cancellable wait of a request; an ``asyncio.Future`` is one."""

    def cancel(self) -> bool:
        """Cancel the wait, but not the awaited work."""
        ...


class RequestContext:
    """A request in progress.

    Attributes:
        id: from a trusted proxy, or generated; safe to log and to send back.
        waited: whether the answer was not in memory, so that the server read the store for it, or built it.
        abandoned: whether its client has gone.
    """

    __slots__ = ("_client", "_waits", "abandoned", "id", "waited")

    def __init__(self, identity: str, client: Client = INTERNAL) -> None:
        self.id = identity
        self.waited = False
        self.abandoned = False
        self._client: Client | None = client
        self._waits: list[Wait] | None = None

    def abandon(self) -> None:
        """Cancel this request's waits for shared work, since its client has gone. Other work continues."""
        self.abandoned = True
        for wait in tuple(self._waits or ()):
            wait.cancel()

    @contextmanager
    def waiting(self, wait: Wait) -> Iterator[None]:
        """Wait for something, and let ``abandon`` cancel the wait."""
        self._waits = self._waits or []
        self._waits.append(wait)
        try:
            yield
        finally:
            self._waits.remove(wait)

    @property
    def client(self) -> Client:
        """The client that sent the request."""
        return self._client or INTERNAL


class Parties:
    """The clients that a piece of work is done for. Others may join while it runs.

    Attributes:
        clients: each of them once; the first one began the work.
        awaited: whether a client waits for the result, rather than for the confirmation that the work began.
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


# asyncio copies both into tasks and threads that a request starts; so a build has the request that began it.
_current: ContextVar[RequestContext | None] = ContextVar("nixery_request", default=None)
_parties: ContextVar[Parties | None] = ContextVar("nixery_parties", default=None)


def current_request() -> RequestContext | None:
    """Return the request that led here, if one did: a command or a timer has none."""
    return _current.get()


def enter_request(request: RequestContext) -> None:
    """Work for a request from now on, in this task and in those that it starts."""
    _current.set(request)


@contextmanager
def waiting_for(wait: Wait) -> Iterator[None]:
    """Wait for work that is done for other requests as well: each of them may stop waiting."""
    request = _current.get()
    # Shared work belongs to all of its parties, although its context has the request that began it.
    if request is None or _parties.get() is not None:
        yield
    else:
        with request.waiting(wait):
            yield


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
