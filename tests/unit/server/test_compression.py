"""Compressed answers: which, and for whom."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery.server.compression import accepts_gzip, compressed, gzipped
from nixery.server.http import BytesResponse, Request

TEXT = b"a page " * 1000


def request(accepted: str | None) -> Request:
    return Request("GET", "/", {} if accepted is None else {"accept-encoding": accepted})


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        (None, False),
        ("", False),
        ("identity", False),
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("deflate, gzip;q=0.5, br", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip;q=0.001", True),
        ("gzipped", False),
    ],
)
def test_gzip_is_for_clients_that_accept_it(header: str | None, accepted: bool) -> None:  # noqa: FBT001
    assert accepts_gzip(request(header)) is accepted


@given(st.text())
def test_any_header_is_read(header: str) -> None:
    assert isinstance(accepts_gzip(request(header)), bool)


@pytest.mark.parametrize("content", [TEXT, TEXT * 100], ids=["small", "large"])
@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/json"])
async def test_text_is_compressed(content: bytes, kind: str) -> None:
    answer = await compressed(request("gzip"), BytesResponse(404, content, {"Content-Type": kind}))
    assert isinstance(answer, BytesResponse)
    assert (answer.status, answer.headers["Content-Encoding"], answer.headers["Vary"]) == (
        404,
        "gzip",
        "Accept-Encoding",
    )
    assert gzip.decompress(answer.content) == content
    assert answer.length == len(answer.content) < len(content) / 10


@pytest.mark.parametrize(
    "answer",
    [
        BytesResponse(200, b"short", {"Content-Type": "text/html"}),
        BytesResponse(200, TEXT, {"Content-Type": "application/octet-stream"}),
        BytesResponse(200, TEXT, {"Content-Type": "text/css", "Content-Encoding": "gzip"}),
    ],
    ids=["short", "not text", "compressed"],
)
async def test_other_answers_stay_as_they_are(answer: BytesResponse) -> None:
    assert await compressed(request("gzip"), answer) is answer


def test_a_compressed_body_depends_on_the_content_alone() -> None:
    assert gzipped(TEXT) == gzipped(TEXT)
    assert gzipped(TEXT)[4:8] == bytes(4)  # no time


@pytest.mark.parametrize(
    ("site", "is_compressed"),
    [
        (None, True),
        ("none", True),
        ("same-origin", True),
        ("same-site", False),
        ("cross-site", False),
        ("?", False),
    ],
)
async def test_an_answer_to_a_link_of_another_site_shows_nothing_by_its_length(
    site: str | None, *, is_compressed: bool
) -> None:
    headers = {"accept-encoding": "gzip", **({} if site is None else {"sec-fetch-site": site})}
    answer = await compressed(
        Request("GET", "/", headers), BytesResponse(200, TEXT, {"Content-Type": "text/html"})
    )
    assert isinstance(answer, BytesResponse)
    assert (answer.headers.get("Content-Encoding") == "gzip") == is_compressed
    assert (answer.content != TEXT) == is_compressed
