"""Untrusted text for terminals: escape sequences and unsafe characters."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery.nix.build_log import plain
from nixery.plain_text import escaped, escaped_document, escaped_lines, plain_text


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
def test_escape_sequences_are_removed_from_lines(written: str, read: str) -> None:
    assert plain_text(written) == read


def test_escaped_lines_keep_line_breaks() -> None:
    assert plain("one\n\x1b[31mtwo\x1b[0m") == "one\ntwo"


# Unicode categories: control, format, surrogate, and separators of lines and paragraphs. They move a cursor,
# or are invisible.
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Of those, hints within a word, and visible signs.
HARMLESS = {0x00AD, *range(0x0600, 0x0606), 0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2, 0x110BD, 0x110CD}
HARMLESS |= {*range(0x13430, 0x13440), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B)}


def test_all_unsafe_characters_are_escaped_and_no_others() -> None:
    for code in range(0x110000):
        character = chr(code)
        unsafe = unicodedata.category(character) in UNSAFE and code not in HARMLESS
        # Some numbers among tags and marks of direction have no character yet.
        if unicodedata.category(character) != "Cn":
            assert (escaped(character) != character) == unsafe, hex(code)
        assert escaped(character).isascii() or escaped(character) == character
        assert (escaped_lines(character) == escaped(character)) or character in "\t\n"


@given(st.text())
def test_an_escaped_text_is_one_encodable_line(text: str) -> None:
    assert len(escaped(text).splitlines()) <= 1
    escaped(text).encode()
    assert escaped(escaped(text)) == escaped(text)


def test_texts_in_a_document_are_escaped_wherever_they_are() -> None:
    document = {"a\x1b": ["\u202e", {"b": "\ud800\n"}], "c": (1, None, True, 0.5)}
    assert json.loads(json.dumps(escaped_document(document))) == {
        r"a\x1b": [r"\u202e", {"b": "\\ud800\n"}],
        "c": [1, None, True, 0.5],
    }
    assert escaped_document("\n", escaped) == r"\n"


@pytest.mark.parametrize("escape", [escaped, escaped_lines])
def test_a_run_of_unsafe_characters_is_escaped_as_each_of_them(escape: Callable[[str], str]) -> None:
    unsafe = "\x1b\u202e\u200b\udc80\U000e0041"
    assert escape(f"a{unsafe * 3}b") == "a" + "".join(map(escape, unsafe)) * 3 + "b"
    assert escaped_lines(f"{unsafe}\n{unsafe}\t").count("\n") == 1
