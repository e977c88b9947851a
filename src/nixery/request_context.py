"""Which request, and which clients, the running code works for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Client:
    """A client, as far as shares, bounds and logs are concerned.

    Without authentication that is an address; an authenticated identity would take its place here, and nowhere else.

    Attributes:
        name: ``192.0.2.7``, or the network of an IPv6 address, ``2001:db8:1:2::/64``.
    """

    name: str


# Commands, timers and whatever else no client has asked for.
INTERNAL = Client("internal")


class Wait(Protocol):
    """What a request waits for; an ``asyncio.Future`` is one."""

    def cancel(self) -> bool:
        """End the wait, and not what is waited for."""
        ...


class RequestContext:
    """A request that is being answered.

    Attributes:
        id: a trusted proxy's own or one of ours; safe to be logged and sent back.
        waited: whether the answer was not in memory, so that it was looked for in the store, or built.
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
        """Stop waiting for what others do for it, since nobody is there to be answered. Nothing else is broken off."""
        self.abandoned = True
        for wait in tuple(self._waits or ()):
            wait.cancel()

    @contextmanager
    def waiting(self, wait: Wait) -> Iterator[None]:
        """Wait for something that may be left at any time."""
        self._waits = self._waits or []
        self._waits.append(wait)
        try:
            yield
        finally:
            self._waits.remove(wait)

    @property
    def client(self) -> Client:
        """The client that asks."""
        return self._client or INTERNAL


class Parties:
    """The clients that a piece of work is done for. There may be more of them while it goes on, since others join it.

    Attributes:
        clients: each of them once; the first one began the work.
        awaited: whether a client waits for the work, rather than for the news that it has begun.
    """

    __slots__ = ("_listeners", "awaited", "clients")

    def __init__(self, client: Client, *, awaited: bool) -> None:
        self.clients: dict[Client, None] = {client: None}
        self.awaited = awaited
        self._listeners: list[Callable[[Parties], None]] = []

    def join(self, others: Parties) -> None:
        """Do the work for others as well, and for all who join theirs."""
        if others is not self:
            self._add(others)
            others._listeners.append(self._add)

    def on_join(self, listener: Callable[[Parties], None]) -> Callable[[], None]:
        """Call a listener with the parties that join; return a function that ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _add(self, others: Parties) -> None:
        if others.clients.keys() <= self.clients.keys() and self.awaited >= others.awaited:
            return
        self.clients.update(others.clients)
        self.awaited = self.awaited or others.awaited
        for listener in tuple(self._listeners):
            listener(self)


# What is started for a request, tasks and threads of asyncio, inherits both; so a build carries the request that began it.
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
    """Wait for work that is done for others as well: whoever asks for it may leave."""
    request = _current.get()
    # What is inside of such work belongs to all of its parties, though it knows the request that began it.
    if request is None or _parties.get() is not None:
        yield
    else:
        with request.waiting(wait):
            yield


def current_parties() -> Parties:
    """Return whom the running code works for: those who joined the same piece of work, or the client of the request alone."""
    parties = _parties.get()
    if parties is None:
        request = _current.get()
        parties = Parties(request.client if request is not None else INTERNAL, awaited=True)
    return parties


def enter_parties(parties: Parties) -> None:
    """Work for these clients from now on, in this task and in those that it starts."""
    _parties.set(parties)
