"""What a registry wants to see before it does anything: Basic, or a token from somebody else (distribution, "Token Authentication")."""

from __future__ import annotations

import asyncio
import re

import httpx

from nixery.errors import PushFailed
from nixery.pushing.credentials import Credentials

_CHALLENGE = re.compile(r"(?P<scheme>[a-zA-Z]+)\s+(?P<parameters>.*)", re.DOTALL)
# Only the beginning of a word is matched: a registry may send a long one.
_PARAMETER = re.compile(r'(?<!\w)(\w+)="([^"]*)"')

# Header fields contain it (RFC 6750, 2.1, and other characters in use).
_TOKEN = re.compile(r"[\x21-\x7e]+", re.ASCII)
_CLIENT = "nixery"


class Authorisation:
    """The ``Authorization`` header for one registry; a token is asked for when it is, and again when it has run out.

    Args:
        credentials: ``None`` for nobody in particular.
        scope: of tokens.
        insecure: whether credentials may go over plain HTTP to another machine.
    """

    def __init__(self, credentials: Credentials | None, scope: str, *, insecure: bool) -> None:
        self._credentials = credentials
        self._scope = scope
        self._insecure = insecure
        self._lock = asyncio.Lock()
        self.header: str | None = None

    async def renew(self, client: httpx.AsyncClient, refused: str | None, answer: httpx.Response) -> bool:
        """Answer a challenge; return whether there is another header now than the one that was refused.

        Raises:
            PushFailed: no token can be had.
            httpx.TransportError: nobody answers.
        """
        async with self._lock:
            if self.header != refused:
                return True  # another request was refused too, and was faster
            for challenge in answer.headers.get_list("www-authenticate"):
                found = _CHALLENGE.match(challenge)
                if found is None:
                    continue
                parameters = dict(_PARAMETER.findall(found["parameters"]))
                if found["scheme"].lower() == "bearer" and "realm" in parameters:
                    self.header = f"Bearer {await self._token(client, parameters, answer.request.url)}"
                    return True
                if found["scheme"].lower() == "basic" and self._credentials and self._credentials.user:
                    self.header = self._credentials.basic
                    return self.header != refused
            return False

    async def _token(self, client: httpx.AsyncClient, parameters: dict[str, str], registry: httpx.URL) -> str:
        try:
            realm = httpx.URL(parameters["realm"])
        except httpx.InvalidURL as error:
            raise PushFailed(f"{registry.host} names no URL to get a token from: {error}") from error
        known = self._credentials
        if known and realm.scheme != "https" and registry.scheme == "https" and not self._insecure:
            raise PushFailed(f"{registry.host} wants the credentials to be sent in the clear, to {realm}")
        query = {"service": parameters.get("service", ""), "scope": self._scope}
        if known and known.identity_token:
            form = query | {
                "grant_type": "refresh_token",
                "refresh_token": known.identity_token,
                "client_id": _CLIENT,
            }
            answer = await client.post(realm, data=form)
        else:
            headers = {"Authorization": known.basic} if known else {}
            answer = await client.get(realm.copy_merge_params(query), headers=headers)
        if answer.status_code != httpx.codes.OK:
            raise PushFailed(
                f"{registry.host}: no token from {realm.host}: {answer.status_code} {answer.reason_phrase}"
                f"{'' if known else '; log in with docker login or podman login'}"
            )
        try:
            content = answer.json()
            token = str(content.get("token") or content["access_token"])
        except (ValueError, KeyError, AttributeError, RecursionError) as error:
            raise PushFailed(f"{realm.host} answers with no token") from error
        if _TOKEN.fullmatch(token) is None:
            raise PushFailed(f"{realm.host} answers with no token")
        return token
