"""Other people's text, made fit for a terminal, a log, a page or an answer.

Package authors choose names, versions, descriptions and the keys of definitions; builders write what they like; clients send paths. None of
it may move a cursor, begin a line, or turn the direction of writing where it is shown. It is kept as it came, and every exit passes it
through ``escaped`` or one of its kin: commands and the log (``cli/logs.py``), the JSON of the registry and the API
(``server/responses.py``), the pages (``server/pages/templating.py``), and an image's annotations and labels
(``pipeline/image_annotations.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

# Control characters (C0, C1); marks of direction, and characters that nobody sees: of no width, between annotations, tags; line and
# paragraph separators; and surrogates, which stand for bytes that are no UTF-8.
_UNSAFE = (
    "\x00-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
# Whole runs of them: an author can write megabytes of nothing else, and each match is a call.
_UNSAFE_CHARACTERS = re.compile(f"[{_UNSAFE}]+")
_UNSAFE_BUT_TAB = re.compile(rf"(?!\t)[{_UNSAFE}]")
_UNSAFE_IN_LINES = re.compile(rf"(?:(?![\t\n])[{_UNSAFE}])+")

# Control sequences, control strings such as titles of windows, and other escape sequences (ECMA-48, 5.3 to 5.6).
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")


def escaped(text: str) -> str:
    """Return a text that stays on its line, with an escape for each unsafe character; a tab is one."""
    # Nearly all texts: printable characters are a part of the safe ones.
    return text if text.isprintable() else _UNSAFE_CHARACTERS.sub(_escape, text)


def escaped_lines(text: str) -> str:
    """Likewise, but for tabs and the ends of lines, which stay: for places where no line of the text can pass for another's."""
    return text if text.isprintable() else _UNSAFE_IN_LINES.sub(_escape, text)


def escaped_document(document: Any, escape: Callable[[str], str] = escaped_lines) -> Any:  # noqa: ANN401 -- JSON is anything
    """Escape all texts of a JSON document, names of members included."""
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
    """Return what is to be read of a line when a terminal has done what it says: no colours, and the last state of a progress bar."""
    line = _SEQUENCE.sub("", line).rstrip("\r\n").rpartition("\r")[2]
    return _UNSAFE_BUT_TAB.sub("", line)


def shortened(text: str, longest: int) -> str:
    """Return a text with so many characters at most; if it had more, it ends with an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
