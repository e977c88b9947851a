from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from nixery.nix.build_log import LOG_TAIL, Building, BuildLog, Fetching, LogLines, NixProgress, ProgressFeed

HASH = "j1d4xcbk0n37j05ij5yzn4vxjrix5ssc"
DERIVATION = f"{HASH}-broken.drv"
OTHER = f"{HASH[::-1]}-top.drv"


def log_of(*events: dict[str, Any] | bytes) -> BuildLog:
    log = BuildLog(on_progress=lambda: None)
    for event in events:
        log.read_line(event if isinstance(event, bytes) else b"@nix " + json.dumps(event).encode())
    return log


def start(derivation: str, activity: int) -> dict[str, Any]:
    return {"action": "start", "id": activity, "type": 105, "fields": [f"/nix/store/{derivation}", "", 1, 1]}


def line(text: str, activity: int) -> dict[str, Any]:
    return {"action": "result", "id": activity, "type": 101, "fields": [text]}


def error(text: str) -> dict[str, Any]:
    return {**forged(text), "raw_msg": text, "file": None, "line": None, "column": None}


def forged(text: str) -> dict[str, Any]:
    """The event that Nix makes of a builder's line ``@nix { "action": "msg", ... }``; it passes on no other fields."""
    return {"action": "msg", "level": 0, "msg": f"\x1b[31;1merror:\x1b[0m {text}"}


def test_a_failed_derivation_is_reported_with_its_last_lines() -> None:
    log = log_of(
        start(DERIVATION, 1),
        *(line(f"line {n}", 1) for n in range(LOG_TAIL + 5)),
        error(f"builder for '\x1b[35;1m/nix/store/{DERIVATION}\x1b[0m' failed with exit code 3"),
    )
    assert log.failed_derivation == DERIVATION
    assert log.log_tail(log.failed_derivation) == tuple(f"line {n}" for n in range(5, LOG_TAIL + 5))
    assert log.summary == "builder failed with exit code 3"


def test_the_wording_of_newer_versions_is_recognised() -> None:
    log = log_of(
        start(DERIVATION, 1),
        error(f"Cannot build '/nix/store/{DERIVATION}'.\n       Reason: builder failed with exit code 3."),
    )
    assert (log.failed_derivation, log.summary) == (DERIVATION, "builder failed with exit code 3.")


def test_a_builder_that_wrote_nothing_has_no_last_lines() -> None:
    silent = log_of(
        start(DERIVATION, 1), error(f"builder for '/nix/store/{DERIVATION}' failed with exit code 3")
    )
    assert silent.log_tail(DERIVATION) == ()
    # Nix has more to say.
    text = f"hash mismatch in fixed-output derivation '/nix/store/{DERIVATION}':\n  specified: a\n  got: b"
    other = log_of(start(DERIVATION, 1), error(text))
    assert other.log_tail(DERIVATION)[1:] == ("  specified: a", "  got: b")


def test_the_derivation_that_failed_first_takes_precedence() -> None:
    log = log_of(
        start(DERIVATION, 1),
        line("cause", 1),
        error(f"1 dependencies of derivation '/nix/store/{OTHER}' failed to build"),
        error(f"builder for '/nix/store/{DERIVATION}' failed"),
    )
    assert (log.failed_derivation, log.log_tail(DERIVATION)) == (DERIVATION, ("cause",))


def test_log_lines_of_parallel_builds_are_kept_apart() -> None:
    log = log_of(
        start(DERIVATION, 1),
        start(OTHER, 2),
        line("mine", 1),
        line("other", 2),
        error(f"builder for '/nix/store/{DERIVATION}' failed"),
    )
    assert log.log_tail(log.failed_derivation) == ("mine",)


def test_without_a_failed_derivation_the_tail_is_that_of_nix() -> None:
    log = log_of(b"something before", error("cannot connect to socket"))
    assert log.failed_derivation is None
    assert log.log_tail(log.failed_derivation) == ("error: cannot connect to socket",)
    assert log.summary == "cannot connect to socket"


def test_malformed_events_are_kept_as_text() -> None:
    log = log_of(b"@nix {not json", b"\xff\xfe", b"@nix []")
    assert log.failed_derivation is None
    assert len(log.log_tail(None)) == 3


def test_output_of_a_builder_does_not_count_as_progress() -> None:
    progress: list[None] = []
    log = BuildLog(on_progress=lambda: progress.append(None))
    log.read_line(b"@nix " + json.dumps(start(DERIVATION, 1)).encode())
    assert len(progress) == 1
    log.read_line(b"@nix " + json.dumps(line("still busy", 1)).encode())
    assert len(progress) == 1


@pytest.mark.parametrize("stopped", [True, False])
def test_a_timeout_without_a_derivation_is_attributed_to_the_slowest_one(*, stopped: bool) -> None:
    clock = iter(range(0, 1000, 10))
    log = BuildLog(on_progress=lambda: None, clock=lambda: next(clock))
    stop = {"action": "stop", "id": 1}
    events = [
        start(DERIVATION, 1),
        start(OTHER, 2),
        {"action": "stop", "id": 2},
        *([stop] if stopped else []),
    ]
    for event in [*events, error("timed out after 2 seconds")]:
        log.read_line(b"@nix " + json.dumps(event).encode())
    assert (log.failed_derivation, log.slowest_derivation) == (None, DERIVATION)


def test_lines_that_are_no_events_are_kept_as_text() -> None:
    # Among them JSON that Python gives up reading.
    for text in (b"@nix [1]", b"@nix {", b"@nix " + b"[" * 200_000):
        assert len(log_of(text).log_tail(None)) == 1


def test_the_state_of_a_large_build_is_bounded() -> None:
    text = "x" * 100_000
    log = log_of(
        *(
            event
            for number in range(2000)
            for event in (start(f"{HASH}-{number}.drv", number), line(text, number), error(text))
        )
    )
    kept = [*log.errors, *(line for number in range(2000) for line in log.log_tail(f"{HASH}-{number}.drv"))]
    assert max(map(len, kept)) <= 2000
    assert len(log.errors) <= 50
    assert len(log._tails) <= 500
    # All derivations were built, and the last ones are still reported.
    assert len(log.built) == 2000
    assert log.log_tail(f"{HASH}-1999.drv") == ("x" * 1999 + "…",)


NO_ROOM = "writing to file: No space left on device"


def test_a_builder_cannot_forge_an_error_of_nix() -> None:
    gone = f"path '/nix/store/{HASH}-gone' is not valid"
    log = log_of(
        start(DERIVATION, 1),
        *(
            forged(text)
            for _ in range(50)
            for text in (NO_ROOM, gone, f"builder for '/nix/store/{OTHER}' failed")
        ),
        # A builder forges a download and a line of a log.
        {"action": "start", "id": 2, "type": 101, "fields": ["http://example.org"]},
        line(f"error: {NO_ROOM}", 2),
        error(f"builder for '/nix/store/{DERIVATION}' failed with exit code 1"),
    )
    assert not log.reports_full_disk
    assert log.errors == (f"error: builder for '/nix/store/{DERIVATION}' failed with exit code 1",)
    assert log.failed_derivation == DERIVATION
    assert log.summary == "builder failed with exit code 1"


@pytest.mark.parametrize("said", [error(NO_ROOM), f"error: {NO_ROOM}".encode()])
def test_a_full_disk_is_recognised_from_an_error_of_nix_itself(said: dict[str, Any] | bytes) -> None:
    assert log_of(said).reports_full_disk


def test_a_failed_dependency_of_a_daemon_is_recognised() -> None:
    log = log_of(
        start(DERIVATION, 1),
        line("cause", 1),
        forged(f"builder for '/nix/store/{DERIVATION}' failed with exit code 1"),
        error(f"1 dependencies of derivation '/nix/store/{OTHER}' failed to build"),
    )
    assert (log.failed_derivation, log.log_tail(log.failed_derivation)) == (DERIVATION, ("cause",))


HELLO = "0" * 32 + "-hello.drv"


def write(log: BuildLog, **event: object) -> None:
    log.read_line(b"@nix " + json.dumps(event).encode())


def read(reported: asyncio.Event | None = None) -> tuple[BuildLog, ProgressFeed, list[NixProgress]]:
    reported_progress: list[NixProgress] = []

    def report(progress: NixProgress) -> None:
        reported_progress.append(progress)
        if reported is not None and isinstance(progress, LogLines):
            reported.set()

    feed = ProgressFeed(report)
    return BuildLog(lambda: None, feed=feed), feed, reported_progress


async def test_progress_is_reported_at_intervals() -> None:
    log, feed, reported_progress = read(reported := asyncio.Event())
    write(log, action="start", id=1, type=105, fields=[f"/nix/store/{HELLO}", "", 1, 1])
    for number in range(3):
        write(log, action="result", id=1, type=101, fields=[f"\x1b[31mline {number}\x1b[0m"])
    assert reported_progress == []
    await asyncio.wait_for(reported.wait(), 60)
    lines = tuple((HELLO, f"line {number}") for number in range(3))
    assert reported_progress == [Building((HELLO,), 0), LogLines(lines)]
    write(log, action="stop", id=1)
    feed.flush()
    assert reported_progress[2:] == [Building((), 1)]


async def test_fetched_bytes_of_all_paths_are_added_up() -> None:
    log, feed, reported_progress = read()
    for activity in (1, 2):
        write(log, action="start", id=activity, type=100, fields=["/nix/store/x", "cache", "local"])
    write(log, action="result", id=1, type=105, fields=[10, 100, 0, 0])
    write(log, action="result", id=2, type=105, fields=[5, 50, 0, 0])
    write(log, action="result", id=1, type=105, fields=[20, 100, 0, 0])
    write(log, action="result", id=7, type=105, fields=[1, 2, 0, 0])  # of something else
    feed.flush()
    assert reported_progress == [Fetching(25, 150)]


async def test_lines_beyond_the_limit_are_dropped_and_counted() -> None:
    log, feed, reported_progress = read()
    for number in range(10_000):
        write(log, action="result", id=1, type=101, fields=[str(number)])
    feed.flush()
    (portion,) = reported_progress
    assert isinstance(portion, LogLines)
    assert (len(portion.lines), portion.dropped) == (100, 9_900)


async def test_without_progress_nothing_is_reported() -> None:
    _, feed, reported_progress = read()
    feed.flush()
    assert reported_progress == []


async def test_nix_says_how_many_paths_and_builders_there_will_be() -> None:
    seen: list[NixProgress] = []
    log = BuildLog(lambda: None, feed=ProgressFeed(seen.append))
    counts = {"action": "result", "type": 105}
    for event in (
        {"action": "start", "id": 1, "type": 102},
        {"action": "start", "id": 2, "type": 104},
        {"action": "start", "id": 3, "type": 103},
        {**counts, "id": 2, "fields": [0, 4, 1, 0]},
        {**counts, "id": 3, "fields": [41, 84, 1, 0]},
        {"action": "result", "id": 1, "type": 106, "fields": [100, 560]},
        {"action": "start", "id": 4, "type": 100, "fields": ["/nix/store/x-a", "", ""]},
        {**counts, "id": 4, "fields": [120, 200, 0, 0]},
        start(DERIVATION, 5),
        {**counts, "id": 2, "fields": [2, 4, 1, 0]},
    ):
        log.read_line(b"@nix " + json.dumps(event).encode())
    log._feed.flush()
    assert seen == [Fetching(120, 560, 41, 84), Building((DERIVATION,), 2, 4)]
    log.read_line(b"@nix " + json.dumps({**counts, "id": 3, "fields": [84, 84, 0, 0]}).encode())
    log._feed.flush()
    assert seen[-1] == Fetching(560, 560, 84, 84)


async def test_a_path_that_no_cache_has_is_not_one_to_fetch() -> None:
    """As Nix 2.8 logs a build without a binary cache."""
    seen: list[NixProgress] = []
    log = BuildLog(lambda: None, feed=ProgressFeed(seen.append))
    for event in (
        {"action": "start", "id": 3, "type": 103},
        {"action": "result", "type": 105, "id": 3, "fields": [0, 1, 0, 0]},
        {"action": "result", "type": 105, "id": 3, "fields": [0, 0, 0, 0]},
    ):
        log.read_line(b"@nix " + json.dumps(event).encode())
    log._feed.flush()
    assert seen == []
