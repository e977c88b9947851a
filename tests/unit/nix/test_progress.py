from __future__ import annotations

import asyncio
import json

from nixery.nix.build_log import Building, BuildLog, Fetching, LogLines, NixProgress, ProgressFeed

DERIVATION = "0" * 32 + "-hello.drv"


def write(log: BuildLog, **event: object) -> None:
    log.read_line(b"@nix " + json.dumps(event).encode())


def read() -> tuple[BuildLog, ProgressFeed, list[NixProgress]]:
    told: list[NixProgress] = []
    feed = ProgressFeed(told.append)
    return BuildLog(lambda: None, feed=feed), feed, told


async def test_what_nix_tells_comes_in_portions() -> None:
    log, feed, told = read()
    write(log, action="start", id=1, type=105, fields=[f"/nix/store/{DERIVATION}", "", 1, 1])
    for number in range(3):
        write(log, action="result", id=1, type=101, fields=[f"\x1b[31mline {number}\x1b[0m"])
    assert told == []
    await asyncio.sleep(0.2)
    lines = tuple((DERIVATION, f"line {number}") for number in range(3))
    assert told == [Building((DERIVATION,), 0), LogLines(lines)]
    write(log, action="stop", id=1)
    feed.flush()
    assert told[2:] == [Building((), 1)]


async def test_bytes_that_are_fetched_are_added_up() -> None:
    log, feed, told = read()
    for activity in (1, 2):
        write(log, action="start", id=activity, type=100, fields=["/nix/store/x", "cache", "local"])
    write(log, action="result", id=1, type=105, fields=[10, 100, 0, 0])
    write(log, action="result", id=2, type=105, fields=[5, 50, 0, 0])
    write(log, action="result", id=1, type=105, fields=[20, 100, 0, 0])
    write(log, action="result", id=7, type=105, fields=[1, 2, 0, 0])  # of something else
    feed.flush()
    assert told == [Fetching(25, 150)]


async def test_a_flood_of_lines_is_counted_and_dropped() -> None:
    log, feed, told = read()
    for number in range(10_000):
        write(log, action="result", id=1, type=101, fields=[str(number)])
    feed.flush()
    (portion,) = told
    assert isinstance(portion, LogLines)
    assert (len(portion.lines), portion.dropped) == (100, 9_900)


async def test_nothing_is_told_of_nothing() -> None:
    _, feed, told = read()
    feed.flush()
    assert told == []
