"""Failed log-ins: each failure of an address or a user makes the next attempt wait longer.

No request is delayed: an attempt that comes too early is refused with the time after which to retry. The waits of an
address grow to minutes; those of a user stay short, since strangers can cause them. A user who has logged in from an
address before waits only for failures of this user there, so strangers elsewhere cannot lock that user out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from nixery.caching import LRUCache, TTLCache
from nixery.errors import TooManyFailedLogins

# Bytes of the failures of all addresses, of all users, and of all pairs of both that have logged in: several thousand
# of each.
_CAPACITY = 4 * 1024 * 1024

# Seconds for which a pair counts as one that has logged in.
_REMEMBERED = 30 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class _Rule:
    """How failures are counted.

    Attributes:
        free: failures without a wait.
        longest: seconds of the longest wait; the first one is a second, and each failure doubles it.
        forgotten: seconds after the last failure.
    """

    free: int
    longest: int
    forgotten: float


_OF_ADDRESS = _Rule(free=10, longest=300, forgotten=900.0)
_OF_USER = _Rule(free=5, longest=10, forgotten=300.0)


@dataclass(slots=True)
class _Failures:
    """Failures of one address, user or pair.

    Attributes:
        count: of them.
        last: when the last one was.
        next: when the next attempt is admitted.
    """

    count: int
    last: float
    next: float


class _Counter:
    """Failures by key.

    Args:
        rule: how they are counted.
        clock: seconds; only differences matter.
    """

    def __init__(self, rule: _Rule, clock: Callable[[], float]) -> None:
        self._rule = rule
        self._clock = clock
        self._failures: LRUCache[Hashable, _Failures] = LRUCache(_CAPACITY)

    def wait(self, key: Hashable) -> float:
        """Return the seconds until an attempt is admitted; 0 for now."""
        found = self._current(key)
        return 0.0 if found is None else max(0.0, found.next - self._clock())

    def begin(self, key: Hashable) -> None:
        """Admit an attempt: others wait as if it had failed, so that many at the same time are not one."""
        found = self._current(key)
        if found is not None and found.count >= self._rule.free:
            found.next = self._clock() + self._pause(found.count)

    def fail(self, key: Hashable) -> None:
        """Count a failure."""
        found, now = self._current(key), self._clock()
        count = 1 if found is None else found.count + 1
        size = sum(map(len, key)) if isinstance(key, tuple) else len(str(key))
        self._failures.put(key, _Failures(count, now, now + self._pause(count)), size)

    def forget(self, key: Hashable) -> None:
        """Forget the failures of a key."""
        self._failures.discard(key)

    def _current(self, key: Hashable) -> _Failures | None:
        found = self._failures.get(key)
        return found if found is not None and self._clock() - found.last < self._rule.forgotten else None

    def _pause(self, count: int) -> float:
        beyond = count - self._rule.free
        # Not 2 to the power of any number.
        return 0.0 if beyond < 0 else float(min(self._rule.longest, 2 ** min(beyond, 30)))


class FailedLogins:
    """Slows down attempts to log in, per address and per user. For one thread, and for attempts of this process.

    Args:
        clock: seconds; only differences matter.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._addresses = _Counter(_OF_ADDRESS, clock)
        self._users = _Counter(_OF_USER, clock)
        self._pairs = _Counter(_OF_USER, clock)
        self._known: TTLCache[tuple[str, str], bool] = TTLCache(_CAPACITY, clock)

    def admit(self, address: str, user: str) -> None:
        """Admit an attempt, before the password is checked.

        Args:
            address: name of the client (``request_context.Client``).
            user: as given; it need not exist, and that makes no difference.

        Raises:
            TooManyFailedLogins: it is too early for another attempt.
        """
        counters = self._counters(address, user)
        wait = max(counter.wait(key) for counter, key in counters)
        if wait > 0:
            raise TooManyFailedLogins(math.ceil(wait))
        for counter, key in counters:
            counter.begin(key)

    def failed(self, address: str, user: str) -> None:
        """Count an admitted attempt as a failure."""
        for counter, key in self._counters(address, user):
            counter.fail(key)

    def succeeded(self, address: str, user: str) -> None:
        """Remember that a user logged in from an address.

        The failures of the address and of the user from elsewhere stay: otherwise an attacker's own account, or the
        victim's next log-in, would give free attempts.
        """
        self._known.put((address, user), True, len(address) + len(user), _REMEMBERED)
        self._pairs.forget((address, user))

    def _counters(self, address: str, user: str) -> tuple[tuple[_Counter, Hashable], ...]:
        if self._known.get((address, user)):
            return ((self._pairs, (address, user)),)
        return ((self._addresses, address), (self._users, user))
