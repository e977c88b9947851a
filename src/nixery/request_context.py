"""Which request the running code works for, as logs and traces tell it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class RequestContext:
    """A request that is being answered.

    Attributes:
        id: the client's own or one of ours; safe to be logged and sent back.
        waited: whether the answer was not in memory, so that it was looked for in the store, or built.
    """

    id: str
    waited: bool = False


# What is started for a request, tasks and threads of asyncio, inherits it; so a build carries the request that began it.
_current: ContextVar[RequestContext | None] = ContextVar("nixery_request", default=None)


def current_request() -> RequestContext | None:
    """Return the request that led here, if one did: a command or a timer has none."""
    return _current.get()


def enter_request(request: RequestContext) -> None:
    """Work for a request from now on, in this task and in those that it starts."""
    _current.set(request)
