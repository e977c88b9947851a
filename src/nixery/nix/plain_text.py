"""What Nix and builders write, as people read it."""

from __future__ import annotations

import re

# Control sequences, control strings such as titles of windows, and other escape sequences (ECMA-48, 5.3 to 5.6).
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")

# Whatever else moves a cursor or turns the direction of writing; a tab does neither.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain_text(line: str) -> str:
    """Return what is to be read of a line when a terminal has done what it says: no colours, and the last state of a progress bar.

    Builders are other people's programs. What they write goes to terminals, of the command line and of clients that pull.
    """
    line = _SEQUENCE.sub("", line).rstrip("\r\n").rpartition("\r")[2]
    return _CONTROL.sub("", line)
