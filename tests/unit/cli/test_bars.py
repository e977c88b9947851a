"""Bars, as a terminal is sent them."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from nixery.builds.events import Build, BuildEvent, Failed, Grouped, LayersComplete, Queued, Started, Stored
from nixery.cli.output import BarReporter
from nixery.errors import NixeryError
from nixery.image.name import requests_for
from nixery.image.platform import AMD64
from nixery.nix.build_log import Building, Fetching, LogLines
from nixery.oci.digest import Digest
from nixery.push.push import BytesPushed, PushStarted
from nixery.sources.source import Pin


def test_a_build_and_a_push(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = io.StringIO()
    reporter = BarReporter(Console(file=terminal, force_terminal=True, width=120))
    build = begun()
    for event in (
        Started(),
        Fetching(1, 4),
        Building(("0-git.drv", "1-htop.drv"), 0),
        Grouped(7),
        LayersComplete(),
        Stored(Digest.of(b""), 7),
    ):
        reporter.observe(build, event)
    reporter.pushing(PushStarted("registry.test/git:1", 2, 2000))
    reporter.pushing(BytesPushed("registry.test/git:1", 1000))
    reporter.finished({"digest": "sha256:0", "revision": "one"})
    shown = terminal.getvalue()
    assert "linux/amd64 shell/git" in shown
    assert "built" in shown
    assert "registry.test/git:1" in shown
    assert "push registry.test/git:1" in shown
    assert "1.0 kB of 2.0 kB" in shown
    assert capsys.readouterr().out == "sha256:0\n"


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([Queued(3)], "waiting, place 3 in the queue"),
        ([Fetching(1_000_000, 4_000_000)], "fetching 1.0 MB of 4.0 MB"),
        ([Fetching(4, 4), Building((), 2)], "2 built"),
        ([Building(("0-git-2.drv",), 0)], "building git-2"),
        (
            [
                Fetching(1, 4),
                Building(("0-git-2.drv", "1-htop.drv"), 0),
                LogLines((("1-htop.drv", "gcc -c \x1b[31m[/]"),)),
            ],
            r"fetching 1 byte of 4 bytes, building htop and 1 other: gcc -c \x1b[31m[/]",
        ),
        # A line is that of the builder that runs.
        (
            [Building(("0-git.drv",), 0), LogLines((("", "gcc"),)), Building(("1-htop.drv",), 1)],
            "building htop ",
        ),
    ],
)
def test_what_nix_does(events: list[BuildEvent], expected: str) -> None:
    terminal, build = io.StringIO(), begun()
    reporter = BarReporter(Console(file=terminal, force_terminal=True, width=140))
    for event in (Started(), *events):
        reporter.observe(build, event)
    reporter.close()
    assert expected in terminal.getvalue()


def test_a_failure_is_the_last_thing_that_is_drawn() -> None:
    terminal, build = io.StringIO(), begun()
    reporter = BarReporter(Console(file=terminal, force_terminal=True, width=120))
    error = NixeryError("no")
    for event in (Started(), Failed(error)):
        reporter.observe(build, event)
    reporter.failed(error)
    shown = terminal.getvalue()
    reporter.close()
    assert "✗" in shown.splitlines()[-2]
    assert terminal.getvalue() == shown
    assert shown.endswith("\x1b[?25h")


def begun() -> Build:
    (request,) = requests_for("shell/git", (AMD64,))
    return Build.of(request, Pin("fake:", "one", "one"))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_long_name_leaves_room_for_what_goes_on(width: int) -> None:
    terminal = io.StringIO()
    (request,) = requests_for("shell/" + "/".join(f"package{n}" for n in range(9)), (AMD64,))
    reporter = BarReporter(Console(file=terminal, force_terminal=True, width=width))
    reporter.observe(Build.of(request, Pin("fake:", "one", "one")), Grouped(1))
    reporter.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()).splitlines()
    assert "linux/amd64" in shown[-1]
    assert "0:00:00" in shown[-1]
    assert "packing 1 la" in shown[-1]
    assert len(shown[-1]) <= width
