"""Arbitrary bytes on a socket to a whole server: each gets a valid response in time, and the server keeps serving."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery.image.meta_packages import FACTS, SHELL
from tests.conformance.specification import ERROR_CODES
from tests.fuzz import strategies
from tests.fuzz.conftest import Target
from tests.fuzz.effort import examples
from tests.fuzz.grammar import is_name
from tests.support.client import Response
from tests.support.raw_http import parse_responses

pytestmark = pytest.mark.xdist_group("fuzz")

# Few valid names: each costs an evaluation by Nix.
_NAMES = st.one_of(
    st.sampled_from(["hello", "hello/greeting", "no-such-package", "arm64/amd64/hello"]),
    strategies.nearly(strategies.valid_names),
    strategies.long_names.map(str.upper),
    strategies.noise,
)
_DECODED = st.one_of(
    strategies.paths(_NAMES, strategies.digests | strategies.broken_digests),
    strategies.paths(_NAMES, strategies.nearly(strategies.valid_tags)),
    strategies.paths(strategies.nearly(strategies.valid_names), strategies.valid_tags),
)
_TARGETS = strategies.request_targets(_DECODED)
_LAST = b"Connection: close\r\n\r\n"

Headers = list[tuple[str, str]]


def message(
    method: str, target: bytes, headers: Sequence[tuple[str, str]], version: bytes = b"HTTP/1.1"
) -> bytes:
    """Return a request after which the server must close the connection, with a Host unless the headers have one."""
    if not any(name.lower() == "host" for name, _ in headers):
        headers = [*headers, ("Host", "a")]
    lines = [b"%s %s %s" % (method.encode(), target, version)]
    lines += [f"{name}: {value}".encode("latin-1") for name, value in headers]
    return b"\r\n".join([*lines, _LAST])


def check(response: Response) -> None:
    """Check a response. Requests that are not HTTP are answered by the web server itself, without a body."""
    assert response.status < 500, response
    if response.status >= 400 and not is_from_web_server(response):
        assert response.headers["content-type"] == "application/json"
        if response.body:
            assert {error["code"] for error in response.errors} <= ERROR_CODES


def is_from_web_server(response: Response) -> bool:
    return "server" not in response.headers and response.status in (400, 414, 431) and response.body == b""


def only(received: bytes, method: str) -> Response:
    # Bytes after an announced body are another request if they look like one.
    (response,) = parse_responses(received, [method])
    check(response)
    return response


@examples(150)
@given(_TARGETS, strategies.headers)
def test_any_target_and_headers(target: Target, path: bytes, headers: Headers) -> None:
    get = only(target.exchange(message("GET", path, headers)), "GET")
    head = only(target.exchange(message("HEAD", path, headers)), "HEAD")
    assert head.body == b""
    assert head.status == get.status
    own = {"date": "", "x-request-id": ""}
    assert {**head.headers, **own} == {**get.headers, **own}
    target.check_health()


@examples(100)
@given(
    strategies.methods,
    _TARGETS,
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/9", b"", b"\xff"]),
)
def test_any_request_line(target: Target, method: str, path: bytes, version: bytes) -> None:
    only(target.exchange(message(method, path, [], version)), method)
    target.check_health()


@examples(100)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes(target: Target, sent: bytes, well_begun: bool) -> None:  # noqa: FBT001
    start = b"GET /v2/ HTTP/1.1\r\n" if well_begun else b""
    received = target.exchange(start + sent + b"\r\n" + _LAST)
    for response in parse_responses(received, ["GET"] * 3):
        check(response)
    target.check_health()


@examples(60)
@given(strategies.headers)
def test_ranges_and_conditions_of_a_blob(target: Target, headers: Headers) -> None:
    path = f"/v2/hello/blobs/{target.blob}".encode()
    response = only(target.exchange(message("GET", path, headers)), "GET")
    if response.status == 200:
        assert response.body == target.content
    if response.status == 206:
        first, last = map(int, response.headers["content-range"].split(" ")[1].split("/")[0].split("-"))
        assert response.body == target.content[first : last + 1]
    if response.status == 304:
        assert "if-none-match" in {name.lower() for name, _ in headers}
    assert response.status in (200, 206, 304, 400, 416)


def test_only_valid_names_reached_nix(target: Target) -> None:
    """Runs last: checks the calls of Nix of all tests above."""
    asked = target.spy.calls_of("nix-instantiate", "request")
    assert asked
    for call in asked:
        _, _, argument = call.partition("--argstr request ")
        request, _ = json.JSONDecoder().raw_decode(argument)
        if "sets" in request or "index" in request:
            continue  # for the package index, which has no name from a client
        for name in (*request["packages"], *request["optional"]):
            # No client can write a name that begins with a dot.
            assert is_name(name) or name in {FACTS, SHELL}, call
