"""Bodies that are read while they are sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]

from nixery.errors import StorageFull
from nixery.server.app import begun, send_pieces
from nixery.server.connections import Backpressure
from nixery.server.http import BytesResponse, Fields, Request, StreamResponse

GET = Request("GET", "/v2/git/blobs/x", {}, {}, b"")
# Of a client without a connection.
UNKNOWN = Backpressure("192.0.2.1:1")

HEAD = Request("HEAD", "/v2/git/blobs/x", {}, {}, b"")


class Body:
    """Three pieces, or fewer and an error; knows whether it was closed."""

    def __init__(self, fails_before: int | None = None) -> None:
        self.is_open = False
        self._fails_before = fails_before

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Begin to read."""
        self.is_open = True
        try:
            for number in range(3):
                if number == self._fails_before:
                    raise StorageFull("no room")
                yield b"%d" % number
        finally:
            self.is_open = False

    def response(self, length: int | None = 3) -> StreamResponse:
        """What a handler answers."""
        return StreamResponse(200, length, self.pieces)


class Client:
    """Takes so many pieces, and goes."""

    def __init__(self, patience: int = 100) -> None:
        self.body = b""
        self.headers: dict[str, str] = {}
        self._patience = patience

    def response_stream(self, status: int, headers: Fields, /) -> Client:
        """See ``AnswerProtocol``."""
        assert status == 200
        self.headers = dict(headers)
        return self

    async def send_bytes(self, data: bytes, /) -> None:
        """See ``Transport``."""
        if not self._patience:
            raise ProtocolClosed
        self._patience -= 1
        self.body += data

    def response_empty(self, status: int, headers: Fields, /) -> None:
        """See ``AnswerProtocol``."""
        raise AssertionError(status, headers)

    def response_bytes(self, status: int, headers: Fields, body: bytes, /) -> None:
        """See ``AnswerProtocol``."""
        raise AssertionError(status, headers, body)

    def response_file(self, status: int, headers: Fields, file: str, /) -> None:
        """See ``AnswerProtocol``."""
        raise AssertionError(status, headers, file)

    def response_file_range(self, status: int, headers: Fields, file: str, start: int, end: int, /) -> None:
        """See ``AnswerProtocol``."""
        raise AssertionError(status, headers, file, start, end)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """See ``AnswerProtocol``."""
        yield b""


async def test_all_pieces_are_sent_with_their_length() -> None:
    client, body = Client(), Body()
    response, pieces = await begun(GET, body.response())
    assert pieces is not None
    await send_pieces(GET, response, pieces, [], client, UNKNOWN)
    assert (client.body, client.headers) == (b"012", {"content-length": "3"})
    assert not body.is_open


async def test_a_body_whose_length_nobody_knows_has_none() -> None:
    client = Client()
    response, pieces = await begun(GET, Body().response(length=None))
    assert pieces is not None
    await send_pieces(GET, response, pieces, [], client, UNKNOWN)
    assert (client.body, client.headers) == (b"012", {})


async def test_nothing_is_read_for_head() -> None:
    body = Body()
    response, pieces = await begun(HEAD, body.response())
    assert pieces is None
    assert response.length == 3
    assert not body.is_open


async def test_what_cannot_be_read_at_all_is_an_error_that_is_told() -> None:
    response, pieces = await begun(GET, Body(fails_before=0).response())
    assert pieces is None
    assert isinstance(response, BytesResponse)
    assert response.status == 507
    assert b"no room" in response.content


async def test_an_error_in_the_middle_ends_the_body_early() -> None:
    client, body = Client(), Body(fails_before=2)
    response, pieces = await begun(GET, body.response())
    assert pieces is not None
    await send_pieces(GET, response, pieces, [], client, UNKNOWN)
    assert (client.body, client.headers) == (b"01", {"content-length": "3"})


async def test_a_client_that_goes_holds_nothing_open() -> None:
    client, body = Client(patience=1), Body()
    response, pieces = await begun(GET, body.response())
    assert pieces is not None
    await send_pieces(GET, response, pieces, [], client, UNKNOWN)
    assert client.body == b"0"
    assert not body.is_open


async def test_what_is_no_stream_is_left_alone() -> None:
    answer = BytesResponse(200, b"x")
    assert await begun(GET, answer) == (answer, None)
