"""No logged text can forge a log line or control a terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nixery.cli.logs import configure_logs
from nixery.plain_text import escaped
from nixery.request_context import RequestContext, enter_request

EVIL = "a\n2026-11-24 14:00:00 [error    ] forged\r\x1b[2J\x9b31m\u2028\u202e\ud800"


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_events_have_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(logging.INFO, "json")
    structlog.get_logger().info("request", path=EVIL, nested=[EVIL])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isascii()
    entry: dict[str, Any] = json.loads(line)
    assert (entry["event"], entry["level"], entry["path"]) == ("request", "info", escaped(EVIL))
    assert entry["nested"] == [escaped(EVIL)]
    assert entry["timestamp"].endswith("Z")


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_of_a_traceback_looks_like_a_log_line(
    form: Literal["json", "console"],
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs(logging.INFO, form)
    try:
        int(EVIL)
    except ValueError:
        structlog.get_logger().exception("failed")
    first, *others = capsys.readouterr().err.splitlines()
    assert "failed" in first
    assert others if form == "console" else not others
    assert all(line.startswith("    | ") for line in others)
    assert "\x1b" not in first + "".join(others)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text())
def test_texts_stay_on_one_line(capsys: pytest.CaptureFixture[str], text: str) -> None:
    configure_logs(logging.INFO, "console")
    structlog.get_logger().info("request", path=EVIL + text, nested=[text], event_like=text)
    (line,) = capsys.readouterr().err.splitlines()
    assert "request" in line


def test_control_characters_are_escaped() -> None:
    assert escaped("git \x1b\u202e ä 中") == r"git \x1b\u202e ä 中"


def test_auto_is_json_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(logging.INFO, "auto")
    structlog.get_logger().info("listening")
    assert json.loads(capsys.readouterr().err)["event"] == "listening"


def test_libraries_log_warnings_and_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(logging.WARNING, "json")
    structlog.get_logger().info("quiet")
    logging.getLogger("library").info("quiet")
    logging.getLogger("library").warning("loud %s", EVIL)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == escaped(f"loud {EVIL}")


async def test_log_events_have_the_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(logging.INFO, "json")
    enter_request(RequestContext("mine"))
    structlog.get_logger().info("built")
    assert json.loads(capsys.readouterr().err)["request_id"] == "mine"


def test_a_closed_pipe_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logs(logging.INFO, "json")
        structlog.get_logger().info("request")
        logging.getLogger("library").warning("loud")
        # Closing the file flushes its buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
