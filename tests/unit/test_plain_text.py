"""Lines of builders, as a terminal could take them."""

from __future__ import annotations

import pytest

from nixery.nix.build_log import plain
from nixery.plain_text import plain_text


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("gcc -c\tfile.c", "gcc -c\tfile.c"),
        ("\x1b[31;1merror:\x1b[0m no", "error: no"),
        ("\x1b]0;owned\x07title", "title"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2J\x1b[1;1H\x1b[?25lcleared", "cleared"),
        ("\x1b(Bother letters\x1bc", "other letters"),
        ("\x1bPq#0\x1b\\image", "image"),
        ("10 %\r20 %\r30 %\r", "30 %"),
        ("bell\x07 back\x08 \x9b31m", "bell back 31m"),
        ("\u202egnirts", "gnirts"),
        ("an end \x1b[3", "an end 3"),
        ("größer, 日本語", "größer, 日本語"),
    ],
)
def test_what_is_meant_for_a_terminal_is_left_out(written: str, read: str) -> None:
    assert plain_text(written) == read


def test_lines_stay_lines() -> None:
    assert plain("one\n\x1b[31mtwo\x1b[0m") == "one\ntwo"
