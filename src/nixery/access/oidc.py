"""OpenID Connect: tokens of workloads become identities, and so does a login with the authorization code flow."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

import httpx
import structlog
from joserfc import jws
from joserfc.errors import JoseError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nixery.access.configuration import OidcIssuer
from nixery.access.identity import MOST_CLAIMS, MOST_GROUPS, CredentialsRefused, Identity, Kind, is_text
from nixery.access.issuer import ALGORITHMS, Issuer, open_client
from nixery.access.policy import matches
from nixery.caching import TTLCache
from nixery.errors import InternalError
from nixery.plain_text import escaped, shortened

# Characters of a token: one that names 200 groups has some 8000.
_LONGEST = 16 * 1024

# Commas in its claims, which bound their values: pydantic takes microseconds and a kilobyte for each wrong one, on the
# event loop, before any signature is checked.
_MOST_COMMAS = 1000

# Seconds by which the clocks of issuers may differ from this one.
_LEEWAY = 60.0

# Seconds for which a verified token is not verified again: a key that the issuer withdrew is refused after that. And
# bytes of all that are kept.
_KEPT, _CAPACITY = 300.0, 1024 * 1024

# Bytes of a file with a client's secret.
_LARGEST_SECRET = 4096

# Characters of a text of the token, or of the issuer, in a message.
_SHOWN = 200

_NUMBER = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]

_log = structlog.get_logger("nixery.oidc")


class _Algorithms(jws.JWSRegistry):
    """The algorithms of ``ALGORITHMS`` only. The library warns of EdDSA, which RFC 9864 calls Ed25519 now."""

    max_header_length = 4096
    max_payload_length = _LONGEST

    def get_alg(self, name: str) -> Any:  # noqa: ANN401 -- the library's type is not public
        if name not in ALGORITHMS:
            raise CredentialsRefused(f"the signature algorithm {_quoted(name)} is not accepted")
        return self.algorithms[name]


_REGISTRY = _Algorithms(strict_check_header=False)


class _Claims(BaseModel):
    """The registered claims (RFC 7519, 4.1); others are in ``model_extra``."""

    model_config = ConfigDict(extra="allow", strict=True)

    iss: str
    sub: Annotated[str, Field(min_length=1)]
    aud: str | Annotated[tuple[str, ...], Field(max_length=100)]
    exp: _NUMBER
    nbf: _NUMBER | None = None
    iat: _NUMBER | None = None
    azp: str | None = None
    nonce: str | None = None

    @property
    def audiences(self) -> Sequence[str]:
        return (self.aud,) if isinstance(self.aud, str) else self.aud

    @property
    def all(self) -> Mapping[str, object]:
        return {
            **(self.model_extra or {}),
            **self.model_dump(exclude_none=True, exclude=set(self.model_extra or ())),
        }


class _TokenAnswer(BaseModel):
    id_token: Annotated[str, Field(max_length=_LONGEST)]


class _ErrorAnswer(BaseModel):
    error: str


@dataclass(frozen=True, slots=True)
class Flow:
    """One login, from its beginning to its callback. All but the first are secrets of the browser and this server.

    Attributes:
        issuer: name of the section.
        state: that the callback has to repeat.
        nonce: that the token has to repeat.
        verifier: of PKCE (RFC 7636).
        redirect_uri: of the callback.
    """

    issuer: str
    state: str
    nonce: str
    verifier: str
    redirect_uri: str


class OidcIssuers:
    """Verifies tokens of the configured issuers, and logs in with those that have a client.

    Args:
        issuers: sections of the access file. Several may be of one issuer, for example with other audiences.
        clock: seconds since the epoch.
        open_client: makes the HTTP client for an issuer whose authorities are in a file.
        before: those of an earlier access file. Keys of issuers in both are kept: one of them may be down.

    Attributes:
        issuers: by URL and file of authorities.
    """

    def __init__(
        self,
        issuers: Sequence[OidcIssuer],
        clock: Callable[[], float] = time.time,
        open_client: Callable[[Path | None], httpx.AsyncClient] = open_client,
        before: OidcIssuers | None = None,
    ) -> None:
        self._sections = tuple(issuers)
        self._clock = clock
        places = {(section.issuer, section.ca_file) for section in issuers}
        known = {} if before is None else before.issuers
        self.issuers: Mapping[tuple[str, Path | None], Issuer] = {
            place: known.get(place) or Issuer(*place, clock, open_client) for place in places
        }
        self._verified: TTLCache[bytes, Identity] = TTLCache(_CAPACITY, clock)

    @property
    def logins(self) -> Sequence[str]:
        """Names of the issuers that users can log in with."""
        return [section.name for section in self._sections if section.client_id is not None]

    async def verify(self, token: str) -> Identity:
        """Verify a bearer token of a workload. A token that was verified a moment ago costs a look-up.

        Raises:
            CredentialsRefused: the token is not valid.
            IssuerUnreachable: it cannot be known whether it is.
        """
        if len(token) > _LONGEST:
            raise CredentialsRefused(f"the token has more than {_LONGEST} characters")
        key = hashlib.sha256(token.encode(errors="replace")).digest()
        found = self._verified.get(key)
        if found is not None:
            return found
        claims = _unverified(token)
        sections = [section for section in self._sections if section.issuer == claims.iss]
        if not sections:
            raise CredentialsRefused(f"tokens of the issuer {_quoted(claims.iss)} are not accepted")
        meant = [section for section in sections if section.audience in claims.audiences]
        if not meant:
            raise CredentialsRefused(
                f"the token is for the audience {_quoted(', '.join(claims.audiences))}; request one for "
                f"{' or '.join(sorted({section.audience for section in sections}))}"
            )
        refused: CredentialsRefused | None = None
        for section in meant:
            try:
                identity = await self._identity(section, token)
            except CredentialsRefused as error:
                refused = refused or error
            else:
                kept = min(_KEPT, claims.exp + _LEEWAY - self._clock())
                self._verified.put(key, identity, _size(identity), kept)
                return identity
        raise refused or CredentialsRefused("the token is not accepted")

    async def begin_login(self, name: str, redirect_uri: str) -> tuple[Flow, str]:
        """Return a new login, and the URL of the issuer's page that begins it.

        Args:
            name: of the section.
            redirect_uri: of the callback; the issuer has to know it.

        Raises:
            CredentialsRefused: there is no such issuer.
            IssuerUnreachable: the issuer does not answer.
        """
        section, issuer = self._login(name)
        discovery = await issuer.discovery()
        if discovery.authorization_endpoint is None:
            raise CredentialsRefused(f"the issuer {section.name} has no page for logins")
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        flow = Flow(name, state, nonce, verifier, redirect_uri)
        challenge = urlsafe_b64encode(hashlib.sha256(flow.verifier.encode()).digest()).rstrip(b"=").decode()
        query = urlencode(
            {
                "response_type": "code",
                "client_id": section.client_id or "",
                "redirect_uri": flow.redirect_uri,
                "scope": " ".join(dict.fromkeys(("openid", *section.scopes))),
                "state": flow.state,
                "nonce": flow.nonce,
                "code_challenge": challenge,
                "code_challenge_method": "S256",
            }
        )
        separator = "&" if urlsplit(discovery.authorization_endpoint).query else "?"
        return flow, f"{discovery.authorization_endpoint}{separator}{query}"

    async def finish_login(self, flow: Flow, code: str, issuer_of_code: str | None = None) -> Identity:
        """Redeem the code that the issuer gave to the browser.

        Args:
            flow: of the login.
            code: that the browser brought.
            issuer_of_code: that the browser named (RFC 9207); ``None`` for none. A code of another issuer is not sent
                to the one of the login, which may be hostile.

        Raises:
            CredentialsRefused: the issuer refuses the code, or its token is not valid.
            IssuerUnreachable: the issuer does not answer.
            InternalError: the client's secret cannot be read.
        """
        section, issuer = self._login(flow.issuer)
        client_id = section.client_id or ""
        discovery = await issuer.discovery()
        is_named = discovery.authorization_response_iss_parameter_supported or issuer_of_code is not None
        if is_named and issuer_of_code != section.issuer:
            raise CredentialsRefused("the code is from another issuer; log in again")
        if discovery.token_endpoint is None:
            raise CredentialsRefused(f"the issuer {section.name} has no endpoint for tokens")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": flow.redirect_uri,
            "code_verifier": flow.verifier,
        }
        secret = await asyncio.to_thread(_secret, section.client_secret_file)
        authorisation: httpx.Auth | None = None
        if secret is None:
            form["client_id"] = client_id
        elif "client_secret_basic" in discovery.token_endpoint_auth_methods_supported:
            # RFC 6749, 2.3.1: encoded as in a form.
            authorisation = httpx.BasicAuth(_form_encoded(client_id), _form_encoded(secret))
        else:
            form |= {"client_id": client_id, "client_secret": secret}
        status, content = await issuer.post(discovery.token_endpoint, form, authorisation)
        if status != httpx.codes.OK:
            reason = _error_of(content)
            # The reason is the operator's business as well: a wrong secret is answered so.
            _log.warning("login refused by the issuer", issuer=section.name, status=status, reason=reason)
            raise CredentialsRefused(f"the issuer {section.name} refused the login: {reason}; log in again")
        try:
            token = _TokenAnswer.model_validate_json(content).id_token
        except ValidationError:
            raise CredentialsRefused(
                f"the issuer {section.name} sent no usable token; log in again"
            ) from None
        return await self._identity(section, token, flow.nonce)

    async def close(self) -> None:
        """End requests to the issuers."""
        for issuer in self.issuers.values():
            await issuer.close()

    def _login(self, name: str) -> tuple[OidcIssuer, Issuer]:
        for section in self._sections:
            if section.name == name and section.client_id is not None:
                return section, self.issuers[section.issuer, section.ca_file]
        raise CredentialsRefused(f"there is no login with {_quoted(name)}")

    async def _identity(self, section: OidcIssuer, token: str, nonce: str | None = None) -> Identity:
        """Verify a token for one section.

        Args:
            section: of the token's issuer.
            token: of at most ``_LONGEST`` characters.
            nonce: of a login, whose token is for its client; ``None`` for the audience of workloads.
        """
        claims = await _verified_claims(token, self.issuers[section.issuer, section.ca_file])
        if claims.iss != section.issuer:
            raise CredentialsRefused("the token is from another issuer")
        self._check_times(claims)
        audience = section.audience if nonce is None else section.client_id
        if audience not in claims.audiences:
            raise CredentialsRefused("the token is for another audience")
        if nonce is not None:
            if not hmac.compare_digest((claims.nonce or "").encode(), nonce.encode()):
                raise CredentialsRefused("the token is of another login; log in again")
            if claims.azp not in {None, section.client_id}:
                raise CredentialsRefused("the token was issued to another client")
        return _identity(section, claims.all)

    def _check_times(self, claims: _Claims) -> None:
        now = self._clock()
        if claims.exp + _LEEWAY <= now:
            raise CredentialsRefused(f"the token expired {_ago(now - claims.exp)} ago; request a new one")
        for begin in (claims.nbf, claims.iat):
            if begin is not None and begin - _LEEWAY > now:
                raise CredentialsRefused(
                    f"the token is valid in {_ago(begin - now)} only; do the clocks of issuer and server differ?"
                )


def _unverified(token: str) -> _Claims:
    """Read the claims of a token, to find its issuer. They are not to be believed."""
    return _claims(_parsed(token).payload)


async def _verified_claims(token: str, issuer: Issuer) -> _Claims:
    parsed = _parsed(token)
    header = parsed.headers()
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise CredentialsRefused(f"the signature algorithm {_quoted(algorithm)} is not accepted")
    if "crit" in header or "b64" in header:
        raise CredentialsRefused("the token's header has extensions that are not known here")
    if kid is not None and not isinstance(kid, str):
        raise CredentialsRefused(_NO_TOKEN)
    key = await issuer.key(kid, algorithm)
    try:
        valid = jws.validate_compact(parsed, key, registry=_REGISTRY)
    except (JoseError, ValueError, TypeError):
        valid = False
    if not valid:
        raise CredentialsRefused("the signature of the token is wrong")
    return _claims(parsed.payload)


_NO_TOKEN = "this is not a token of an OpenID Connect issuer"  # noqa: S105 -- a message


def _parsed(token: str) -> jws.CompactSignature:
    try:
        parsed = jws.extract_compact(token.encode("ascii"), registry=_REGISTRY)
    except (JoseError, ValueError, TypeError, AttributeError, RecursionError):
        raise CredentialsRefused(_NO_TOKEN) from None
    # The library takes any JSON for a header that contains the text `alg`.
    if not isinstance(parsed.headers(), dict):
        raise CredentialsRefused(_NO_TOKEN)
    return parsed


def _claims(payload: bytes) -> _Claims:
    if payload.count(b",") > _MOST_COMMAS:
        raise CredentialsRefused(
            "the token has too many values; have the issuer send fewer claims and groups"
        )
    try:
        return _Claims.model_validate_json(payload)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"][:1]))
        # The names of claims in the model are the only ones that can be wrong.
        reason = f"its claim {where} is missing or wrong" if where else "it has no claims"
        raise CredentialsRefused(f"the token is not complete: {reason}") from None


def _identity(section: OidcIssuer, claims: Mapping[str, object]) -> Identity:
    for name, pattern in section.required_claims.items():
        values = list(_texts(name, claims))
        if not any(matches(pattern, value) for value in values):
            raise CredentialsRefused(f"the claim {name} of the token is not one that this server accepts")
    prefix = f"{section.name}:" if section.prefix is None else section.prefix
    users = list(_texts(section.user_claim, claims))
    if len(users) != 1 or not is_text(prefix + users[0]):
        raise CredentialsRefused(f"the claim {section.user_claim} of the token has no usable name")
    if section.user_claim == "email" and claims.get("email_verified", True) not in (True, "true"):
        raise CredentialsRefused("the issuer has not verified the address in the claim email")
    groups = [] if section.groups_claim is None else list(_texts(section.groups_claim, claims))
    if len(groups) > MOST_GROUPS:
        # Without some of them, a rule that forbids something to a group would not hold.
        raise CredentialsRefused(
            f"the token names {len(groups)} groups; {MOST_GROUPS} at most are accepted: have the issuer send fewer"
        )
    kept: dict[str, str] = {}
    for name in section.claims[:MOST_CLAIMS]:
        values = list(_texts(name, claims))
        if len(values) > 1:
            raise CredentialsRefused(
                f"the claim {name} of the token has {len(values)} values; one is accepted"
            )
        if values:
            kept[name] = values[0]
    return Identity(Kind.OIDC, prefix + users[0], frozenset(_prefixed(prefix, groups)), kept)


def _prefixed(prefix: str, groups: Sequence[str]) -> Iterator[str]:
    for group in groups:
        if not is_text(prefix + group):
            raise CredentialsRefused("the token names a group that is too long")
        yield prefix + group


def _texts(name: str, claims: Mapping[str, object]) -> Iterator[str]:
    """Yield the values of a claim as texts.

    Args:
        name: also a path, such as ``realm_access.roles``.
        claims: of the token.

    Raises:
        CredentialsRefused: a value cannot be used. If it was left out, a rule that forbids it would not hold.
    """
    found = _at(name, claims)
    for value in found if isinstance(found, list | tuple) else [found]:
        match value:
            case None:
                continue
            case bool():
                text = "true" if value else "false"
            case str() | int():
                text = str(value)
            case _:
                text = ""
        if not is_text(text):
            raise CredentialsRefused(
                f"the claim {name} of the token is not usable: too long, or with characters that cannot be printed"
            )
        yield text


def _at(path: str, claims: Mapping[str, object]) -> object:
    if path in claims:
        return claims[path]
    for index, character in enumerate(path):
        inner = claims.get(path[:index]) if character == "." else None
        if isinstance(inner, dict):
            return _at(path[index + 1 :], inner)
    return None


def _secret(file: Path | None) -> str | None:
    """Read a client's secret. Read for each login, so that it can be changed without a restart.

    Raises:
        InternalError: it cannot be read; the log says why.
    """
    if file is None:
        return None
    try:
        with file.open("rb") as opened:
            secret = opened.read(_LARGEST_SECRET).decode("ascii").strip()
    except (OSError, ValueError) as error:
        _log.error("cannot read the secret of an OpenID Connect client", file=str(file), reason=str(error))
        raise InternalError(None) from error
    return secret


def _form_encoded(text: str) -> str:
    return urlencode({"": text})[1:]


def _error_of(content: bytes) -> str:
    try:
        return _quoted(_ErrorAnswer.model_validate_json(content).error)
    except ValidationError:
        return "no reason given"


def _quoted(text: object) -> str:
    return shortened(escaped(str(text)), _SHOWN)


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"  # noqa: PLR2004 -- two minutes


def _size(identity: Identity) -> int:
    texts = (identity.name, *identity.groups, *identity.claims, *identity.claims.values())
    return sum(map(len, texts)) + 64 * len(texts)
