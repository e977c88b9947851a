"""What granian hands the application, as far as we use it (its docs/spec/RSGI.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

Fields = list[tuple[str, str]]


class Headers(Protocol):
    """Header fields of a request, names in lower case."""

    def items(self) -> Fields:
        """All of them, a name as often as it came."""
        ...


class Scope(Protocol):
    """The part of a request that we use; the path is percent-decoded, and HTTP/1.0 is version ``1``."""

    http_version: str
    method: str
    path: str
    query_string: str
    client: str
    headers: Headers


class Transport(Protocol):
    """Takes a body in pieces; it is over when the request's coroutine is."""

    async def send_bytes(self, data: bytes, /) -> None:
        """Send one piece."""
        ...


class AnswerProtocol(Protocol):
    """Takes an answer: exactly one call of these."""

    def response_empty(self, status: int, headers: Fields, /) -> None: ...  # noqa: D102
    def response_bytes(self, status: int, headers: Fields, body: bytes, /) -> None: ...  # noqa: D102
    def response_file(self, status: int, headers: Fields, file: str, /) -> None: ...  # noqa: D102
    def response_file_range(  # noqa: D102 -- the end is excluded
        self, status: int, headers: Fields, file: str, start: int, end: int, /
    ) -> None: ...
    def response_stream(self, status: int, headers: Fields, /) -> Transport: ...  # noqa: D102
    def __aiter__(self) -> AsyncIterator[bytes]: ...  # the body of the request
