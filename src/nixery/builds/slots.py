"""Concurrency limits: a bounded number of running tasks, a bounded queue, fair turns, and retry times."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from nixery.errors import TooBusy
from nixery.request_context import Client, Parties, current_parties

# Recent durations that estimate the next ones.
_SAMPLES = 20

# Seconds of a piece of work, until one has ended.
_DEFAULT_DURATION = 10.0

# Bounds of the retry time, in seconds: clients give up rather than wait for minutes.
_SOONEST, _LATEST = 1, 60


@dataclass(frozen=True, slots=True)
class Share:
    """The most slots, and places in the queue, of one client; ``None`` for all of them."""

    running: int | None = None
    waiting: int | None = None


@dataclass(eq=False, slots=True)
class _Waiting:
    """Work that waits for a slot.

    Attributes:
        turn: done when the work gets a slot.
        on_queued: called with each new position.
        parties: the clients of the work.
        position: the last one that was reported.
        holder: the client whose turn it used.
    """

    turn: asyncio.Future[None]
    on_queued: Callable[[int], None] | None
    parties: Parties
    position: int = 0
    holder: Client | None = None


@dataclass(slots=True)
class _Queue:
    """The waiting work of one client, in order of arrival. Work for several clients is in the queue of each."""

    turn: int
    waiting: dict[_Waiting, None] = field(default_factory=dict)


class Slots:
    """Runs a bounded number of tasks at once, queues a bounded number of others, and rejects the rest.

    A free slot goes to the waiting client that has the fewest; clients with equally many take turns, and the
    work of one client runs in order of arrival. A client is rejected when its own share of the queue is full,
    or when the queue is full and no client has more places than it would have. Otherwise the client with the
    most places loses its newest one; among these, work whose result no request waits for is displaced first.

    For one event loop. A task that holds a slot must not request a second one.

    Args:
        limit: tasks that run at once.
        queue: tasks that may wait.
        clock: seconds; only differences matter.
        busy: the message for clients that the full queue rejects; see ``TooBusy``.
        share: the limits of each client.
    """

    def __init__(
        self,
        limit: int,
        queue: int,
        clock: Callable[[], float] = time.monotonic,
        busy: str = TooBusy.BUILDS,
        share: Share = Share(),
    ) -> None:
        self._limit = limit
        self._queue = queue
        self._clock = clock
        self._busy = busy
        self._most_running = limit if share.running is None else share.running
        self._most_waiting = queue if share.waiting is None else share.waiting
        # All waiting work in order of arrival, and by client; a client without waiting work has no queue.
        self._waiting: dict[_Waiting, None] = {}
        self._queues: dict[Client, _Queue] = {}
        self._turns = count()
        self._running: Counter[Client] = Counter()
        self._begun: dict[object, float] = {}
        self._durations: deque[float] = deque(maxlen=_SAMPLES)
        # Whether any caller wants positions: computing them takes time in proportion to the queue.
        self._reports_positions = False

    @asynccontextmanager
    async def slot(self, on_queued: Callable[[int], None] | None = None) -> AsyncIterator[None]:
        """Wait for a slot, and hold it during the context. It counts for one of the clients of the running work.

        Args:
            on_queued: called with the position in the queue, from 1, whenever it changes; not called if a
                slot is free.

        Raises:
            TooBusy: the queue is full, or another client displaced this work.
        """
        holder = await self._acquire(on_queued)
        key = object()
        self._begun[key] = self._clock()
        try:
            yield
        finally:
            self._durations.append(self._clock() - self._begun.pop(key))
            self._release(holder)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Like ``slot``, for work that blocks the event loop for milliseconds and awaits nothing.

        The work begins after all earlier requests are in the queue or rejected. Otherwise they would wait for
        the event loop itself, where clients have no shares and requests of disconnected clients remain.

        Raises:
            TooBusy: as ``slot``.
        """
        async with self.slot():
            await asyncio.sleep(0)
            yield

    @property
    def retry_after(self) -> int:
        """Estimated seconds until the waiting work is done, between 1 and 60."""
        return max(_SOONEST, min(_LATEST, math.ceil(self._estimate(len(self._waiting) + 1))))

    def wait(self, position: int) -> float | None:
        """Return the estimated seconds until work at a position in the queue has a slot; ``None`` if no work has ended."""
        return self._estimate(position) if self._durations else None

    def _estimate(self, turns: int) -> float:
        now = self._clock()
        ended, ages = self._durations, [now - begin for begin in self._begun.values()]
        usual = sum(ended) / len(ended) if ended else _DEFAULT_DURATION
        # Work that has run for longer than usual is estimated to take as long again.
        return max(usual, sum(ages) / len(ages) if ages else 0) * turns / self._limit

    async def _acquire(self, on_queued: Callable[[int], None] | None) -> Client:
        parties = current_parties()
        client = min(parties.clients, key=self._running.__getitem__)
        if self._running.total() < self._limit and self._running[client] < self._most_running:
            self._running[client] += 1
            return client
        self._make_room(parties)
        self._reports_positions |= on_queued is not None
        waiting = _Waiting(asyncio.get_running_loop().create_future(), on_queued, parties)
        self._waiting[waiting] = None
        self._enter_queues(waiting)
        stop_listening = parties.on_join(lambda _: self._joined(waiting))
        try:
            self._report_positions()
            await waiting.turn
        except asyncio.CancelledError:
            if waiting.holder is not None:
                self._release(waiting.holder)  # it had got a slot when it was cancelled
            else:
                self._leave(waiting)
                self._report_positions()
            raise
        finally:
            stop_listening()
        if waiting.holder is None:
            raise AssertionError("a slot was given without a holder")
        return waiting.holder

    def _make_room(self, parties: Parties) -> None:
        """Make room for another entry in the queue.

        Raises:
            TooBusy: the queue is full.
        """
        fewest = min(self._count(client) for client in parties.clients)
        if fewest >= self._most_waiting < self._queue:
            raise TooBusy(self._limit, fewest, self.retry_after, TooBusy.SHARE)
        if len(self._waiting) < self._queue:
            return
        displaced = self._displaced_by(fewest)
        if displaced is None:
            raise TooBusy(self._limit, len(self._waiting), self.retry_after, self._busy)
        self._leave(displaced)
        displaced.turn.set_exception(
            TooBusy(self._limit, len(self._waiting), self.retry_after, TooBusy.DISPLACED)
        )
        displaced.turn.exception()  # marks it as retrieved: its waiter may be cancelled first

    def _displaced_by(self, have: int) -> _Waiting | None:
        """Choose work to displace for a client with some places; it must not end up with more than those that lose one."""
        candidates = [
            (least, not waiting.parties.awaited, number, waiting)
            for number, waiting in enumerate(self._waiting)
            if not waiting.turn.done()
            and (least := min(map(self._count, self._clients(waiting)), default=0)) > have + 1
        ]
        return max(candidates, key=lambda candidate: candidate[:3])[3] if candidates else None

    def _enter_queues(self, waiting: _Waiting) -> None:
        for client in waiting.parties.clients:
            # Joining takes no place in the queue; but if a client's queue is full, work that it joins is not
            # added.
            if self._count(client) < self._most_waiting:
                queue = self._queues.get(client)
                if queue is None:
                    queue = self._queues[client] = _Queue(next(self._turns))
                queue.waiting[waiting] = None

    def _joined(self, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            self._enter_queues(waiting)
            self._dispatch()

    def _leave(self, waiting: _Waiting) -> None:
        self._waiting.pop(waiting, None)
        for client in waiting.parties.clients:
            queue = self._queues.get(client)
            if queue is not None and waiting in queue.waiting:
                del queue.waiting[waiting]
                if not queue.waiting:
                    del self._queues[client]

    def _release(self, holder: Client) -> None:
        self._running[holder] -= 1
        if not self._running[holder]:
            del self._running[holder]
        if holder in self._queues:
            # It was this client's turn until now, so clients that arrived meanwhile come first.
            self._queues[holder].turn = next(self._turns)
        self._dispatch()

    def _dispatch(self) -> None:
        """Give free slots to waiting work at once, so that new arrivals cannot overtake it."""
        while self._running.total() < self._limit:
            found = next(self._in_order(), None)
            if found is None:
                break
            waiting, client = found
            queue = self._queues[client]
            queue.turn = next(self._turns)
            self._leave(waiting)
            if not waiting.turn.done():
                waiting.holder = client
                self._running[client] += 1
                waiting.turn.set_result(None)
        self._report_positions()

    def _in_order(self, *, beyond_share: bool = False) -> Iterator[tuple[_Waiting, Client]]:
        """Yield waiting work in order, with the client whose turn it uses, as if no task ended meanwhile.

        Args:
            beyond_share: whether to include clients that have all slots of their share.
        """
        seen: set[_Waiting] = set()
        turns = [
            (self._running[client], queue.turn, client.name, client, iter(queue.waiting))
            for client, queue in self._queues.items()
            if beyond_share or self._running[client] < self._most_running
        ]
        heapq.heapify(turns)
        while turns:
            had, turn, name, client, queue_ = turns[0]
            waiting = next((one for one in queue_ if one not in seen), None)
            if waiting is None:
                heapq.heappop(turns)
                continue
            seen.add(waiting)
            yield waiting, client
            heapq.heapreplace(turns, (had + 1, turn, name, client, queue_))

    def _report_positions(self) -> None:
        if not self._reports_positions:
            return
        order: Iterable[tuple[_Waiting, Client]] = list(self._in_order(beyond_share=True))
        for position, (waiting, _) in enumerate(order, start=1):
            if waiting.position != position and not waiting.turn.done():
                waiting.position = position
                if waiting.on_queued is not None:
                    waiting.on_queued(position)

    def _clients(self, waiting: _Waiting) -> Iterator[Client]:
        return (
            client
            for client in waiting.parties.clients
            if client in self._queues and waiting in self._queues[client].waiting
        )

    def _count(self, client: Client) -> int:
        queue = self._queues.get(client)
        return len(queue.waiting) if queue is not None else 0
