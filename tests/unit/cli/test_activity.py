"""What commands show, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nixery.cli import output as shown
from nixery.cli.output import BYTES, activity


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
    # The cursor is back, and the bar is gone.
    assert terminal.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_what_is_not_known_is_not_shown(terminal: io.StringIO) -> None:
    with activity("blobs") as one:
        one.begin("looking")
    assert "blobs" not in terminal.getvalue()
    with activity("blobs") as one:
        one.begin("looking")
        one.advance(3)
        one.tell("found")
    assert "found" in terminal.getvalue()
    assert "3 blobs" in terminal.getvalue()
    assert "?" not in terminal.getvalue().replace("\x1b[?25", "")


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with activity("packages", pause=0) as one:
        one.begin("evaluating", 3)
        one.advance(2)
        one.note("odd")
        one.begin("counting")
        one.advance(1)
    assert capsys.readouterr().err == (
        "nixery: evaluating: 2 of 3 packages\nnixery: odd\nnixery: counting: 1 packages\n"
    )


def test_what_is_soon_done_needs_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with activity(BYTES) as one:
        one.begin("reading", 2)
        one.advance(2)
    assert capsys.readouterr().err == ""


def test_machines_are_told_nothing(terminal: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    with activity("packages", pause=0, quiet=True) as one:
        one.begin("evaluating", 3)
        one.advance(2)
    assert terminal.getvalue() + capsys.readouterr().err == ""
