"""Byte ranges and conditional requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery.server.compression import accepts_gzip
from nixery.server.http import (
    ByteRange,
    Request,
    UnsatisfiableRange,
    elements,
    matches,
    parse_range,
    prefers_html,
)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=500-1499", ByteRange(500, 1499)),
        ("bytes=500-", ByteRange(500, 2047)),
        ("bytes=-500", ByteRange(1548, 2047)),
        ("bytes=-5000", ByteRange(0, 2047)),
        ("bytes=2000-5000", ByteRange(2000, 2047)),
        ("bytes=0-0", ByteRange(0, 0)),
        ("Bytes=2047-2047", ByteRange(2047, 2047)),
    ],
)
def test_a_satisfiable_range_is_clamped(header: str, expected: ByteRange) -> None:
    assert parse_range(header, 2048) == expected


@pytest.mark.parametrize("header", ["bytes=2048-", "bytes=5000-10000", "bytes=-0"])
def test_a_range_after_the_end_is_unsatisfiable(header: str) -> None:
    with pytest.raises(UnsatisfiableRange):
        parse_range(header, 2048)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes=",
        "bytes=-",
        "bytes=500-0",
        "bytes=a-b",
        "bytes=0-1,3-4",
        "pages=1-2",
        "bytes=\u0661-\u0662",
        "0-1",
    ],
)
def test_an_invalid_range_is_ignored(header: str | None) -> None:
    assert parse_range(header, 2048) is None


@given(st.text(alphabet="bytes=0123456789-, ", max_size=30), st.integers(0, 10**12))
def test_a_range_is_always_inside_of_the_representation(header: str, size: int) -> None:
    try:
        found = parse_range(header, size)
    except UnsatisfiableRange:
        return
    assert found is None or 0 <= found.first <= found.last < size


@pytest.mark.parametrize("header", ['"a"', 'W/"a"', '"b", "a"', "*"])
def test_a_matching_etag_means_the_client_has_the_representation(header: str) -> None:
    assert matches(Request("GET", "/", {"if-none-match": header}), '"a"')


@pytest.mark.parametrize(
    "headers", [{}, {"if-none-match": '"b"'}, {"if-none-match": "a"}, {"if-none-match": ""}]
)
def test_another_etag_does_not_match(headers: dict[str, str]) -> None:
    assert not matches(Request("GET", "/", headers), '"a"')


@pytest.mark.parametrize(
    ("accept", "is_person"),
    [
        (None, False),
        ("*/*", False),
        ("application/json", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("TEXT/HTML", True),
        ("text/html;q=0.1, application/json", False),
        ("text/html, application/json", True),
        ("text/html;q=0", False),
        ("text/html;q=x", False),
        ("text/htmlx", False),
        ("application/vnd.oci.image.manifest.v1+json, application/json", False),
    ],
)
def test_a_person_prefers_html(accept: str | None, is_person: bool) -> None:  # noqa: FBT001
    headers = {} if accept is None else {"accept": accept}
    assert prefers_html(Request("GET", "/", headers)) is is_person


@pytest.mark.security
@pytest.mark.parametrize("field", ["accept", "accept-encoding", "if-none-match"])
@pytest.mark.parametrize("list_", ["," * 100_000, "gzip;q=1, " * 10_000, "x" * 100_000])
def test_few_elements_of_a_header_field_are_read(field: str, list_: str) -> None:
    """A field of 128 KiB with nothing but commas blocked the event loop for a sixth of a second at each request."""
    found = elements(Request("GET", "/", {field: list_}), field)
    assert len(found) <= 128
    assert sum(map(len, found)) <= 8192


@pytest.mark.security
@pytest.mark.parametrize(("before", "read"), [(127, True), (128, False), (100_000, False)])
def test_elements_after_the_first_ones_are_not_read(before: int, read: bool) -> None:  # noqa: FBT001
    def request(field: str, last: str) -> Request:
        return Request("GET", "/", {field: "," * before + last})

    assert accepts_gzip(request("accept-encoding", "gzip")) is read
    assert prefers_html(request("accept", "text/html")) is read
    assert matches(request("if-none-match", '"a"'), '"a"') is read
