import json
from typing import Any

import pytest

from nixery.nix.build_log import LOG_TAIL, BuildLog

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
    """What becomes of a builder's line ``@nix { "action": "msg", ... }``: Nix passes on no other fields."""
    return {"action": "msg", "level": 0, "msg": f"\x1b[31;1merror:\x1b[0m {text}"}


def test_tells_what_failed_and_its_last_lines() -> None:
    log = log_of(
        start(DERIVATION, 1),
        *(line(f"line {n}", 1) for n in range(LOG_TAIL + 5)),
        error(f"builder for '\x1b[35;1m/nix/store/{DERIVATION}\x1b[0m' failed with exit code 3"),
    )
    assert log.failed_derivation == DERIVATION
    assert log.log_tail(log.failed_derivation) == tuple(f"line {n}" for n in range(5, LOG_TAIL + 5))
    assert log.summary == f"builder for '/nix/store/{DERIVATION}' failed with exit code 3"


def test_the_newer_wording_is_understood() -> None:
    log = log_of(
        start(DERIVATION, 1),
        error(f"Cannot build '/nix/store/{DERIVATION}'.\n       Reason: builder failed with exit code 3."),
    )
    assert (log.failed_derivation, log.summary) == (DERIVATION, "builder failed with exit code 3.")


def test_the_cause_goes_before_what_depends_on_it() -> None:
    log = log_of(
        start(DERIVATION, 1),
        line("cause", 1),
        error(f"1 dependencies of derivation '/nix/store/{OTHER}' failed to build"),
        error(f"builder for '/nix/store/{DERIVATION}' failed"),
    )
    assert (log.failed_derivation, log.log_tail(DERIVATION)) == (DERIVATION, ("cause",))


def test_lines_of_builds_that_run_side_by_side_stay_apart() -> None:
    log = log_of(
        start(DERIVATION, 1),
        start(OTHER, 2),
        line("mine", 1),
        line("other", 2),
        error(f"builder for '/nix/store/{DERIVATION}' failed"),
    )
    assert log.log_tail(log.failed_derivation) == ("mine",)


def test_without_a_derivation_nix_speaks_for_itself() -> None:
    log = log_of(b"something before", error("cannot connect to socket"))
    assert log.failed_derivation is None
    assert log.log_tail(log.failed_derivation) == ("error: cannot connect to socket",)
    assert log.summary == "cannot connect to socket"


def test_rubbish_is_kept_as_text() -> None:
    log = log_of(b"@nix {not json", b"\xff\xfe", b"@nix []")
    assert log.failed_derivation is None
    assert len(log.log_tail(None)) == 3


def test_a_builders_output_is_no_progress() -> None:
    progress: list[None] = []
    log = BuildLog(on_progress=lambda: progress.append(None))
    log.read_line(b"@nix " + json.dumps(start(DERIVATION, 1)).encode())
    assert len(progress) == 1
    log.read_line(b"@nix " + json.dumps(line("still busy", 1)).encode())
    assert len(progress) == 1


@pytest.mark.parametrize("stopped", [True, False])
def test_a_time_out_that_names_nobody_is_the_slowest_ones(*, stopped: bool) -> None:
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


def test_lines_that_are_no_events_are_text() -> None:
    # Among them JSON that Python gives up reading.
    for text in (b"@nix [1]", b"@nix {", b"@nix " + b"[" * 200_000):
        assert len(log_of(text).log_tail(None)) == 1


def test_what_is_kept_of_a_large_build_is_bounded() -> None:
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
    # All of them were built all the same, and the last ones are still told of.
    assert len(log.built) == 2000
    assert log.log_tail(f"{HASH}-1999.drv") == ("x" * 1999 + "…",)


NO_ROOM = "writing to file: No space left on device"


def test_a_builder_that_speaks_in_the_name_of_nix() -> None:
    gone = f"path '/nix/store/{HASH}-gone' is not valid"
    log = log_of(
        start(DERIVATION, 1),
        *(
            forged(text)
            for _ in range(50)
            for text in (NO_ROOM, gone, f"builder for '/nix/store/{OTHER}' failed")
        ),
        # A download that a builder tells of, with a line of a log.
        {"action": "start", "id": 2, "type": 101, "fields": ["http://example.org"]},
        line(f"error: {NO_ROOM}", 2),
        error(f"builder for '/nix/store/{DERIVATION}' failed with exit code 1"),
    )
    assert not log.says_that_there_is_no_room
    assert log.errors == (f"error: builder for '/nix/store/{DERIVATION}' failed with exit code 1",)
    assert log.failed_derivation == DERIVATION
    assert log.summary == f"builder for '/nix/store/{DERIVATION}' failed with exit code 1"


@pytest.mark.parametrize("said", [error(NO_ROOM), f"error: {NO_ROOM}".encode()])
def test_nix_says_itself_that_there_is_no_room(said: dict[str, Any] | bytes) -> None:
    assert log_of(said).says_that_there_is_no_room


def test_a_daemon_tells_of_a_dependency_in_other_words() -> None:
    log = log_of(
        start(DERIVATION, 1),
        line("cause", 1),
        forged(f"builder for '/nix/store/{DERIVATION}' failed with exit code 1"),
        error(f"1 dependencies of derivation '/nix/store/{OTHER}' failed to build"),
    )
    assert (log.failed_derivation, log.log_tail(log.failed_derivation)) == (DERIVATION, ("cause",))
