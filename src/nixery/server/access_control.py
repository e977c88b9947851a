"""Access at the door: every request gets an identity, and the token service gives tokens to registry clients.

What an identity may do with an image is decided where the image is known: ``registry.permissions``, and the modules
that publish packages, images and builds.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.parse import parse_qsl

from nixery.access.audit import AuditLog
from nixery.access.authentication import Authenticated
from nixery.access.identity import CredentialsRefused, Right
from nixery.access.loading import AccessRules
from nixery.access.policy import current_access, enter_access
from nixery.access.quotas import Quotas
from nixery.access.registry_tokens import SERVICE
from nixery.errors import LoginRequired, NixeryError
from nixery.image.name import COMPONENT, requests_for
from nixery.image.platform import Platform
from nixery.request_context import Client, current_request
from nixery.server.clients import base_url, host_of
from nixery.server.errors import error_response, errors_body
from nixery.server.http import BytesResponse, Request, Response
from nixery.server.login import PATHS as LOGIN_PATHS
from nixery.server.login import Login
from nixery.server.observation import Observed

TOKEN_PATH = "/v2/token"  # noqa: S105 -- a path
_CATALOG = "/v2/_catalog"

# Paths for everybody: what orchestrators ask, what pages need, and where somebody logs in.
_OPEN = frozenset({"/healthz", "/readyz", "/favicon.ico"})
_OPEN_PREFIX = "/static/"

# Paths that no quota counts: an orchestrator would restart a server that does not answer.
_HEALTH = frozenset({"/healthz", "/readyz"})

# Of a request of the token service: scopes, and characters of each; clients ask for one or two.
_MOST_SCOPES, _LONGEST_SCOPE = 32, 512
_SCOPE = re.compile(
    r"(?P<type>[a-z]+)(?:\([a-z]+\))?:(?P<name>[^:\s]+(?::\d+/[^:\s]+)?):(?P<actions>[a-z*,]*)"
)

_REPOSITORY = re.compile(
    rf"/v2/(?P<name>{COMPONENT}(?:/{COMPONENT})*)/(?:manifests|blobs|referrers|tags)/", re.ASCII
)

# What an answer depends on, besides the path.
_VARIES = "Authorization, Cookie"

# Statuses of an answer to something that is not allowed.
_REFUSALS = frozenset({401, 403, 404, 429})
_UNAUTHORIZED = 401
_FORM = "application/x-www-form-urlencoded"


class AccessControl:
    """Identifies who sends a request, and refuses those who may do nothing.

    Args:
        rules: those that apply.
        quotas: of requests.
        platforms: of a name without a platform.
        secret: of the sessions that logins by browser begin; servers of a storage share it.
        audit: records refusals; ``None`` for no record.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        rules: AccessRules,
        quotas: Quotas,
        platforms: Sequence[Platform],
        secret: bytes,
        audit: AuditLog | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._quotas = quotas
        self._platforms = platforms
        self._secret = secret
        self._login = Login(rules.current.oidc, secret)
        self._login_of = rules.current
        self._audit = audit
        self._clock = clock

    async def admit(self, request: Request, observed: Observed) -> tuple[Request, Response | None]:
        """Identify the sender of a request.

        Returns:
            The request with what its credentials are for; and the answer that refuses it, or ``None``.
        """
        rules = self._rules.current
        try:
            found = rules.authenticator.remembered(request.headers)
            if found is None:
                peer = host_of(observed.peer)
                found = await rules.authenticator.authenticate(request.headers, observed.client, peer)
            if found.identity.is_anonymous and "cookie" in request.headers:
                identity = self._present_login().identity_of(request)
                found = found if identity is None else Authenticated(identity)
            enter_access(rules.policy.access(found.identity))
            observed.identify(found.identity)
            if not self._quotas.is_empty and request.path not in _HEALTH:
                self._quotas.request(found.identity, observed.client)
        except CredentialsRefused as error:
            return request, self._refused(error)
        except NixeryError as error:
            return request, error_response(error)
        if found.repositories is not None:
            # In place: a copy would cost as much as the rest of this. No handler has seen the request yet.
            request.repositories, request.catalog = found.repositories, found.catalog
        return request, await self._at_door(request, found, observed)

    async def _at_door(  # noqa: PLR0911 -- a kind of path each
        self, request: Request, found: Authenticated, observed: Observed
    ) -> Response | None:
        path, access = request.path, current_access()
        if path == TOKEN_PATH:
            return await self._token(request, found, observed)
        if path in LOGIN_PATHS:
            return await self._present_login().routes()[path](request)
        if path in _OPEN or path.startswith(_OPEN_PREFIX):
            return None
        if path in ("/v2", "/v2/"):
            # Clients log in here. Who needs no login is asked to get a token without credentials, which is accepted
            # like any other, or pulls without one.
            required = LoginRequired("send credentials to log in; images for everybody need none")
            without = found.identity.is_anonymous and found.repositories is None
            return error_response(required) if without else None
        if path.rstrip("/") == _CATALOG and self._credentials_show_more(request, found):
            return error_response(
                LoginRequired("send credentials, or get a token without any, to list images")
            )
        if found.repositories is not None and not path.startswith("/v2/"):
            # It was issued to pull some images, and its holder may be less trusted than its owner.
            return errors_body(
                _UNAUTHORIZED, "UNAUTHORIZED", "send credentials, not a token for pulling images"
            )
        if path == "/metrics":
            allowed = access.allows_anything(Right.ADMIN)
            return (
                None
                if allowed
                else error_response(access.denial("read figures of the server", "page", Right.ADMIN, path))
            )
        if path.startswith("/v2/") or any(map(access.allows_anything, Right)):
            return None
        return error_response(access.denial("use this registry", "page", None, path))

    def _credentials_show_more(self, request: Request, found: Authenticated) -> bool:
        """Whether a list is asked for without credentials, and somebody with some may see more.

        Clients that have credentials send them if they are challenged, and not before.
        """
        if not found.identity.is_anonymous or "authorization" in request.headers:
            return False
        rules = self._rules.current.policy.rules
        return any(Right.PULL in rule.may and not rule.is_for(found.identity) for rule in rules)

    def _present_login(self) -> Login:
        if self._login_of is not self._rules.current:
            self._login_of = self._rules.current
            self._login = Login(self._login_of.oidc, self._secret)
        return self._login

    def _refused(self, error: CredentialsRefused) -> Response:
        if self._audit is not None:
            self._audit.login_failed(str(error), error.user)
        return errors_body(_UNAUTHORIZED, "UNAUTHORIZED", f"authentication failed: {error}")

    def finish(self, request: Request, response: Response) -> Response:
        """Add to an answer how to log in, if that is what it asks for; keep it out of shared caches; record a refusal.

        A cache between the server and its clients must not give one client what only another may see. Only answers to
        anonymous clients, which everybody may see, can be public.
        """
        if self._audit is not None and response.status in _REFUSALS:
            asked = current_request()
            if asked is not None and asked.refused is not None:
                self._audit.refused(asked.refused)
        if request.path.startswith(_OPEN_PREFIX):
            return response
        headers = {**response.headers}
        varies = headers.get("Vary")
        headers["Vary"] = f"{varies}, {_VARIES}" if varies else _VARIES
        if not current_access().identity.is_anonymous:
            kept = headers.get("Cache-Control", "private")
            headers["Cache-Control"] = kept.replace("public", "private")
        if response.status == _UNAUTHORIZED and isinstance(response, BytesResponse):
            way_in = self._present_login().way_in(request)
            if way_in is not None:
                return way_in
            headers["WWW-Authenticate"] = self._challenge(request)
        return replace(response, headers=headers)

    def _challenge(self, request: Request) -> str:
        """Return how a client logs in (RFC 7235): registry clients with a token, others with a password."""
        path = request.path
        if not path.startswith("/v2") or path == TOKEN_PATH:
            return f'Basic realm="{SERVICE}", charset="UTF-8"'
        scope = ""
        match = _REPOSITORY.match(path)
        if match is not None:
            scope = f',scope="repository:{match["name"]}:pull"'
        elif path.startswith(_CATALOG):
            scope = ',scope="registry:catalog:*"'
        error = ""
        if request.repositories is not None:
            # A valid token: podman asks for one with the scope, docker says that a login may be required.
            error = ',error="insufficient_scope"'
        elif "authorization" in request.headers:
            error = ',error="invalid_token"'
        return f'Bearer realm="{base_url(request)}{TOKEN_PATH}",service="{SERVICE}"{scope}{error}'

    async def _token(self, request: Request, found: Authenticated, observed: Observed) -> Response:
        """Answer a request of the token service: GET with Basic credentials, or POST of a form (OAuth 2)."""
        if request.method == "POST":
            return await self._token_for_form(request, observed)
        if request.method not in ("GET", "HEAD"):
            message = "method not allowed: use GET or POST"
            return errors_body(405, "UNSUPPORTED", message, headers={"Allow": "GET, HEAD, POST"})
        return await self._issued(found, parse_qsl(request.query_string))

    async def _token_for_form(self, request: Request, observed: Observed) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.body is None:
            return errors_body(413, "SIZE_INVALID", "the form is too large")
        try:
            form = parse_qsl(request.body.decode(), max_num_fields=_MOST_SCOPES) if kind == _FORM else []
        except ValueError:
            form = []
        fields = dict(form)
        if fields.get("grant_type") != "password":
            # There are no refresh tokens: clients send the password again, as with GET.
            return errors_body(400, "UNSUPPORTED", f"send a form ({_FORM}) with grant_type=password")
        try:
            found = await self._rules.current.authenticator.authenticate_password(
                # By address: somebody with credentials must not have more attempts at those of others.
                fields.get("username", ""),
                fields.get("password", ""),
                Client(observed.address),
            )
        except CredentialsRefused as error:
            return self._refused(error)
        except NixeryError as error:
            return error_response(error)
        return await self._issued(found, form)

    async def _issued(self, found: Authenticated, parameters: Sequence[tuple[str, str]]) -> Response:
        # A token must not be used to get another one that lives longer, or is for more images.
        if found.repositories is not None:
            return errors_body(_UNAUTHORIZED, "UNAUTHORIZED", "send credentials, not a token of this service")
        identity = found.identity
        service = dict(parameters).get("service", SERVICE)
        if service != SERVICE:
            return errors_body(400, "UNSUPPORTED", f"service should be {SERVICE}")
        # One parameter may have several scopes, and there may be several parameters.
        scopes = " ".join(value for name, value in parameters if name == "scope").split()[:_MOST_SCOPES]
        access = self._rules.current.policy.access(identity)
        names: set[str] = set()
        catalog = False
        for scope in scopes:
            match = _SCOPE.fullmatch(scope) if len(scope) <= _LONGEST_SCOPE else None
            if match is None:
                continue
            if match["type"] == "registry":
                catalog = True
            elif "pull" in match["actions"] or "*" in match["actions"]:
                name = match["name"]
                try:
                    access.require_anywhere(Right.PULL, requests_for(name, self._platforms), name)
                except NixeryError:
                    continue  # the registry's answer to the pull says why
                names.add(name)
        try:
            token = await self._rules.tokens.issue(identity, frozenset(names), catalog=catalog)
        except NixeryError as error:
            return error_response(error)
        document = {
            "token": token,
            "access_token": token,
            "expires_in": self._rules.tokens.lifetime,
            "issued_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock())),
        }
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
        return BytesResponse(200, json.dumps(document).encode(), headers)
