"""Authorisation for a registry: Basic, or a token from a token server (distribution, "Token Authentication").

Credentials are those of ``docker login`` and ``podman login``. Docker's file is
``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``; Podman's (containers-auth.json(5)) is
``$REGISTRY_AUTH_FILE``, which is then the only one, or ``$XDG_RUNTIME_DIR/containers/auth.json``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from nixery.errors import PushFailed

_CHALLENGE = re.compile(r"(?P<scheme>[a-zA-Z]+)\s+(?P<parameters>.*)", re.DOTALL)
# Anchored at the beginning of a word, since a registry may send a long one.
_PARAMETER = re.compile(r'(?<!\w)(\w+)="([^"]*)"')

# A token goes into a header field (RFC 6750, 2.1, and other characters in use).
_TOKEN = re.compile(r"[\x21-\x7e]+", re.ASCII)
_CLIENT = "nixery"

# Seconds for a credential helper, which may ask the user to unlock a keyring.
_HELPER_TIMEOUT = 60

# The user name of a helper's answer whose secret is an identity token (docker-credential-helpers).
_IDENTITY_TOKEN_USER = "<token>"  # noqa: S105 -- a marker, no secret

_DOCKER_HUB = "https://index.docker.io/v1/"
_DOCKER_HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")


class Authorisation:
    """The ``Authorization`` header for one registry. Requests a token when the registry requires one, and again when it has expired.

    Args:
        credentials: ``None`` for anonymous access.
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
        """Answer a challenge; return whether the header now differs from the refused one.

        Raises:
            PushFailed: the token server refuses, or its answer is invalid.
            httpx.TransportError: the token server cannot be reached.
        """
        async with self._lock:
            if self.header != refused:
                return True  # a concurrent request has renewed it
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
            raise PushFailed(f"{registry.host}: invalid URL of a token server: {error}") from error
        known = self._credentials
        if known and realm.scheme != "https" and registry.scheme == "https" and not self._insecure:
            raise PushFailed(
                f"{registry.host}: refused to send credentials unencrypted to the token server {realm}"
            )
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
            raise PushFailed(f"{realm.host}: the answer of the token server has no valid token") from error
        if _TOKEN.fullmatch(token) is None:
            raise PushFailed(f"{realm.host}: the answer of the token server has no valid token")
        return token


@dataclass(frozen=True, slots=True)
class Credentials:
    """A login: a user and a password, or an identity token."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_credentials(host: str, environment: Mapping[str, str]) -> Credentials | None:
    """Return the credentials for a registry; ``None`` without a login. Blocks while a helper runs.

    Raises:
        PushFailed: a file cannot be read, or a helper cannot be run.
    """
    for path in _files(environment):
        found = _from_file(path, host, environment)
        if found is not None:
            return found
    return None


def _files(environment: Mapping[str, str]) -> Iterator[Path]:
    if environment.get("REGISTRY_AUTH_FILE"):
        yield Path(environment["REGISTRY_AUTH_FILE"])
        return
    home = Path(environment.get("HOME") or "/")
    yield Path(environment.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    if environment.get("XDG_RUNTIME_DIR"):
        yield Path(environment["XDG_RUNTIME_DIR"]) / "containers" / "auth.json"


def _from_file(path: Path, host: str, environment: Mapping[str, str]) -> Credentials | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PushFailed(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise PushFailed(f"cannot read {path}: not JSON") from error
    if not isinstance(content, dict):
        raise PushFailed(f"cannot read {path}: not a JSON object")
    # Docker's order: a helper for the host, a helper for all hosts, the file's own entries.
    keys = _keys(host)
    helpers = content.get("credHelpers") or {}
    helper = next((helpers[key] for key in keys if key in helpers), content.get("credsStore"))
    if helper:
        found = _from_helper(str(helper), keys[0], environment)
        if found is not None:
            return found
    auths = content.get("auths") or {}
    entry = next((auths[key] for key in keys if key in auths), None)
    return _from_entry(entry, path) if isinstance(entry, dict) else None


def _keys(host: str) -> tuple[str, ...]:
    if host in _DOCKER_HUB_NAMES:
        return (_DOCKER_HUB, *_DOCKER_HUB_NAMES)
    return (host, f"https://{host}", f"http://{host}", f"https://{host}/v2/", f"https://{host}/v1/")


def _from_entry(entry: Mapping[str, Any], path: Path) -> Credentials | None:
    if entry.get("identitytoken"):
        return Credentials(identity_token=str(entry["identitytoken"]))
    if not entry.get("auth"):
        return None
    try:
        user, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except (binascii.Error, ValueError, TypeError) as error:
        raise PushFailed(
            f"cannot read {path}: the auth of an entry is not base64 of USER:PASSWORD"
        ) from error
    return Credentials(user, password.rstrip("\0")) if colon else None


def _from_helper(helper: str, server: str, environment: Mapping[str, str]) -> Credentials | None:
    command = f"docker-credential-{helper}"
    try:
        completed = subprocess.run(
            (command, "get"),
            input=server,
            capture_output=True,
            text=True,
            timeout=_HELPER_TIMEOUT,
            check=False,
            env=dict(environment),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PushFailed(f"cannot run the credential helper {command}: {error}") from error
    if completed.returncode != 0:
        return None  # no login; if one is needed, the registry says so
    try:
        answer = json.loads(completed.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise PushFailed(f"the credential helper {command} printed an invalid answer") from error
    return Credentials(identity_token=secret) if user == _IDENTITY_TOKEN_USER else Credentials(user, secret)
