"""How much goes on at once, how much may wait, and when it is worth coming back."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from nixery.errors import TooBusy

# So many pieces of work say how long the next ones are likely to take.
_REMEMBERED = 20

# Seconds that one takes as long as none has ended.
_GUESS = 10.0

# Seconds after which it is worth asking again, whatever the estimate says: clients give up rather than wait for minutes.
_SOONEST, _LATEST = 1, 60


@dataclass(eq=False, slots=True)
class _Waiting:
    turn: asyncio.Future[None]
    tell: Callable[[int], None]


class Slots:
    """Lets so many pieces of work go on at once, lets so many others wait for their turn, and sends the rest away.

    Whoever came first is first. For one event loop. Who holds a slot must not ask for a second one.

    Args:
        limit: how many go on at once.
        queue: how many may wait.
        clock: seconds; only differences matter.
        busy: what those are told who are sent away; see ``TooBusy``.
    """

    def __init__(
        self,
        limit: int,
        queue: int,
        clock: Callable[[], float] = time.monotonic,
        busy: str = TooBusy.BUILDS,
    ) -> None:
        self._limit = limit
        self._queue = queue
        self._clock = clock
        self._busy = busy
        self._waiting: deque[_Waiting] = deque()
        self._begun: dict[object, float] = {}
        self._taken = 0
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)

    @asynccontextmanager
    async def slot(self, on_queued: Callable[[int], None] = lambda _: None) -> AsyncIterator[None]:
        """Wait for a slot, and have it while the context lasts.

        Args:
            on_queued: told the position in the queue, from 1, whenever it changes; not at all if there is no need to wait.

        Raises:
            TooBusy: too many wait already.
        """
        await self._acquire(on_queued)
        key = object()
        self._begun[key] = self._clock()
        try:
            yield
        finally:
            self._durations.append(self._clock() - self._begun.pop(key))
            self._release()

    @property
    def retry_after(self) -> int:
        """Seconds until what waits now is likely to be done, between 1 and 60."""
        now = self._clock()
        ended, ages = self._durations, [now - begin for begin in self._begun.values()]
        usual = sum(ended) / len(ended) if ended else _GUESS
        # What goes on for longer than usual has as much again before it, as far as anybody knows.
        estimate = max(usual, sum(ages) / len(ages) if ages else 0) * (len(self._waiting) + 1) / self._limit
        return max(_SOONEST, min(_LATEST, math.ceil(estimate)))

    async def _acquire(self, on_queued: Callable[[int], None]) -> None:
        if self._taken < self._limit:
            self._taken += 1
            return
        if len(self._waiting) >= self._queue:
            raise TooBusy(self._limit, len(self._waiting), self.retry_after, self._busy)
        waiting = _Waiting(asyncio.get_running_loop().create_future(), on_queued)
        self._waiting.append(waiting)
        on_queued(len(self._waiting))
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled():
                self._release()  # it was this one's turn, and nobody is here to take it
            else:
                with suppress(
                    ValueError
                ):  # somebody gave his slot up, and saw before we did that nobody is here
                    self._waiting.remove(waiting)
                self._tell_positions()
            raise

    def _release(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.turn.done():
                # Handed on rather than given back, so that nobody who comes now is quicker than who has waited.
                waiting.turn.set_result(None)
                self._tell_positions()
                return
        self._taken -= 1

    def _tell_positions(self) -> None:
        for position, waiting in enumerate(self._waiting, start=1):
            waiting.tell(position)
