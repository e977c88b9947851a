"""Dex, an OpenID Connect issuer of others: its tokens, and logins with a user's password."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from urllib.parse import urljoin

import bcrypt
import httpx
import pytest

from nixery.access.configuration import OidcIssuer
from nixery.access.identity import CredentialsRefused, Identity, Kind
from nixery.access.oidc import OidcIssuers
from nixery.server.http import Request
from nixery.server.login import Login
from tests.support.server import HOST, clean_environment, end_process, free_port

_DEX = Path(__file__).parents[2] / "var" / "dex" / "dex"
_SECRET, _PASSWORD, _USER = "sesame", "correct horse", "alice@example.org"
_PUBLIC = "https://registry.example"

# Seconds.
_START = 60


@dataclass
class Dex:
    """A running Dex, whose keys are as old as the process."""

    url: str
    directory: Path
    configuration: Path
    process: subprocess.Popen[bytes]

    def restart(self) -> None:
        """Restart it: its storage is in memory, so it has other keys then."""
        end_process(self.process)
        self.process = _started(self.configuration, self.directory, self.url)

    def token(self) -> str:
        """Log in with a password, as a script does."""
        form = {"grant_type": "password", "username": _USER, "password": _PASSWORD, "scope": "openid email"}
        answer = httpx.post(f"{self.url}/token", data=form, auth=("pages", _SECRET), trust_env=False)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id_token"])


def _started(configuration: Path, directory: Path, url: str) -> subprocess.Popen[bytes]:
    with (directory / "dex.log").open("ab") as log:
        process = subprocess.Popen(
            [str(_DEX), "serve", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=clean_environment({}),
        )
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/keys", trust_env=False).json()["keys"]:
                return process
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            pass
        time.sleep(0.05)
    end_process(process)
    raise AssertionError((directory / "dex.log").read_text())


@pytest.fixture
def dex(tmp_path: Path) -> Iterator[Dex]:
    port = free_port()
    url = f"http://{HOST}:{port}/dex"
    secret_file = tmp_path / "secret"
    secret_file.write_text(f"{_SECRET}\n")
    configuration = tmp_path / "dex.json"
    configuration.write_text(
        json.dumps(
            {
                "issuer": url,
                "storage": {"type": "memory"},
                "web": {"http": f"{HOST}:{port}"},
                "oauth2": {
                    "skipApprovalScreen": True,
                    "passwordConnector": "local",
                    "grantTypes": ["authorization_code", "password"],
                },
                "staticClients": [
                    {
                        "id": "pages",
                        "name": "nixery",
                        "secret": _SECRET,
                        "redirectURIs": [f"{_PUBLIC}/login/callback"],
                    }
                ],
                "enablePasswordDB": True,
                "staticPasswords": [
                    {
                        "email": _USER,
                        "username": "alice",
                        "userID": "08a8684b-db88-4b73-90a9-3cd1661f5466",
                        "hash": bcrypt.hashpw(_PASSWORD.encode(), bcrypt.gensalt(10)).decode(),
                    }
                ],
            }
        )
    )
    running = Dex(url, tmp_path, configuration, _started(configuration, tmp_path, url))
    try:
        yield running
    finally:
        end_process(running.process)


def section(dex: Dex, **fields: object) -> OidcIssuer:
    given = {
        "name": "dex",
        "issuer": dex.url,
        "audience": "pages",
        "user_claim": "email",
        "client_id": "pages",
        "client_secret_file": dex.directory / "secret",
        **fields,
    }
    return OidcIssuer.model_validate(given)


async def test_a_token_of_dex_is_verified_and_its_keys_may_change(dex: Dex) -> None:
    later = [0.0]
    issuers = OidcIssuers([section(dex)], lambda: time.time() + later[0])
    assert await issuers.verify(dex.token()) == Identity(Kind.OIDC, f"dex:{_USER}")
    foreign = OidcIssuers([section(dex, audience="other")])
    with pytest.raises(
        CredentialsRefused, match="the token is for the audience pages; request one for other"
    ):
        await foreign.verify(dex.token())
    dex.restart()
    with pytest.raises(CredentialsRefused, match="none of the issuer's keys"):
        await issuers.verify(dex.token())
    later[0] = 61.0
    assert await issuers.verify(dex.token()) == Identity(Kind.OIDC, f"dex:{_USER}")


def user_logs_in(url: str, password: str) -> httpx.Response:
    """Follow the pages of Dex as a browser does, and fill in its form."""
    with httpx.Client(trust_env=False) as browser:
        answer = browser.get(url)
        while answer.is_redirect:
            answer = browser.get(urljoin(str(answer.url), answer.headers["location"]))
        action = re.search(r'<form method="post" action="([^"]*)"', answer.text)
        assert action is not None, answer.text
        place = urljoin(str(answer.url), unescape(action[1]))
        answer = browser.post(place, data={"login": _USER, "password": password})
        while answer.is_redirect and not answer.headers["location"].startswith(_PUBLIC):
            answer = browser.get(urljoin(str(answer.url), answer.headers["location"]))
        return answer


async def test_a_user_logs_in_with_a_password_at_dex(dex: Dex) -> None:
    login = Login(OidcIssuers([section(dex)]), bytes(range(32)))
    begun = await login.login(Request("GET", "/login", query={"to": "/builds"}, public_url=_PUBLIC))
    assert begun.status == 303
    wrong = user_logs_in(begun.headers["Location"], "wrong")
    assert not wrong.is_redirect
    answer = user_logs_in(begun.headers["Location"], _PASSWORD)
    query = dict(httpx.URL(answer.headers["location"]).params)
    cookie = begun.headers["Set-Cookie"].partition(";")[0]
    request = Request("GET", "/login/callback", {"cookie": cookie}, query, public_url=_PUBLIC)
    done = await login.callback(request)
    assert (done.status, done.headers["Location"]) == (303, "/builds")
    session = {"cookie": done.headers["Set-Cookie"].partition(";")[0]}
    identity = login.identity_of(Request("GET", "/", session, public_url=_PUBLIC))
    assert identity == Identity(Kind.OIDC, f"dex:{_USER}")
    # A code is redeemed once.
    assert (await login.callback(request)).status == 403
