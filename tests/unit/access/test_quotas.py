"""Quotas: each limit, for identities and addresses; bounded memory; whom a shared build counts for."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import count

import pytest

from nixery.access.configuration import Quota
from nixery.access.identity import ANONYMOUS, Identity, Kind
from nixery.access.quotas import Quotas
from nixery.errors import QuotaExceeded
from nixery.request_context import INTERNAL, Client

ALICE, BOB = (Identity(Kind.PASSWORD, name, frozenset({"team"})) for name in ("alice", "bob"))
MIB = 1024 * 1024


def client_of(identity: Identity) -> Client:
    return Client(f"user:{identity.name}")


class Server:
    """Quotas, and a clock that a test sets."""

    def __init__(self, *quotas: Quota) -> None:
        self.now = 1000.0
        self.quotas = Quotas(quotas, lambda: self.now)

    def request(self, identity: Identity, address: str = "192.0.2.1") -> QuotaExceeded | None:
        client = Client(address) if identity.is_anonymous else client_of(identity)
        try:
            self.quotas.request(identity, client)
        except QuotaExceeded as error:
            return error
        return None

    def requests(self, identity: Identity, most: int, address: str = "192.0.2.1") -> int:
        """Return how many requests of some are accepted."""
        return sum(self.request(identity, address) is None for _ in range(most))

    def builds(self, clients: Collection[Client], sizes: Collection[int | None]) -> None:
        """Run builds one after the other."""
        for size in sizes:
            self.quotas.admit_build(clients)(size)


def quota(who: str = "everyone", **limits: int) -> Quota:
    return Quota(who=(who,), **limits)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 60, 997, 6007])
def test_requests_are_limited_and_the_limit_frees_up_evenly(limit: int) -> None:
    server = Server(quota(requests_per_minute=limit))
    assert server.requests(ALICE, limit + 5) == limit
    refused = server.request(ALICE)
    assert refused is not None
    assert (
        str(refused)
        == f"quota exceeded: requests a minute are limited to {limit} for this client (requests-per-minute); "
        f"retry in {refused.retry_after} seconds"
    )
    server.now += refused.retry_after
    assert server.request(ALICE) is None
    server.now += 60
    assert server.requests(ALICE, limit + 5) == limit


def test_identities_and_addresses_have_separate_counters() -> None:
    server = Server(quota(requests_per_minute=2))
    assert server.requests(ALICE, 5) == 2
    assert server.requests(BOB, 5) == 2
    assert server.requests(ANONYMOUS, 5, "192.0.2.1") == 2
    assert server.requests(ANONYMOUS, 5, "2001:db8:1:2::/64") == 2
    assert server.request(ALICE) is not None


def test_the_first_quota_that_matches_applies() -> None:
    server = Server(
        quota("user:alice", requests_per_minute=3),
        quota("group:team"),
        quota(requests_per_minute=1),
    )
    assert server.requests(ALICE, 10) == 3
    assert server.requests(BOB, 10) == 10
    assert server.requests(ANONYMOUS, 10) == 1


def test_without_a_quota_nothing_is_counted() -> None:
    server = Server()
    assert server.quotas.is_empty
    assert server.requests(ALICE, 1000) == 1000
    server.builds([client_of(ALICE)], [10**15] * 100)
    assert not server.quotas._identities


def test_a_token_with_other_groups_has_the_counters_of_its_user() -> None:
    server = Server(quota("group:team", requests_per_minute=100), quota(requests_per_minute=10))
    alone = Identity(Kind.OIDC, "alice")
    assert server.requests(ALICE, 60) == 60
    assert server.requests(alone, 1) == 1
    assert server.requests(alone, 10) == 3
    assert server.requests(ALICE, 100) == 0
    assert server.requests(BOB, 200) == 100


def test_other_quotas_apply_at_once_and_what_was_counted_remains() -> None:
    server = Server(quota(requests_per_minute=10))
    assert server.requests(ALICE, 20) == 10
    server.quotas.replace([quota(requests_per_minute=20)])
    assert server.requests(ALICE, 20) == 0
    server.now += 30
    assert server.requests(ALICE, 20) == 10
    server.quotas.replace([])
    assert server.requests(ALICE, 20) == 20


def test_builds_per_hour() -> None:
    server = Server(quota(builds_per_hour=4))
    assert server.request(ALICE) is None
    alice = [client_of(ALICE)]
    server.builds(alice, [0, 0, 10, 10])
    with pytest.raises(
        QuotaExceeded,
        match=r"builds an hour are limited to 4 for this client \(builds-per-hour\); retry in 900 s",
    ):
        server.builds(alice, [0])
    server.now += 900
    server.builds(alice, [0])
    with pytest.raises(QuotaExceeded):
        server.builds(alice, [0])


def test_a_build_that_never_started_is_not_counted() -> None:
    server = Server(quota(builds_per_hour=2, builds_at_once=1))
    assert server.request(ALICE) is None
    alice = [client_of(ALICE)]
    server.builds(alice, [None] * 100)
    server.builds(alice, [0, 0])
    with pytest.raises(QuotaExceeded, match="builds-per-hour"):
        server.builds(alice, [0])


def test_builds_at_once() -> None:
    server = Server(quota(builds_at_once=2))
    assert server.request(ALICE) is None
    alice = [client_of(ALICE)]
    leave = server.quotas.admit_build(alice)
    server.quotas.admit_build(alice)
    with pytest.raises(
        QuotaExceeded, match=r"builds that run or wait are limited to 2 for this client \(builds-at-once\)"
    ):
        server.quotas.admit_build(alice)
    leave(0)
    server.quotas.admit_build(alice)


def test_bytes_per_day_are_known_at_the_end_so_the_last_image_may_exceed_them() -> None:
    server = Server(quota(bytes_per_day=100 * MIB))
    assert server.request(ALICE) is None
    alice = [client_of(ALICE)]
    server.builds(alice, [60 * MIB, 60 * MIB])
    with pytest.raises(
        QuotaExceeded, match=r"images built a day are limited to 100\.0 MiB for this client \(bytes-per-day\)"
    ) as caught:
        server.builds(alice, [0])
    assert caught.value.retry_after == pytest.approx(86_400 * 0.2, abs=2)
    server.now += caught.value.retry_after
    server.builds(alice, [0])


@pytest.mark.parametrize("limit", ["builds_per_hour", "builds_at_once", "bytes_per_day"])
def test_a_limit_of_zero_refuses_all_builds(limit: str) -> None:
    server = Server(quota("everyone", **{limit: 0}))
    assert server.request(ALICE) is None
    with pytest.raises(QuotaExceeded) as caught:
        server.quotas.admit_build([client_of(ALICE)])
    assert caught.value.retry_after > 3600


def test_a_build_counts_for_the_client_that_started_it_or_the_first_with_room() -> None:
    server = Server(quota(builds_per_hour=1))
    alice, bob, address = client_of(ALICE), client_of(BOB), Client("192.0.2.1")
    for identity in (ALICE, BOB, ANONYMOUS):
        assert server.request(identity) is None
    server.builds([alice, bob], [0])
    server.builds([alice, bob, address], [0])
    server.builds([alice, address], [0])
    with pytest.raises(QuotaExceeded):
        server.builds([alice, bob, address], [0])


def test_builds_of_commands_and_timers_are_exempt() -> None:
    server = Server(quota(builds_per_hour=0))
    internal = Identity(Kind.PASSWORD, "internal")
    server.quotas.request(internal, Client("internal"))
    server.builds([INTERNAL], [0] * 10)
    server.builds([INTERNAL, client_of(ALICE)], [0] * 10)
    with pytest.raises(QuotaExceeded):
        server.builds([Client("internal")], [0])


def test_a_build_whose_request_was_evicted_has_the_quota_of_its_address() -> None:
    server = Server(quota("anonymous", builds_per_hour=0))
    with pytest.raises(QuotaExceeded):
        server.builds([Client("192.0.2.1")], [0])


def test_memory_is_bounded_and_addresses_evict_no_identity() -> None:
    server = Server(quota(requests_per_minute=1))
    assert server.requests(ALICE, 2) == 1
    assert server.requests(ANONYMOUS, 2, "192.0.2.1") == 1
    fresh = (f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::/64" for number in count())
    addresses = [next(fresh) for _ in range(60_000)]
    assert all(server.request(ANONYMOUS, address) is None for address in addresses)
    assert 20_000 < len(server.quotas._addresses) < 60_000
    assert server.request(ALICE) is not None
    # The last ones remain; for the first one, somebody needed 20,000 others with unused quotas.
    assert all(server.request(ANONYMOUS, address) is not None for address in addresses[-20_000:])


def test_texts_of_an_identity_count_for_its_size() -> None:
    server = Server(quota(requests_per_minute=1))
    for number in range(2000):
        claims = {f"claim{claim}": "x" * 250 for claim in range(50)}
        server.request(Identity(Kind.OIDC, f"run{number}", claims=claims))
    assert len(server.quotas._identities) < 32 * MIB / (50 * 250)


def test_a_refusal_names_no_other_client() -> None:
    server = Server(quota(builds_per_hour=0))
    for identity in (ALICE, BOB):
        assert server.request(identity) is None
    with pytest.raises(QuotaExceeded) as caught:
        server.quotas.admit_build([client_of(ALICE), client_of(BOB)])
    assert not re.search("alice|bob", str(caught.value))
