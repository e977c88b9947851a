"""The output of commands, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from nixery.builds.events import Build, BuildEvent, Failed, Grouped, LayersComplete, Queued, Started, Stored
from nixery.cli import output as shown
from nixery.cli.output import BYTES, BarReporter, activity
from nixery.errors import NixeryError
from nixery.image.name import requests_for
from nixery.image.platform import AMD64
from nixery.nix.build_log import Building, Fetching, LogLines
from nixery.oci.digest import Digest
from nixery.push.push import BytesPushed, PushStarted
from nixery.sources.source import Pin


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100)
    monkeypatch.setattr(shown, "Console", lambda **_: console)
    return written


def test_a_terminal_has_a_bar_and_amounts(terminal: io.StringIO) -> None:
    with activity(BYTES) as one:
        one.begin("reading", 4_000_000)
        one.advance(1_000_000)
        one.note("[/] is no markup")
    assert "━" in terminal.getvalue()
    assert "1.0 MB of 4.0 MB" in terminal.getvalue()
    assert "nixery: [/] is no markup" in terminal.getvalue()
    # The cursor is restored, and the bar erased.
    assert terminal.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_an_unknown_amount_is_not_shown(terminal: io.StringIO) -> None:
    with activity("blobs") as one:
        one.begin("looking")
    assert "blobs" not in terminal.getvalue()
    with activity("blobs") as one:
        one.begin("looking")
        one.advance(3)
        one.update("found")
    assert "found" in terminal.getvalue()
    assert "3 blobs" in terminal.getvalue()
    assert "?" not in terminal.getvalue().replace("\x1b[?25", "")


def test_without_a_terminal_progress_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with activity("packages", pause=0) as one:
        one.begin("evaluating", 3)
        one.advance(2)
        one.note("odd")
        one.begin("counting")
        one.advance(1)
    assert capsys.readouterr().err == (
        "nixery: evaluating: 2 of 3 packages\nnixery: odd\nnixery: counting: 1 packages\n"
    )


def test_a_short_step_prints_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with activity(BYTES) as one:
        one.begin("reading", 2)
        one.advance(2)
    assert capsys.readouterr().err == ""


def test_a_quiet_activity_prints_nothing(terminal: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    with activity("packages", pause=0, quiet=True) as one:
        one.begin("evaluating", 3)
        one.advance(2)
    assert terminal.getvalue() + capsys.readouterr().err == ""


def test_a_build_and_a_push_are_bars(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = io.StringIO()
    reporter = BarReporter(Console(file=terminal, force_terminal=True, width=120))
    build = begun()
    for event in (
        Started(),
        Fetching(1, 4),
        Building(
            ("00000000000000000000000000000000-git.drv", "11111111111111111111111111111111-htop.drv"), 0
        ),
        Grouped(7),
        LayersComplete(),
        Stored(Digest.of(b""), 7),
    ):
        reporter.observe(build, event)
    reporter.pushing(PushStarted("registry.test/git:1", 2, 2000))
    reporter.pushing(BytesPushed("registry.test/git:1", 1000))
    reporter.finished({"digest": "sha256:0", "revision": "one"})
    drawn = terminal.getvalue()
    assert "linux/amd64 shell/git" in drawn
    assert "built" in drawn
    assert "registry.test/git:1" in drawn
    assert "push registry.test/git:1" in drawn
    assert "1.0 kB of 2.0 kB" in drawn
    assert capsys.readouterr().out == "sha256:0\n"


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([Queued(3)], "waiting, place 3 in the queue"),
        ([Queued(3, 130)], "waiting, place 3 in the queue, about 2 min"),
        ([Fetching(1_000_000, 4_000_000)], "fetching 1.0 of 4.0 MB"),
        ([Fetching(900_000, 4_000_000, 41, 84)], "fetching 41 of 84 paths, 900.0 kB of 4.0 MB"),
        ([Building(("00000000000000000000000000000000-git-2.drv",), 3, 12)], "3 of 12 built, building git-2"),
        ([Fetching(4, 4), Building((), 2)], "2 built"),
        ([Building(("00000000000000000000000000000000-git-2.drv",), 0)], "building git-2"),
        (
            [
                Fetching(1, 4),
                Building(
                    (
                        "00000000000000000000000000000000-git-2.drv",
                        "11111111111111111111111111111111-htop.drv",
                    ),
                    0,
                ),
                LogLines((("11111111111111111111111111111111-htop.drv", "gcc -c \x1b[31m[/]"),)),
            ],
            r"fetching 1 byte of 4 bytes, building htop and 1 other: gcc -c \x1b[31m[/]",
        ),
        # The line belongs to a running builder.
        (
            [
                Building(("00000000000000000000000000000000-git.drv",), 0),
                LogLines((("", "gcc"),)),
                Building(("11111111111111111111111111111111-htop.drv",), 1),
            ],
            "building htop ",
        ),
    ],
)
def test_the_bar_of_a_build_shows_the_progress_of_nix(events: list[BuildEvent], expected: str) -> None:
    terminal, build = io.StringIO(), begun()
    reporter = BarReporter(Console(file=terminal, force_terminal=True, width=140))
    for event in (Started(), *events):
        reporter.observe(build, event)
    reporter.close()
    assert expected in terminal.getvalue()


def test_nothing_is_drawn_after_a_failure() -> None:
    terminal, build = io.StringIO(), begun()
    reporter = BarReporter(Console(file=terminal, force_terminal=True, width=120))
    error = NixeryError("no")
    for event in (Started(), Failed(error)):
        reporter.observe(build, event)
    reporter.failed(error)
    drawn = terminal.getvalue()
    reporter.close()
    assert "✗" in drawn.splitlines()[-2]
    assert terminal.getvalue() == drawn
    assert drawn.endswith("\x1b[?25h")


def begun() -> Build:
    (request,) = requests_for("shell/git", (AMD64,))
    return Build.of(request, Pin("fake:", "one", "one"))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_long_name_leaves_room_for_the_stage(width: int) -> None:
    terminal = io.StringIO()
    (request,) = requests_for("shell/" + "/".join(f"package{n}" for n in range(9)), (AMD64,))
    reporter = BarReporter(Console(file=terminal, force_terminal=True, width=width))
    reporter.observe(Build.of(request, Pin("fake:", "one", "one")), Grouped(1))
    reporter.close()
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()).splitlines()
    assert "linux/amd64" in drawn[-1]
    assert "0:00:00" in drawn[-1]
    assert "packing 1 la" in drawn[-1]
    assert len(drawn[-1]) <= width


@pytest.mark.parametrize(
    ("width", "fetching", "building"),
    [
        (60, "41/84 paths, 120/560 MB", "3/12 built, gcc-7.3.0: cc -c"),
        (80, "41/84 paths, 120/560 MB", "3/12 built, gcc-7.3.0: cc -c"),
        (
            120,
            "fetching 41 of 84 paths, 120.0 of 560.0 MB",
            "3 of 12 built, building gcc-7.3.0 and 1 other: cc -c",
        ),
    ],
)
def test_progress_fits_the_terminal(width: int, fetching: str, building: str) -> None:
    terminal, build = io.StringIO(), begun()
    reporter = BarReporter(Console(file=terminal, force_terminal=True, width=width))

    def drawn() -> str:
        reporter._progress.refresh()
        line = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()).splitlines()[-1]
        assert len(line) <= width
        return line

    gcc, other = f"{'0' * 32}-gcc-7.3.0.drv", f"{'1' * 32}-htop-3.drv"
    reporter.observe(build, Started())
    reporter.observe(build, Fetching(120_000_000, 560_000_000, 41, 84))
    assert fetching in drawn()
    reporter.observe(build, Building((gcc, other), 3, 12))
    reporter.observe(build, LogLines(((gcc, "cc -c"),)))
    assert building in drawn()
    reporter.close()
