"""Quotas: how many requests and builds an identity, or an anonymous address, may cause in some time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence

from nixery.access.configuration import Quota
from nixery.access.identity import ANONYMOUS, Identity
from nixery.access.policy import is_member
from nixery.access.shared_usage import SharedUsage
from nixery.builds.coordinator import Leave
from nixery.caching import LRUCache
from nixery.errors import QuotaExceeded
from nixery.request_context import INTERNAL, Client

# Bytes of the counters of anonymous addresses, and as many of identities: some 30,000 of each.
_CAPACITY = 32 * 1024 * 1024

# Bytes of one's counters, without the texts of its identity.
_SIZE = 512

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400

# Seconds after which a client retries that has as many builds at once as it may have: how long they take is unknown.
_UNTIL_A_BUILD_ENDS = 30

# Seconds by which sums of floating-point numbers may be wrong. Without it, a bucket of 7 would hold 6.
_ROUNDING = 1e-6


class _Bucket:
    """A leaky bucket. It is full after as much as the limit, and drains evenly, within the limit's time.

    Its content is kept as the time at which it will be empty: one number, which stays right if the limit changes.
    """

    __slots__ = ("_empty_at",)

    def __init__(self) -> None:
        self._empty_at = -math.inf

    def seconds_until_room(self, now: float, window: float, room: float) -> float:
        """Return the seconds until the bucket has room; at most 0 if it has. ``room`` is in seconds of draining."""
        return self._empty_at - now - (window - room) - _ROUNDING

    def fill(self, now: float, seconds: float) -> None:
        """Add what takes some seconds to drain, also beyond the limit. Negative seconds take it out again."""
        self._empty_at = max(self._empty_at, now) + seconds


class _Usage:
    """The counters of one identity or address.

    Attributes:
        identity: the last one; the same user may have tokens with different groups.
        quotas: of which ``quota`` was chosen.
        quota: that applies; ``None`` if none does.
        requests: of a minute.
        builds: of an hour.
        size: compressed bytes of a day.
        running: builds that run or wait.
    """

    __slots__ = ("builds", "identity", "quota", "quotas", "requests", "running", "size")

    def __init__(self) -> None:
        self.requests, self.builds, self.size = _Bucket(), _Bucket(), _Bucket()
        self.running = 0
        self.identity = ANONYMOUS
        self.quotas: tuple[Quota, ...] = ()
        self.quota: Quota | None = None

    def choose(self, quotas: tuple[Quota, ...], identity: Identity) -> None:
        """Apply the first quota that is for an identity."""
        self.identity, self.quotas = identity, quotas
        self.quota = next(
            (quota for quota in quotas if any(is_member(identity, term) for term in quota.who)), None
        )

    def count(self, quota: Quota, now: float, builds: int = 0, size: int = 0) -> None:
        """Count builds and compressed bytes, at a time that may have passed. A negative number takes them back."""
        if quota.builds_per_hour and builds:
            self.builds.fill(now, builds * _HOUR / quota.builds_per_hour)
        if quota.bytes_per_day and size:
            self.size.fill(now, size * _DAY / quota.bytes_per_day)


class Quotas:
    """Counts requests and builds, and refuses those beyond the quotas. For one event loop, and one process.

    Memory is bounded: the counters of the identity, or address, that has sent nothing for the longest are evicted, and
    begin anew. That is no way around a quota. Only identities evict identities, and only addresses evict addresses; so
    a client has to send requests as some 30,000 others, each of which has an unused quota of its own.

    Args:
        quotas: in their order; the first that matches an identity applies.
        clock: seconds; only differences matter.
        shared: with which builds and bytes are counted for all servers of a storage together; ``None`` to count for this
            process alone, as requests and builds at once are.
    """

    def __init__(
        self,
        quotas: Sequence[Quota] = (),
        clock: Callable[[], float] = time.monotonic,
        shared: SharedUsage | None = None,
    ) -> None:
        self._quotas = tuple(quotas)
        self._clock = clock
        self._shared = shared
        self._identities: LRUCache[str, _Usage] = LRUCache(_CAPACITY)
        self._addresses: LRUCache[str, _Usage] = LRUCache(_CAPACITY)

    @property
    def is_empty(self) -> bool:
        """Whether there are no quotas, so that requests need not be counted."""
        return not self._quotas

    def replace(self, quotas: Sequence[Quota]) -> None:
        """Apply other quotas from now on. What was counted before counts for them."""
        self._quotas = tuple(quotas)

    async def refresh(self) -> None:
        """Learn what other servers have counted; see ``SharedUsage.refresh``."""
        if self._shared is not None and any(map(_is_shared, self._quotas)):
            await self._shared.refresh()

    async def close(self) -> None:
        """Have the other servers learn what was counted here."""
        if self._shared is not None:
            await self._shared.close()

    def request(self, identity: Identity, client: Client) -> None:
        """Count a request. Every request comes here first: its builds count for the identity that it had here.

        Args:
            identity: of the request.
            client: the key of the counters, and of shares. Two identities have different clients.

        Raises:
            QuotaExceeded: the request is one too many.
        """
        if not self._quotas:
            return
        usage = self._usage(identity, client)
        limit = usage.quota.requests_per_minute if usage.quota is not None else None
        if limit is None:
            return
        now, one = self._clock(), _MINUTE / limit
        missing = usage.requests.seconds_until_room(now, _MINUTE, one)
        if missing > 0:
            raise QuotaExceeded(QuotaExceeded.REQUESTS, limit, math.ceil(missing))
        usage.requests.fill(now, one)

    def admit_build(self, clients: Collection[Client]) -> Leave:
        """Count a build that is about to start or to be queued, for the first of its clients whose quota has room.

        Args:
            clients: that request the image, the one that asked first before the others. A build of a command or a
                timer counts for none of them.

        Returns:
            A function to call once when the build has ended. A build that never started is not counted.

        Raises:
            QuotaExceeded: none of the clients may start a build now; the error is the first one's.
        """
        if not self._quotas or any(client is INTERNAL for client in clients):
            return _nothing
        refused: QuotaExceeded | None = None
        for client in clients:
            try:
                return self._admit(client)
            except QuotaExceeded as error:
                refused = refused or error
        if refused is None:
            return _nothing
        raise refused

    def _admit(self, client: Client) -> Leave:
        usage = self._identities.get(client.name) or self._addresses.get(client.name)
        if usage is None or usage.quotas is not self._quotas:
            # Evicted since its request, or the quotas were replaced.
            usage = self._usage(usage.identity if usage is not None else ANONYMOUS, client)
        quota = usage.quota
        if quota is None:
            return _nothing
        now = self._clock()
        shared = self._shared if _is_shared(quota) else None
        for age, builds, size in shared.take(client.name) if shared is not None else ():
            usage.count(quota, now - age, builds, size)
        _require_room(usage, quota, now)
        usage.running += 1

        def count(builds: int, size: int) -> None:
            usage.count(quota, self._clock(), builds, size)
            builds, size = builds if quota.builds_per_hour else 0, size if quota.bytes_per_day else 0
            if shared is not None and (builds or size):
                shared.note(client.name, builds, size)

        def leave(size: int | None) -> None:
            usage.running -= 1
            count(-1 if size is None else 0, size or 0)

        count(1, 0)
        return leave

    def _usage(self, identity: Identity, client: Client) -> _Usage:
        """Return the counters of a client, with the quota that is for its identity."""
        table = self._addresses if identity.is_anonymous else self._identities
        usage = table.get(client.name)
        if usage is None:
            usage = _Usage()
        elif usage.quotas is self._quotas and (usage.identity is identity or usage.identity == identity):
            return usage
        usage.choose(self._quotas, identity)
        table.put(client.name, usage, _SIZE + len(client.name) + _size(identity))
        return usage


def _is_shared(quota: Quota) -> bool:
    """Whether a quota has limits that hold for all servers of a storage together."""
    return quota.builds_per_hour is not None or quota.bytes_per_day is not None


def _require_room(usage: _Usage, quota: Quota, now: float) -> None:
    """Check that another build may start.

    Raises:
        QuotaExceeded: it may not.
    """
    limit = quota.builds_at_once
    if limit is not None and usage.running >= limit:
        raise QuotaExceeded(QuotaExceeded.AT_ONCE, limit, _UNTIL_A_BUILD_ENDS if limit else _DAY)
    limit = quota.builds_per_hour
    if limit is not None:
        missing = usage.builds.seconds_until_room(now, _HOUR, _HOUR / limit) if limit else _DAY
        if missing > 0:
            raise QuotaExceeded(QuotaExceeded.BUILDS, limit, math.ceil(missing))
    limit = quota.bytes_per_day
    if limit is not None:
        # Its size is known at its end only: the last image may exceed the limit, and later ones wait for longer.
        missing = usage.size.seconds_until_room(now, _DAY, 0) if limit else _DAY
        if missing >= 0:
            raise QuotaExceeded(QuotaExceeded.BYTES, limit, math.ceil(missing) + 1)


def _size(identity: Identity) -> int:
    """Return the bytes of the texts of an identity, roughly."""
    texts = (identity.name, *identity.groups, *identity.claims.keys(), *identity.claims.values())
    return sum(len(text) + 64 for text in texts)


def _nothing(_: int | None) -> None:
    """End the admission of a build that no quota is for."""
