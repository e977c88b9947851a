"""Limits on the log lines that a client may cause."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import cachetools
import structlog

from nixery.request_context import Client, current_request

# Lines of a burst, and lines a second after it: for one client, and for all together. A pull that builds an
# image logs about four.
_BURST, _RATE = 200, 20.0
_ALL_BURST, _ALL_RATE = 2000, 200.0

# Clients in memory, the most recent ones.
_CLIENTS = 1024

# Seconds between summaries, and clients that one lists.
_PERIOD = 10.0
_MOST_NAMED_CLIENTS = 10

# Warnings and errors have a separate budget, so that a client cannot hide an attack behind harmless
# lines.
_WARNING_METHODS = frozenset({"warning", "warn", "error", "exception", "critical", "fatal"})

_OTHERS = Client("others")

_log = structlog.get_logger("nixery.log")


@dataclass(slots=True)
class _Bucket:
    """A token bucket of lines: at most ``burst``, and ``rate`` more each second."""

    burst: float
    rate: float
    lines: float
    filled: float

    def take(self, now: float) -> bool:
        self.lines = min(self.burst, self.lines + (now - self.filled) * self.rate)
        self.filled = now
        if self.lines < 1:
            return False
        self.lines -= 1
        return True


class LogBudget:
    """A structlog processor that drops lines of clients that cause too many, and reports how many it dropped.

    Lines that no client caused always pass. Thread-safe.

    Args:
        clock: seconds; only differences matter.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: cachetools.LRUCache[tuple[Client, bool], _Bucket] = cachetools.LRUCache(2 * _CLIENTS)
        self._all = {
            is_warning: _Bucket(_ALL_BURST, _ALL_RATE, _ALL_BURST, clock()) for is_warning in (False, True)
        }
        self._suppressed: Counter[Client] = Counter()
        self._is_scheduled = False

    def __call__(
        self,
        logger: object,  # noqa: ARG002 -- structlog's
        method: str,
        event: MutableMapping[str, Any],
    ) -> MutableMapping[str, Any]:
        """Pass a line on.

        Raises:
            DropEvent: the budget is spent.
        """
        request = current_request()
        if request is None:
            return event
        with self._lock:
            if self._admit(request.client, method in _WARNING_METHODS):
                return event
            known = request.client in self._suppressed or len(self._suppressed) < _CLIENTS
            self._suppressed[request.client if known else _OTHERS] += 1
            if not self._is_scheduled:
                # Timers need the event loop, not a thread; a later line from the loop starts this one.
                with suppress(RuntimeError):
                    asyncio.get_running_loop().call_later(_PERIOD, self.summarise, context=Context())
                    self._is_scheduled = True
        raise structlog.DropEvent

    def summarise(self) -> None:
        """Log how many lines were dropped, by client."""
        with self._lock:
            suppressed, self._suppressed = self._suppressed, Counter()
            self._is_scheduled = False
        rest = suppressed.total()
        del suppressed[_OTHERS]
        for client, lines in suppressed.most_common(_MOST_NAMED_CLIENTS):
            _log.warning("log lines suppressed", client=client.name, lines=lines)
            rest -= lines
        if rest:
            _log.warning("log lines suppressed", client=_OTHERS.name, lines=rest)

    def _admit(self, client: Client, is_warning: bool) -> bool:  # noqa: FBT001 -- a part of the key
        now = self._clock()
        key = (client, is_warning)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(_BURST, _RATE, _BURST, now)
        return bucket.take(now) and self._all[is_warning].take(now)
