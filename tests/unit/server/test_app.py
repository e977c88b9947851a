"""The application as the web server calls it, with handlers of the tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextvars import Context
from ipaddress import ip_network
from pathlib import Path

import pytest
from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from nixery.caching import SingleFlight
from nixery.errors import StorageFull
from nixery.request_context import current_request
from nixery.server import app as server
from nixery.server.app import Application, send_body, start_body
from nixery.server.clients import Clients
from nixery.server.connections import Backpressure
from nixery.server.errors import errors_body
from nixery.server.health import Health
from nixery.server.http import (
    ByteRange,
    BytesResponse,
    ErrorResponse,
    Fields,
    FileResponse,
    NotModified,
    Request,
    Response,
    StreamResponse,
)
from nixery.server.observation import Observation
from nixery.telemetry.metrics import Metrics, RequestCounts
from tests.fuzz.application import _Headers, _Protocol, _Scope


class Slow:
    """Answers when the shared work of all requests is done."""

    def __init__(self) -> None:
        self.flight: SingleFlight[str, str] = SingleFlight()
        self.done = asyncio.Event()
        self.bodies: list[bytes | None] = []

    async def answer(self, request: Request) -> Response:
        self.bodies.append(request.body)
        if request.path == "/slow":
            await self.flight.run("work", self._work)
        return BytesResponse(200, b"done")

    async def _work(self) -> str:
        await self.done.wait()
        return "done"


class _Body(_Protocol):
    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__()
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def application(slow: Slow) -> Application:
    others = {"/slow": slow.answer, "/api/v1/builds": slow.answer}
    return Application(None, Observation(RequestCounts()), others)


def ask(
    one: Application, peer: str, path: str = "/slow", method: str = "GET", body: Iterable[bytes] = ()
) -> tuple[asyncio.Task[None], _Protocol]:
    scope = _Scope(method, path, "", _Headers([("host", "a")]), client=peer)
    protocol = _Body(body)
    task = asyncio.get_running_loop().create_task(one.__rsgi__(scope, protocol), context=Context())
    return task, protocol


async def test_a_request_whose_client_disconnected_stops_waiting_and_others_continue() -> None:
    slow = Slow()
    one = application(slow)
    first, second = ask(one, "192.0.2.1:1"), ask(one, "192.0.2.2:2")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sorted(one.observation.peers()) == ["192.0.2.1:1", "192.0.2.2:2"]
    # This request had started the work.
    one.observation.abandon({"192.0.2.1:1"})
    await asyncio.wait_for(first[0], 5)
    assert [answer.status for answer in first[1].responses] == [499]
    assert one.observation.peers() == ["192.0.2.2:2"]
    assert not second[0].done()
    slow.done.set()
    await asyncio.wait_for(second[0], 5)
    assert [answer.status for answer in second[1].responses] == [200]
    assert one.observation.peers() == []


async def test_nested_shared_work_outlives_the_request_that_began_it() -> None:
    outer: SingleFlight[str, str] = SingleFlight()
    slow = Slow()

    async def inner() -> str:
        return await slow.flight.run("inner", slow._work)

    async def answer(request: Request) -> Response:
        await outer.run("outer", inner)
        return await slow.answer(Request(request.method, "/"))

    one = Application(None, Observation(RequestCounts()), {"/slow": answer})
    first, second = ask(one, "192.0.2.1:1"), ask(one, "192.0.2.2:2")
    for _ in range(10):
        await asyncio.sleep(0)
    one.observation.abandon({"192.0.2.1:1"})
    await asyncio.wait_for(first[0], 5)
    slow.done.set()
    await asyncio.wait_for(second[0], 5)
    assert [answer.status for answer in second[1].responses] == [200]


async def test_a_body_in_too_many_pieces_is_refused() -> None:
    slow = Slow()
    one = application(slow)
    for pieces, taken in (([b"x"] * 64, True), ([b"x"] * 65, False), ([b"x" * 20_000], False)):
        task, _ = ask(one, "192.0.2.1:1", "/api/v1/builds", "POST", pieces)
        await task
        assert (slow.bodies.pop() is not None) == taken


async def test_checks_do_not_run_on_behalf_of_a_client() -> None:

    found = []

    async def check() -> None:
        found.append(current_request())

    health = Health({"source": check}, Metrics())
    task, protocol = ask(
        Application(None, Observation(RequestCounts()), health.admin_routes()), "192.0.2.1:1", "/readyz"
    )
    await task
    assert [answer.status for answer in protocol.responses] == [200]
    assert found == [None]


async def test_a_defect_is_answered_without_details_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("/srv/secret")

    monkeypatch.setattr(server, "refusal", broken)
    counts = RequestCounts()
    one = Application(None, Observation(counts), {})
    task, protocol = ask(one, "192.0.2.1:1", "/v2/" + "a" * 5000)
    await task
    (answer,) = protocol.responses
    assert answer.status == 500
    assert b"/srv/secret" not in answer.body
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert one.observation.peers() == []
    requests = next(metric for metric in counts.collect() if metric.name == "nixery_http_requests")
    assert [sample.labels["status"] for sample in requests.samples] == ["500"]
    assert "request failed" in capsys.readouterr().out


# Of a client without a connection.
UNKNOWN = Backpressure("192.0.2.1:1")

GET = Request("GET", "/v2/git/blobs/x", {}, {}, b"")


class ThreePieces:
    """Three pieces, or fewer and an error; knows whether it was closed."""

    def __init__(self, fails_before: int | None = None) -> None:
        self.is_open = self.was_open = False
        self._fails_before = fails_before

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Begin to read."""
        self.is_open = self.was_open = True
        try:
            for number in range(3):
                if number == self._fails_before:
                    raise StorageFull("no room")
                yield b"%d" % number
        finally:
            self.is_open = False

    def response(self, length: int | None = 3) -> StreamResponse:
        """The response of a handler."""
        return StreamResponse(200, length, self.pieces)


class StreamClient:
    """Accepts a number of pieces, and disconnects."""

    def __init__(self, takes: int = 100) -> None:
        self.body = b""
        self.headers: dict[str, str] = {}
        self._takes = takes

    async def client_disconnect(self) -> None:
        await asyncio.Event().wait()

    def response_stream(self, status: int, headers: Fields, /) -> StreamClient:
        assert status == 200
        self.headers = dict(headers)
        return self

    async def send_bytes(self, data: bytes, /) -> None:
        if not self._takes:
            raise ProtocolClosed
        self._takes -= 1
        self.body += data

    def response_empty(self, status: int, headers: Fields, /) -> None:
        raise AssertionError(status, headers)

    def response_bytes(self, status: int, headers: Fields, body: bytes, /) -> None:
        raise AssertionError(status, headers, body)

    def response_file(self, status: int, headers: Fields, file: str, /) -> None:
        raise AssertionError(status, headers, file)

    def response_file_range(self, status: int, headers: Fields, file: str, start: int, end: int, /) -> None:
        raise AssertionError(status, headers, file, start, end)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b""


async def test_all_pieces_are_sent_with_their_length() -> None:
    client, body = StreamClient(), ThreePieces()
    response, pieces = await start_body(body.response())
    assert pieces is not None
    await send_body(GET, response, pieces, [], client, UNKNOWN)
    assert (client.body, client.headers) == (b"012", {"content-length": "3"})
    assert not body.is_open


async def test_a_body_of_unknown_length_has_no_content_length() -> None:
    client = StreamClient()
    response, pieces = await start_body(ThreePieces().response(length=None))
    assert pieces is not None
    await send_body(GET, response, pieces, [], client, UNKNOWN)
    assert (client.body, client.headers) == (b"012", {})


async def test_head_does_not_begin_to_read_a_streamed_body() -> None:
    body = ThreePieces()

    async def answer(_: Request) -> Response:
        return body.response()

    application = Application(None, Observation(RequestCounts()), {"/stream": answer})
    task, protocol = ask(application, "192.0.2.1:1", "/stream", "HEAD")
    await task
    (head,) = protocol.responses
    assert (head.status, head.headers["content-length"]) == (200, "3")
    assert not body.was_open


async def test_an_error_before_the_first_piece_becomes_an_error_response() -> None:
    response, pieces = await start_body(ThreePieces(fails_before=0).response())
    assert pieces is None
    assert isinstance(response, BytesResponse)
    assert response.status == 507
    assert b"no room" in response.content


async def test_an_error_in_the_middle_ends_the_body_early() -> None:
    client, body = StreamClient(), ThreePieces(fails_before=2)
    response, pieces = await start_body(body.response())
    assert pieces is not None
    await send_body(GET, response, pieces, [], client, UNKNOWN)
    assert (client.body, client.headers) == (b"01", {"content-length": "3"})


async def test_a_client_that_disconnects_holds_no_body_open() -> None:
    client, body = StreamClient(takes=1), ThreePieces()
    response, pieces = await start_body(body.response())
    assert pieces is not None
    await send_body(GET, response, pieces, [], client, UNKNOWN)
    assert client.body == b"0"
    assert not body.is_open


class Recorder:
    """A handler that records requests and returns one response."""

    def __init__(self, response: Response) -> None:
        self.requests: list[Request] = []
        self._response = response

    async def answer(self, request: Request) -> Response:
        self.requests.append(request)
        return self._response


async def answered(
    response: Response,
    *,
    method: str = "GET",
    path: str = "/v2/",
    query: str = "",
    headers: Iterable[tuple[str, str]] = (),
    trusted: str | None = None,
) -> tuple[Recorder, _Protocol]:
    """Send a request to an application whose only handler is the registry; return the application and the response."""
    recorder, protocol = Recorder(response), _Protocol()
    clients = Clients([ip_network(trusted)] if trusted else [])
    application = Application(recorder.answer, Observation(RequestCounts(), clients), {})
    scope = _Scope(method, path, query, _Headers([("host", "registry.example"), *headers]))
    await asyncio.create_task(application.__rsgi__(scope, protocol), context=Context())
    return recorder, protocol


async def test_repeated_fields_are_joined_and_the_query_is_decoded() -> None:
    fields = [("accept", "a"), ("accept", "b")]
    recorder, _ = await answered(BytesResponse(200, b""), query="n=1&last=a%2Fb&n=2&empty=", headers=fields)
    (request,) = recorder.requests
    assert request.headers["accept"] == "a, b"
    assert request.query == {"n": "2", "last": "a/b", "empty": ""}


@pytest.mark.parametrize("trusted", [None, "127.0.0.0/8"])
async def test_only_a_trusted_proxy_describes_a_request(trusted: str | None) -> None:
    fields = [("x-forwarded-host", "outside.example"), ("x-request-id", "mine")]
    recorder, protocol = await answered(BytesResponse(200, b""), headers=fields, trusted=trusted)
    (request,) = recorder.requests
    assert request.forwarded
    assert ("x-forwarded-host" in request.headers) is (trusted is not None)
    assert len(protocol.responses) == 1


async def test_head_has_the_length_of_get_and_no_body() -> None:
    _, protocol = await answered(BytesResponse(200, b"12345"), method="HEAD")
    (answer,) = protocol.responses
    assert (answer.headers["content-length"], answer.body) == ("5", b"")


async def test_an_unmodified_response_has_no_length() -> None:
    _, protocol = await answered(NotModified({"ETag": '"a"'}))
    (answer,) = protocol.responses
    assert (answer.status, answer.headers["etag"]) == (304, '"a"')
    assert "content-length" not in answer.headers


async def test_the_web_server_sends_a_file_or_a_part_of_it(tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(b"0123456789")
    _, whole = await answered(FileResponse(200, file, 10, None))
    _, part = await answered(FileResponse(206, file, 10, ByteRange(2, 4)))
    assert [(one.body, one.headers["content-length"]) for one in (*whole.responses, *part.responses)] == [
        (b"0123456789", "10"),
        (b"234", "3"),
    ]


async def test_a_refused_request_reaches_no_handler() -> None:
    recorder, protocol = await answered(BytesResponse(200, b""), headers=[("host", "other.example")])
    assert recorder.requests == []
    assert [answer.status for answer in protocol.responses] == [400]


async def test_the_first_matching_prefix_selects_the_handler_and_other_paths_are_not_found() -> None:
    api, pages = Recorder(BytesResponse(200, b"api")), Recorder(BytesResponse(200, b"page"))
    below = {"/api/": api.answer, "/b": pages.answer}
    one = Application(None, Observation(RequestCounts()), {}, below)
    for path, status, body in (
        ("/api/x", 200, b"api"),
        ("/builds", 200, b"page"),
        ("/", 404, b"UNSUPPORTED"),
    ):
        task, protocol = ask(one, "192.0.2.1:1", path)
        await task
        (answer,) = protocol.responses
        assert (answer.status, body in answer.body) == (status, True)


async def test_a_request_body_that_does_not_arrive_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_BODY_TIMEOUT", 0)
    slow = Slow()

    class Silent(_Protocol):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

    protocol = Silent()
    scope = _Scope("POST", "/api/v1/builds", "", _Headers([("host", "a")]))
    await asyncio.create_task(application(slow).__rsgi__(scope, protocol), context=Context())
    (answer,) = protocol.responses
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert slow.bodies == []


@pytest.mark.parametrize(
    ("path", "accept", "agent", "kind"),
    [
        ("/v2/git/manifests/latest", "text/html", "Mozilla/5.0", "text/html"),
        ("/none", "text/html", "Mozilla/5.0", "text/html"),
        ("/none", "text/html", "Lynx/2.9", "text/html"),
        ("/none", "*/*", "curl/8", "application/json"),
        ("/v2/git/manifests/latest", "*/*", "docker/27", "application/json"),
        # Java's default.
        (
            "/v2/git/manifests/latest",
            "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",
            "Java/17",
            "application/json",
        ),
    ],
)
async def test_an_error_is_a_page_for_a_person(path: str, accept: str, agent: str, kind: str) -> None:
    def page(request: Request, error: ErrorResponse) -> BytesResponse:
        assert request.path == path
        return BytesResponse(error.status, error.message.encode(), {"Content-Type": "text/html"})

    recorder, protocol = Recorder(errors_body(404, "NAME_UNKNOWN", "no such image")), _Protocol()
    application = Application(recorder.answer, Observation(RequestCounts()), {}, error_page=page)
    fields = [("accept", accept), ("user-agent", agent), ("sec-fetch-site", "none")]
    scope = _Scope("GET", path, "", _Headers([("host", "registry.example"), *fields]))
    await asyncio.create_task(application.__rsgi__(scope, protocol), context=Context())
    (response,) = protocol.responses
    assert (response.status, response.headers["content-type"]) == (404, kind)
