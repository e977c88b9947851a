"""A client for registries: authorised requests, retries, and error messages of one line."""

from __future__ import annotations

import asyncio
import random
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from nixery.errors import PushFailed
from nixery.plain_text import shortened
from nixery.push.auth import Authorisation

_HOST = r"\[[0-9a-fA-F:]+\](?::\d+)?|[a-zA-Z0-9.-]+(?::\d+)?"
# Repository names and tags are those of the distribution specification ("Pulling manifests").
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TARGET = re.compile(
    rf"(?P<host>{_HOST})/(?P<name>{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>[a-zA-Z0-9_][a-zA-Z0-9._-]{{0,127}}))?",
    re.ASCII,
)
_LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?", re.ASCII)

# Seconds without a byte: a registry may need minutes to verify a large layer.
_TIMEOUT = httpx.Timeout(300.0, connect=20.0)

# Bytes of an answer that are read, and seconds for all of it.
_LARGEST_ANSWER = 1024 * 1024
_ANSWER_TIMEOUT = 300.0

# Header fields that do not apply to the undecoded beginning of a body.
_BODY_FIELDS = (b"content-encoding", b"content-length", b"transfer-encoding")

# Characters of a registry's error message that are shown.
_SHOWN = 1000

_ATTEMPTS = 5

# Seconds between two attempts, at most.
_LONGEST_DELAY = 60.0

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})

_MEANING = {
    401: "not logged in, or wrong password; log in with docker login or podman login",
    403: "no permission to push",
    404: "no such repository, or not a registry",
    405: "the registry accepts no pushes",
    413: "too large for the registry",
    429: "too many requests",
}

Body = Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Target:
    """A tag of a repository in a registry.

    Attributes:
        host: with its port, if any.
    """

    host: str
    name: str
    tag: str

    def __str__(self) -> str:
        return f"{self.host}/{self.name}:{self.tag}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, where plain HTTP is as safe as TLS."""
        return _LOOPBACK.fullmatch(self.host) is not None

    @classmethod
    def parse(cls, text: str, tag: str) -> Target:
        """Parse ``HOST[:PORT]/NAME[:TAG]``.

        Args:
            text: a value of ``--output``.
            tag: used if the text has none.

        Raises:
            ValueError: it is invalid.
        """
        found = _TARGET.fullmatch(text)
        if found is None:
            raise ValueError(f"invalid target {text!r}: write HOST[:PORT]/NAME[:TAG]")
        return cls(found["host"], found["name"], found["tag"] or tag)


def open_client(*, verify: bool) -> httpx.AsyncClient:
    """Make an HTTP client that trusts the machine's certificates; OpenSSL reads ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``.

    Args:
        verify: whether the registry's certificate has to be trusted.
    """
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return _BoundedClient(verify=context, timeout=_TIMEOUT, follow_redirects=False)


class _BoundedClient(httpx.AsyncClient):
    """Reads the beginning of each answer, undecoded: bounds its time and size, and decompresses nothing."""

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,  # noqa: ARG002 -- httpx's signature
        **options: Any,  # noqa: ANN401 -- likewise
    ) -> httpx.Response:
        answer = await super().send(request, stream=True, **options)
        content = bytearray()
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                async for chunk in answer.aiter_raw():
                    content += chunk[: _LARGEST_ANSWER - len(content)]
                    if len(content) == _LARGEST_ANSWER:
                        break
        except TimeoutError as error:
            raise httpx.ReadTimeout(
                f"no complete answer within {_ANSWER_TIMEOUT:g} seconds", request=request
            ) from error
        finally:
            await answer.aclose()
        headers = [(name, value) for name, value in answer.headers.raw if name.lower() not in _BODY_FIELDS]
        return httpx.Response(
            answer.status_code,
            headers=headers,
            content=bytes(content),
            request=request,
            extensions={"reason_phrase": answer.reason_phrase.encode("ascii", "replace")},
        )


class RegistryClient:
    """Sends requests to one registry.

    Args:
        http: of ``open_client``.
        base: scheme and host.
        delay: seconds before the second attempt; twice that before each further one.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        target: Target,
        base: str,
        authorisation: Authorisation,
        *,
        delay: float = 1.0,
    ) -> None:
        self._http = http
        self._target = target
        self._base = httpx.URL(base)
        self._authorisation = authorisation
        self._delay = delay

    def url(self, path: str) -> httpx.URL:
        """Return the URL of a path, or of a ``Location``, which may be relative (RFC 9110).

        Raises:
            PushFailed: it is not a valid URL.
        """
        try:
            return self._base.join(path)
        except httpx.InvalidURL as error:
            raise PushFailed(
                f"{self._target.host}: the Location of an answer is not a URL: {error}"
            ) from error

    async def request(
        self,
        method: str,
        url: httpx.URL,
        *,
        expected: frozenset[int],
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request, and retry until its answer is expected.

        Raises:
            PushFailed: the registry refuses, or does not answer.
        """

        async def once() -> httpx.Response:
            return await self.once(method, url, content=content, headers=headers)

        return await self.retried(once, expected)

    async def retried(
        self, once: Callable[[], Awaitable[httpx.Response]], expected: frozenset[int]
    ) -> httpx.Response:
        """Repeat an attempt, which may be more than one request, until its answer is expected.

        Raises:
            PushFailed: the registry refuses, or does not answer.
        """
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            wait = self._delay * 2**attempt * random.uniform(1, 1.25)  # noqa: S311 -- so that uploads spread
            try:
                answer = await once()
            except httpx.TransportError as error:
                if last or _is_permanent(error):
                    raise PushFailed(f"{self._target.host}: {_explain(error)}") from error
            else:
                if answer.status_code in expected:
                    return answer
                if last or answer.status_code not in _RETRIED:
                    raise PushFailed(f"{self._target}: {_refusal(answer)}")
                asked = answer.headers.get("retry-after", "")
                wait = float(asked) if asked.isdecimal() else wait
            await asyncio.sleep(min(wait, _LONGEST_DELAY))
        raise AssertionError("the last attempt returns or raises")

    async def once(
        self,
        method: str,
        url: httpx.URL,
        *,
        content: bytes | None = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request once; twice if the registry asks for authorisation.

        Raises:
            PushFailed: there is no authorisation.
            httpx.TransportError: the registry cannot be reached.
        """
        for last in (False, True):
            header = self._authorisation.header
            # A registry may redirect uploads to another host, which must not get the credentials.
            ours = (url.scheme, url.netloc) == (self._base.scheme, self._base.netloc)
            authorisation = {"Authorization": header} if header and ours else {}
            answer = await self._http.request(
                method, url, content=body() if body else content, headers={**(headers or {}), **authorisation}
            )
            refused = answer.status_code == httpx.codes.UNAUTHORIZED and ours
            if last or not refused or not await self._authorisation.renew(self._http, header, answer):
                return answer
        raise AssertionError("the second answer is returned")


def _is_permanent(error: httpx.TransportError) -> bool:
    return isinstance(cause_of(error), ssl.SSLError) or isinstance(error, httpx.UnsupportedProtocol)


def cause_of(error: BaseException) -> BaseException:
    """Return the first cause that is a TLS error, or the last cause: httpx's own messages say little."""
    while not isinstance(error, ssl.SSLError):
        deeper = error.__cause__ or error.__context__
        if deeper is None:
            break
        error = deeper
    return error


def _explain(error: httpx.TransportError) -> str:
    cause = cause_of(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message} (set SSL_CERT_FILE, or use --tls-verify=false)"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason or cause}; for plain HTTP, use --tls-verify=false"
    if isinstance(error, httpx.TimeoutException):
        return "timed out"
    return f"cannot connect: {str(cause) or str(error) or type(error).__name__}"


def _refusal(answer: httpx.Response) -> str:
    try:
        reasons = "; ".join(
            f"{e.get('code', '')} {e.get('message', '')}".strip() for e in answer.json()["errors"]
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        reasons = ""
    meaning = _MEANING.get(answer.status_code, answer.reason_phrase)
    what = f"{answer.request.method} failed with {answer.status_code}"
    reasons = shortened(reasons, _SHOWN)
    return " ".join(f"{what}: {meaning}{f' ({reasons})' if reasons else ''}".split())
