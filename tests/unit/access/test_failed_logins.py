"""Waits after failed log-ins, by a clock of the test."""

from __future__ import annotations

import tracemalloc

import pytest

from nixery.access import failed_logins
from nixery.access.failed_logins import FailedLogins
from nixery.errors import TooBusy


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logins(clock: Clock) -> FailedLogins:
    return FailedLogins(clock)


def wait(logins: FailedLogins, address: str, user: str) -> int:
    """The seconds that an attempt has to wait; one that is admitted fails."""
    try:
        logins.admit(address, user)
    except TooBusy as error:
        return error.retry_after
    logins.failed(address, user)
    return 0


def attempts(logins: FailedLogins, clock: Clock, address: str, user: str, number: int) -> list[int]:
    """Fail as soon as it is possible; return the waits."""
    waits = []
    for _ in range(number):
        seconds = wait(logins, address, user)
        waits.append(seconds)
        if seconds:
            clock.now += seconds
            assert wait(logins, address, user) == 0
    return waits


def test_the_waits_of_an_address_grow_to_minutes(logins: FailedLogins, clock: Clock) -> None:
    waits = []
    for number in range(25):
        waits += attempts(logins, clock, "192.0.2.1", f"user-{number}", 1)
    assert waits == [0] * 10 + [1, 2, 4, 8, 16, 32, 64, 128, 256] + [300] * 6


def test_the_waits_of_a_user_stay_short(logins: FailedLogins, clock: Clock) -> None:
    waits = []
    for number in range(25):
        waits += attempts(logins, clock, f"192.0.2.{number}", "alice", 1)
    assert waits == [0] * 5 + [1, 2, 4, 8] + [10] * 16


def test_others_do_not_wait(logins: FailedLogins, clock: Clock) -> None:
    attempts(logins, clock, "192.0.2.1", "alice", 20)
    assert wait(logins, "192.0.2.2", "bob") == 0


def test_failures_are_forgotten(logins: FailedLogins, clock: Clock) -> None:
    for number in range(12):
        wait(logins, "192.0.2.1", "alice" if number < 6 else "bob")
    assert (wait(logins, "192.0.2.2", "alice"), wait(logins, "192.0.2.1", "carol")) == (1, 1)
    clock.now += 301
    assert [wait(logins, "192.0.2.2", "alice") for _ in range(5)] == [0] * 5
    clock.now += 600
    assert [wait(logins, "192.0.2.1", f"user-{number}") for number in range(10)] == [0] * 10


def test_a_user_who_logged_in_here_is_not_locked_out_by_strangers(logins: FailedLogins, clock: Clock) -> None:
    logins.admit("192.0.2.1", "alice")
    logins.succeeded("192.0.2.1", "alice")
    for number in range(50):
        attempts(logins, clock, f"198.51.100.{number}", "alice", 1)
    for number in range(12):
        wait(logins, "192.0.2.1", f"user-{number}")
    assert wait(logins, "203.0.113.1", "alice") > 0
    assert wait(logins, "192.0.2.1", "bob") > 0
    logins.admit("192.0.2.1", "alice")
    # Behind one address with the user, a stranger waits as elsewhere, and no longer.
    waits = attempts(logins, clock, "192.0.2.1", "alice", 20)
    assert waits == [0] * 5 + [1, 2, 4, 8] + [10] * 11


def test_an_account_of_the_attacker_gives_no_free_attempts(logins: FailedLogins) -> None:
    waits = []
    for number in range(12):
        waits.append(wait(logins, "192.0.2.1", f"user-{number}"))
        logins.succeeded("192.0.2.1", "attacker")
    assert waits == [0] * 10 + [1, 1]


def test_a_log_in_of_the_user_gives_strangers_no_free_attempts(logins: FailedLogins) -> None:
    assert [wait(logins, f"192.0.2.{number}", "alice") for number in range(5)] == [0] * 5
    logins.succeeded("198.51.100.1", "alice")
    assert wait(logins, "192.0.2.9", "alice") == 1


def test_attempts_at_the_same_time_are_not_one(logins: FailedLogins, clock: Clock) -> None:
    attempts(logins, clock, "192.0.2.1", "alice", 12)
    clock.now += 299
    logins.admit("192.0.2.1", "alice")
    with pytest.raises(TooBusy, match=r"too many log-ins .*; retry in \d+ seconds"):
        logins.admit("192.0.2.1", "alice")


def test_an_attempt_that_is_refused_for_its_address_does_not_delay_the_user(
    logins: FailedLogins, clock: Clock
) -> None:
    for number in range(20):
        attempts(logins, clock, "192.0.2.1", f"user-{number}", 1)
    for number in range(6):
        wait(logins, f"198.51.100.{number}", "alice")
    clock.now += 2
    for _ in range(100):
        assert wait(logins, "192.0.2.1", "alice") > 2
    logins.admit("203.0.113.1", "alice")


def test_memory_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_logins, "_CAPACITY", 128 * 1024)
    logins = FailedLogins(clock)
    tracemalloc.start()
    try:
        for number in range(2000):
            logins.failed(f"2001:db8:{number:x}::/64", f"{number:0256}")
            logins.succeeded(f"2001:db8:{number:x}::/64", f"{number:0256}")
            logins.failed(f"2001:db8:{number:x}::/64", f"{number:0256}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
