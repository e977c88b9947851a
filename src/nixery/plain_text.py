"""Make untrusted text safe for a terminal, a log, a page or a response.

Package authors choose names, versions, descriptions and the keys of definitions; builders write any output;
clients send paths. None of these may move a cursor, begin a line, or change the direction of text where a
program shows it. The server stores such text unchanged, and every exit passes it through ``escaped`` or a
variant: commands and the log (``cli/logs.py``), the JSON of the registry and the API
(``server/http.py``), the pages (``server/pages/templating.py``), and an image's annotations and labels
(``builds/descriptions.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

# Control characters (C0, C1); direction marks; invisible characters: zero-width ones, interlinear
# annotations, tags; line and paragraph separators; and surrogates, which stand for bytes that are not UTF-8.
_UNSAFE = (
    "\x00-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
# Matches whole runs: an author can write megabytes of these characters alone, and each match costs a call.
_UNSAFE_CHARACTERS = re.compile(f"[{_UNSAFE}]+")
_UNSAFE_BUT_TAB = re.compile(rf"(?!\t)[{_UNSAFE}]")
_UNSAFE_IN_LINES = re.compile(rf"(?:(?![\t\n])[{_UNSAFE}])+")

# Control sequences, control strings such as titles of windows, and other escape sequences (ECMA-48, 5.3 to
# 5.6).
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")


def escaped(text: str) -> str:
    """Escape each unsafe character, tabs and line breaks included, so that a text stays on its line."""
    # The common case: all printable characters are safe.
    return text if text.isprintable() else _UNSAFE_CHARACTERS.sub(_escape, text)


def escaped_lines(text: str) -> str:
    """As ``escaped``, but keep tabs and line breaks: for places where a forged line cannot mislead a reader."""
    return text if text.isprintable() else _UNSAFE_IN_LINES.sub(_escape, text)


def escaped_document(document: Any, escape: Callable[[str], str] = escaped_lines) -> Any:  # noqa: ANN401 -- JSON is anything
    """Escape all strings of a JSON document, including the names of members."""
    match document:
        case str():
            return escape(document)
        case dict():
            items = document.items()
            return {escaped_document(name, escape): escaped_document(value, escape) for name, value in items}
        case list() | tuple():
            return [escaped_document(value, escape) for value in document]
        case _:
            return document


def plain_text(line: str) -> str:
    """Return a line as a terminal would show it, without colours, and with the last state of a progress bar."""
    line = _SEQUENCE.sub("", line).rstrip("\r\n").rpartition("\r")[2]
    return _UNSAFE_BUT_TAB.sub("", line)


def shortened(text: str, longest: int) -> str:
    """Shorten a text to a number of characters; a shortened text ends with an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
