"""Waiting for an event loop without fixed delays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeVar

Result = TypeVar("Result")

# Seconds for a condition that holds within milliseconds.
_TIMEOUT = 10


async def settle() -> None:
    """Run everything that can run without a thread, a process or a timer."""
    for _ in range(20):
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, for files and threads without notifications."""
    async with asyncio.timeout(_TIMEOUT):
        while not condition():  # noqa: ASYNC110 -- as above
            await asyncio.sleep(0.01)


async def until_done(futures: Iterable[asyncio.Future[Result]], count: int) -> set[asyncio.Future[Result]]:
    """Wait until some of the futures are done; return these."""
    pending = set(futures)
    done: set[asyncio.Future[Result]] = set()
    async with asyncio.timeout(_TIMEOUT):
        while len(done) < count:
            ended, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            done |= ended
    return done
