"""Formats for people, and escaping of markup."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery.errors import InvalidName, NixeryError, SourceUnreachable, StorageError, TagUnknown, TooBusy
from nixery.plain_text import escaped_lines
from nixery.server.pages.templating import Templates, breakable, derivation, size

TEMPLATES = Templates()


def test_a_name_may_be_broken_between_packages_and_is_escaped() -> None:
    assert breakable("shell/git/<b>") == "shell/<wbr>git/<wbr>&lt;b&gt;"


def test_a_derivation_is_known_by_its_name() -> None:
    assert derivation(f"{'a' * 32}-hello-1.0.drv") == "hello-1.0"
    assert derivation("hello") == "hello"


def test_sizes_are_in_powers_of_ten() -> None:
    assert [size(n) for n in (0, 999, 1000, 123_456, 10**9)] == ["0 B", "999 B", "1.0 kB", "123 kB", "1.0 GB"]


@given(st.text())
def test_pages_escape_invisible_and_bidirectional_characters(text: str) -> None:
    page = TEMPLATES.response("error.html", title=text, message=text).content.decode()
    assert escaped_lines(page) == page
    assert (
        escaped_lines(str(breakable("\u202e")))
        in TEMPLATES.response("error.html", title=breakable("\u202e"), message="").content.decode()
    )


@pytest.mark.parametrize(
    ("error", "title", "retry_after"),
    [
        (TagUnknown("v9", "is unknown"), "No such image", None),
        (InvalidName("A", "upper case"), "Not a valid image name", None),
        (SourceUnreachable("no route to host"), "Not available at the moment", "5"),
        (TooBusy(2, 7, 13), "The server is busy", "13"),
        (StorageError("input/output error"), "Something went wrong", None),
    ],
)
def test_an_error_page_is_titled_by_the_kind_of_error(
    error: NixeryError, title: str, retry_after: str | None
) -> None:
    page = TEMPLATES.error(error)
    assert f"<h1>{title}</h1>" in page.content.decode()
    assert page.headers.get("Retry-After") == retry_after
