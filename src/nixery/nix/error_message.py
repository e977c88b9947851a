"""Nix's error messages, made short enough for a client's terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ANSI_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def explanation(stderr: Sequence[str]) -> str:
    """Return the message of the last error on Nix's stderr, in one line and without positions; may be empty.

    Newer versions print a trace first and the error that started it all last.
    """
    lines = [_ANSI_ESCAPE.sub("", line).strip() for line in stderr]
    starts = [number for number, line in enumerate(lines) if line.startswith("error:")]
    message: list[str] = []
    for line in lines[starts[-1] :] if starts else []:
        text = line.removeprefix("error:").strip()
        if message and (
            not text or text.startswith(("at ", "(use '--show-trace'", "(stack trace truncated"))
        ):
            break
        if text:
            message.append(text)
    return " ".join(message)
