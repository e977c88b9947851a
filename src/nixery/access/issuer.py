"""An OpenID Connect issuer: its discovery document and its keys, fetched, checked and cached."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import httpx
import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from nixery.access.identity import CredentialsRefused
from nixery.caching import SingleFlight
from nixery.errors import IssuerUnreachable

# Bytes of an answer, and seconds for all answers of one refresh, or for the one of a login.
_LARGEST = 256 * 1024
_TIMEOUT = 10.0

# Keys of an issuer; those in use have two or three.
_MOST_KEYS = 100

# Seconds for which keys count as fresh: as the issuer says, within bounds.
_LEAST_FRESH, _FRESH, _MOST_FRESH = 300.0, 3600.0, 86_400.0
_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=\"?(\d{1,9})", re.ASCII | re.IGNORECASE)

# Seconds after which keys are not used any more, however long the issuer is down.
_LONGEST_USE = 86_400.0

# Seconds between two refreshes; and between two attempts while there are no keys at all.
_INTERVAL, _FIRST_INTERVAL = 60.0, 5.0

# Seconds that a request waits for a refresh although there is a key that verifies its token.
_PATIENCE = 2.0

# Bits of an RSA key, and characters of its exponent. Verification with a huge one would take long.
_LEAST_RSA, _MOST_RSA = 2048, 8192
_LONGEST_EXPONENT = 8

# Asymmetric algorithms, with the type of key and the curve that each needs. A symmetric one would make a public key a
# shared secret (RFC 8725, 2.1).
ALGORITHMS: Mapping[str, tuple[str, frozenset[str]]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", frozenset())),
    "ES256": ("EC", frozenset({"P-256"})),
    "ES384": ("EC", frozenset({"P-384"})),
    "ES512": ("EC", frozenset({"P-521"})),
    "EdDSA": ("OKP", frozenset({"Ed25519", "Ed448"})),
    "Ed25519": ("OKP", frozenset({"Ed25519"})),
}

# Members of a key that verification needs; a private part that an issuer published by mistake is not kept.
_PUBLIC_PARTS = ("kty", "n", "e", "crv", "x", "y")

_Text = Annotated[str, Field(min_length=1, max_length=4096)]
_Url = Annotated[str, Field(pattern=r"^https?://[!-~]+$", max_length=2048)]
_Key = RSAKey | ECKey | OKPKey

_log = structlog.get_logger("nixery.oidc")


class _Unusable(Exception):
    """An answer of the issuer cannot be used."""


class Discovery(BaseModel):
    """The part of a discovery document (OpenID Connect Discovery 1.0, 3) that verification and login need."""

    model_config = ConfigDict(frozen=True)

    issuer: str
    jwks_uri: _Url
    authorization_endpoint: _Url | None = None
    token_endpoint: _Url | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = Field(("client_secret_basic",), max_length=50)
    authorization_response_iss_parameter_supported: bool = False


class _PublishedKey(BaseModel):
    kty: Literal["RSA", "EC", "OKP"]
    kid: Annotated[str, Field(max_length=512)] | None = None
    use: Literal["sig"] | None = None
    alg: str | None = None
    crv: Annotated[str, Field(max_length=16)] | None = None
    n: Annotated[str, Field(max_length=_MOST_RSA // 6 + 4)] | None = None
    e: Annotated[str, Field(max_length=_LONGEST_EXPONENT)] | None = None
    x: Annotated[str, Field(max_length=128)] | None = None
    y: Annotated[str, Field(max_length=128)] | None = None


def _is_usable(found: object) -> _PublishedKey | None:
    """Check one key. Others of its set may be of kinds that are not known here (RFC 7517, 5)."""
    try:
        return _PublishedKey.model_validate(found)
    except ValidationError:
        return None


class _PublishedKeys(BaseModel):
    keys: tuple[Annotated[_PublishedKey | None, BeforeValidator(_is_usable)], ...] = Field(
        max_length=_MOST_KEYS
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """What an issuer published; the times are those of the clock."""

    discovery: Discovery
    keys: Sequence[tuple[_PublishedKey, _Key]]
    fresh_until: float
    usable_until: float

    def find(self, kid: str | None, algorithm: str) -> _Key | None:
        kind, curves = ALGORITHMS[algorithm]
        suitable = [
            key
            for published, key in self.keys
            if published.kty == kind
            and (not curves or published.crv in curves)
            and published.alg in {None, algorithm}
            and (kid is None or published.kid == kid)
        ]
        # A token without a key id is valid if only one key can be meant (OpenID Connect Core 1.0, 10.1).
        return suitable[0] if suitable and (kid is not None or len(suitable) == 1) else None


def open_client(ca_file: Path | None) -> httpx.AsyncClient:
    """Make a client that follows no redirects. Proxies and the machine's authorities are those of the environment.

    Args:
        ca_file: PEM of the authorities to trust; ``None`` for those of the machine, or of ``SSL_CERT_FILE``.
    """
    context = ssl.create_default_context(cafile=ca_file)
    return httpx.AsyncClient(verify=context, timeout=_TIMEOUT, follow_redirects=False)


class Issuer:
    """The documents of one issuer. Its answers are bounded in bytes and time, and it is asked once a minute at most.

    Args:
        url: as in the claim ``iss``.
        ca_file: of ``open_client``; read for each refresh.
        clock: seconds since the epoch.
        open_client: makes the client of one refresh.
    """

    def __init__(
        self,
        url: str,
        ca_file: Path | None,
        clock: Callable[[], float],
        open_client: Callable[[Path | None], httpx.AsyncClient] = open_client,
    ) -> None:
        self.url = url
        self._ca_file = ca_file
        self._clock = clock
        self._open_client = open_client
        self._known: _Known | None = None
        self._next_refresh = 0.0
        self._failed = False
        self._refreshes: SingleFlight[None, None] = SingleFlight()

    async def key(self, kid: str | None, algorithm: str) -> _Key:
        """Return the public key that verifies a token. An unknown id has the keys fetched again.

        Args:
            kid: of the token's header.
            algorithm: one of ``ALGORITHMS``.

        Raises:
            CredentialsRefused: the issuer has no such key.
            IssuerUnreachable: the issuer's keys are not known.
        """
        known = self._usable()
        found = None if known is None else known.find(kid, algorithm)
        if known is None or found is None or self._clock() >= known.fresh_until:
            await self._refresh(None if found is None else _PATIENCE)
            known = self._usable()
            found = None if known is None else known.find(kid, algorithm)
        if found is not None:
            return found
        if known is None or self._failed:
            raise IssuerUnreachable(self.url)
        raise CredentialsRefused(
            "none of the issuer's keys has signed the token; if the issuer has a new key, retry in a minute"
        )

    async def discovery(self) -> Discovery:
        """Return the discovery document.

        Raises:
            IssuerUnreachable: it is not known.
        """
        known = self._usable()
        if known is None or self._clock() >= known.fresh_until:
            await self._refresh(_PATIENCE if known else None)
            known = self._usable()
        if known is None:
            raise IssuerUnreachable(self.url)
        return known.discovery

    async def post(
        self, url: str, form: Mapping[str, str], authorisation: httpx.Auth | None
    ) -> tuple[int, bytes]:
        """Send a form; return the status and the body of the answer.

        Args:
            url: of the discovery document.
            form: fields.
            authorisation: of the client.

        Raises:
            IssuerUnreachable: there is no answer, or it is too large or too slow.
        """
        try:
            async with asyncio.timeout(_TIMEOUT), await self._client() as client:
                request = client.build_request("POST", url, data=dict(form), headers=_HEADERS)
                answer = await client.send(request, auth=authorisation, stream=True)
                try:
                    return answer.status_code, await _content(answer)
                finally:
                    await answer.aclose()
        except _FAILURES as error:
            self._fail(error)

    async def check(self) -> str | None:
        """Fetch the documents; return why they cannot be used, or ``None``. Logs and keeps nothing."""
        try:
            async with asyncio.timeout(_TIMEOUT), await self._client() as client:
                await self._documents(client)
        except _FAILURES as error:
            return _explain(error)
        return None

    async def close(self) -> None:
        """End a running refresh."""
        await self._refreshes.close()

    def _usable(self) -> _Known | None:
        known = self._known
        return known if known is not None and self._clock() < known.usable_until else None

    async def _refresh(self, patience: float | None) -> None:
        """Fetch the documents, unless that was tried a moment ago. Failures are recorded, not raised.

        Args:
            patience: seconds to wait at most; the work goes on.
        """
        if self._clock() < self._next_refresh:
            return
        wait = self._refreshes.run(None, self._fetch)
        done, _ = await asyncio.wait({wait}, timeout=patience)
        if done:
            wait.result()  # raises what ended it
        else:
            wait.cancel()

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT), await self._client() as client:
                self._known = await self._documents(client)
            self._failed = False
        except _FAILURES as error:
            self._failed = True
            _log.warning("issuer does not answer", issuer=self.url, reason=_explain(error))
        interval = _INTERVAL if self._usable() else _FIRST_INTERVAL
        self._next_refresh = self._clock() + interval

    async def _documents(self, client: httpx.AsyncClient) -> _Known:
        place = f"{self.url.rstrip('/')}/.well-known/openid-configuration"
        content, _ = await _get(client, place)
        discovery = Discovery.model_validate_json(content)
        if discovery.issuer != self.url:
            raise _Unusable(f"the discovery document is of another issuer: {discovery.issuer[:200]}")
        if self.url.startswith("https:"):
            for url in (discovery.jwks_uri, discovery.authorization_endpoint, discovery.token_endpoint):
                if url is not None and not url.startswith("https:"):
                    raise _Unusable(f"the discovery document has a URL without TLS: {url[:200]}")
        content, fresh = await _get(client, discovery.jwks_uri)
        published = _PublishedKeys.model_validate_json(content)
        keys = [(one, key) for one in published.keys if one is not None and (key := _imported(one))]
        if not keys:
            raise _Unusable("it has no keys that can be used")
        now = self._clock()
        return _Known(discovery, keys, now + fresh, now + _LONGEST_USE)

    async def _client(self) -> httpx.AsyncClient:
        # In a thread: it reads and parses all certificates of the machine.
        return await asyncio.to_thread(self._open_client, self._ca_file)

    def _fail(self, error: Exception) -> NoReturn:
        _log.warning("issuer does not answer", issuer=self.url, reason=_explain(error))
        raise IssuerUnreachable(self.url) from error


# An answer is read as it comes: decoded, it could be of any size.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}

_FAILURES = (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, ValueError, _Unusable)


async def _get(client: httpx.AsyncClient, url: str) -> tuple[bytes, float]:
    """Return a document, and the seconds for which it is fresh."""
    async with client.stream("GET", url, headers=_HEADERS) as answer:
        if answer.status_code != httpx.codes.OK:
            raise _Unusable(f"{url} is answered with status {answer.status_code}")
        age = _MAX_AGE.search(answer.headers.get("cache-control", ""))
        fresh = float(age[1]) if age else _FRESH
        return await _content(answer), min(max(fresh, _LEAST_FRESH), _MOST_FRESH)


async def _content(answer: httpx.Response) -> bytes:
    content = bytearray()
    async for piece in answer.aiter_raw():
        content += piece
        if len(content) > _LARGEST:
            raise _Unusable(f"{answer.url} has more than {_LARGEST} bytes")
    return bytes(content)


def _imported(published: _PublishedKey) -> _Key | None:
    parts: dict[str, Any] = published.model_dump(include=set(_PUBLIC_PARTS), exclude_none=True)
    try:
        # Bits of the modulus, before the library makes a key of it: it warns of a small one.
        if published.kty == "RSA" and not _LEAST_RSA <= len(published.n or "") * 6 <= _MOST_RSA + 6:
            return None
        key = JWKRegistry.import_key(parts)
    except (JoseError, ValueError, TypeError, KeyError, OverflowError):
        return None
    # A modulus may begin with zeros.
    if isinstance(key, RSAKey) and key.public_key.key_size < _LEAST_RSA:
        return None
    return key if isinstance(key, RSAKey | ECKey | OKPKey) else None


def _explain(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"its answer is not the expected document: {error.errors()[0]['msg']}"
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return f"no complete answer within {_TIMEOUT:g} seconds"
    return str(error) or type(error).__name__
