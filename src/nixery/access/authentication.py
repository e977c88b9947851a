"""Who sends a request: credentials of all kinds become an identity, once.

The header field ``Authorization`` carries a name and a password (``Basic``), or a token (``Bearer``) of the token
service, of the API, or of an OIDC issuer. Tokens of the last two are accepted as passwords as well, under any name,
since registry clients know nothing else. Without the field, a proxy may identify the client: by a certificate that it
hands on, or by a name. What was checked is remembered, so that no request hashes a password or
checks a signature that another one has.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nixery.access.api_tokens import ApiTokens
from nixery.access.certificates import CertificateVerifier
from nixery.access.configuration import Proxy
from nixery.access.failed_logins import FailedLogins
from nixery.access.identity import ANONYMOUS, CredentialsRefused, Identity, Kind, is_text
from nixery.access.oidc import OidcIssuers
from nixery.access.passwords import Htpasswd
from nixery.access.registry_tokens import LONGEST_TOKEN, RegistryTokens, looks_like_one
from nixery.caching import TTLCache
from nixery.request_context import Client

# Seconds for which checked credentials are remembered, at most: so long a deleted user or a revoked token may be used.
_REMEMBERED = 60.0

# The same for API tokens, whose records `api_tokens` remembers as well: both together are a minute.
_TOKENS_REMEMBERED = 15.0

# Bytes of what is remembered.
_CAPACITY = 4 * 1024 * 1024

# Characters of the header field.
_LONGEST = LONGEST_TOKEN + 1024

API_TOKEN_PREFIX = "nixery_"  # noqa: S105 -- marks a token, and is none

# Dots between the parts of a signed token, which begins with a JSON object in base64url (RFC 7515).
_DOTS, _JSON = 2, "eyJ"
_SIGNED = f"Bearer {_JSON}"

_REFUSED = "the user name or the password is wrong"


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A request's identity, and what its credentials are limited to.

    Attributes:
        identity: who sends the request.
        repositories: names of images that a token of the token service is for; ``None`` for other credentials.
        catalog: whether the credentials can be used to list images.
    """

    identity: Identity
    repositories: frozenset[str] | None = None
    catalog: bool = True


_ANONYMOUS = Authenticated(ANONYMOUS)


@dataclass(frozen=True, slots=True)
class Verifiers:
    """What checks credentials of each kind.

    Attributes:
        registry_tokens: of the token service.
        api_tokens: of the API.
        failed_logins: slows down attempts at passwords.
        passwords: ``None`` for no users with passwords.
        groups: users by group.
        oidc: tokens of issuers; ``None`` for none.
        proxy: that identifies users; ``None`` for none.
        certificates: that proxies hand on; ``None`` for none.
    """

    registry_tokens: RegistryTokens
    api_tokens: ApiTokens
    failed_logins: FailedLogins
    passwords: Htpasswd | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    oidc: OidcIssuers | None = None
    proxy: Proxy | None = None
    certificates: CertificateVerifier | None = None


class Authenticator:
    """Checks credentials.

    Args:
        verifiers: of each kind.
        clock: seconds; only differences matter.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        verifiers: Verifiers,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._verifiers = verifiers
        self._identified_by_proxies = verifiers.proxy is not None or verifiers.certificates is not None
        self._wall_clock = wall_clock
        # Under a keyed hash: passwords do not stay in memory.
        self._key = secrets.token_bytes(32)
        self._remembered: TTLCache[tuple[bytes, str | bytes], Authenticated] = TTLCache(_CAPACITY, clock)

    def remembered(self, headers: Mapping[str, str]) -> Authenticated | None:
        """Return the result for credentials that were checked a short time ago, or for a request without any."""
        authorization = headers.get("authorization")
        if authorization is None:
            return None if self._identified_by_proxies else _ANONYMOUS
        return self._remembered.get(self._key_of(authorization))

    def forget(self) -> None:
        """Check all credentials anew: a password may have changed."""
        self._key = secrets.token_bytes(32)

    async def authenticate(self, headers: Mapping[str, str], client: Client, peer: str) -> Authenticated:
        """Check the credentials of a request.

        Args:
            headers: by name in lower case.
            client: who is slowed down after failures.
            peer: address of the other end of the connection.

        Raises:
            CredentialsRefused: they are wrong: a request with wrong credentials is not anonymous.
            TooBusy: too many attempts failed, or too many are being checked.
            NixeryError: they cannot be checked at the moment.
        """
        authorization = headers.get("authorization")
        if authorization is None:
            return self._by_certificate(headers, peer) or self._by_proxy(headers, peer) or _ANONYMOUS
        if len(authorization) > _LONGEST:
            raise CredentialsRefused("the credentials are too long")
        key = self._key_of(authorization)
        found = self._remembered.get(key)
        if found is not None:
            return found
        scheme, _, value = authorization.partition(" ")
        match scheme.lower():
            case "bearer":
                found, seconds = await self._by_token(value.strip())
            case "basic":
                found, seconds = await self._by_basic(value.strip(), client)
            case _:
                raise CredentialsRefused("this registry takes Basic and Bearer credentials")
        if seconds > 0:
            self._remembered.put(key, found, 256 + len(authorization), seconds)
        return found

    async def _by_token(self, token: str) -> tuple[Authenticated, float]:
        if token.startswith(API_TOKEN_PREFIX):
            return Authenticated(await self._verifiers.api_tokens.verify(token)), _TOKENS_REMEMBERED
        if looks_like_one(token):
            grants = await self._verifiers.registry_tokens.verify(token)
            left = grants.expires - self._wall_clock()
            return Authenticated(grants.identity, grants.repositories, grants.catalog), left
        if self._verifiers.oidc is None:
            raise CredentialsRefused("the token is of no kind that this registry knows")
        # They remember tokens until these expire.
        return Authenticated(await self._verifiers.oidc.verify(token)), 0.0

    async def authenticate_password(self, user: str, password: str, client: Client) -> Authenticated:
        """Check a name and a password, which may be a token.

        Raises:
            CredentialsRefused, TooBusy, NixeryError: as ``authenticate``.
        """
        credentials = base64.b64encode(f"{user}:{password}".encode(errors="surrogatepass")).decode()
        return await self.authenticate({"authorization": f"Basic {credentials}"}, client, "")

    async def _by_basic(self, value: str, client: Client) -> tuple[Authenticated, float]:
        try:
            user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
        except ValueError:
            raise CredentialsRefused("the Basic credentials are malformed (RFC 7617)") from None
        if colon and not user and not password:
            # Some clients send empty credentials if they have none, as the official conformance suite does.
            return _ANONYMOUS, _REMEMBERED
        if not colon or not is_text(user):
            raise CredentialsRefused(_REFUSED)
        # A wrong token does not slow its client down: a token cannot be guessed.
        if password.startswith(API_TOKEN_PREFIX) or (
            self._verifiers.oidc is not None and password.startswith(_JSON) and password.count(".") == _DOTS
        ):
            # Clients send their password to get a token; one of the token service would renew itself for ever.
            if looks_like_one(password):
                raise CredentialsRefused("a token of this registry is no password; log in again")
            return await self._by_token(password)
        self._verifiers.failed_logins.admit(client.name, user)
        passwords = self._verifiers.passwords
        if passwords is None or not await passwords.verify(user, password):
            self._verifiers.failed_logins.failed(client.name, user)
            is_known = passwords is not None and passwords.has_user(user)
            raise CredentialsRefused(_REFUSED, user if is_known else None)
        self._verifiers.failed_logins.succeeded(client.name, user)
        groups = (group for group, users in self._verifiers.groups.items() if user in users)
        return Authenticated(Identity(Kind.PASSWORD, user, frozenset(groups))), _REMEMBERED

    def _by_certificate(self, headers: Mapping[str, str], peer: str) -> Authenticated | None:
        certificates = self._verifiers.certificates
        identity = None if certificates is None else certificates.identity(headers, peer)
        return None if identity is None else Authenticated(identity)

    def _by_proxy(self, headers: Mapping[str, str], peer: str) -> Authenticated | None:
        proxy = self._verifiers.proxy
        if proxy is None or not proxy.has_address(peer):
            return None
        user = headers.get(proxy.user_header.lower(), "").strip()
        if not user:
            return None
        if not is_text(user):
            raise CredentialsRefused("the proxy sent a user name that cannot be used")
        listed = headers.get(proxy.groups_header.lower(), "") if proxy.groups_header else ""
        groups = frozenset(group for part in listed.split(",") if is_text(group := part.strip()))
        return Authenticated(Identity(Kind.PROXY, user, groups))

    def _key_of(self, authorization: str) -> tuple[bytes, str | bytes]:
        # Signed tokens are long and live for minutes: a hash of each would cost as much as all that follows.
        if authorization.startswith(_SIGNED):
            return self._key, authorization
        return self._key, hmac.digest(self._key, authorization.encode(errors="surrogatepass"), hashlib.sha256)
