"""The door: who may ask what, how clients log in, and which caches may keep answers."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from urllib.parse import urlencode

import bcrypt
import pytest

from nixery.access.loading import AccessRules
from nixery.access.quotas import Quotas
from nixery.image.platform import AMD64
from nixery.request_context import Client
from nixery.server.access_control import AccessControl
from nixery.server.http import IMMUTABLE, BytesResponse, NotModified, Request, Response
from nixery.server.observation import Observed
from tests.unit.server.conftest import StoredImage

RULES = """
htpasswd = "htpasswd"

[[rule]]
who = ["user:bob"]
packages = ["git"]
may = ["pull", "build", "see-builds"]

[[rule]]
who = ["everyone"]
packages = ["open"]
may = ["pull"]
"""
BOB = {"authorization": "Basic Ym9iOnJpZ2h0"}


@dataclass
class _Observed:
    peer: str = "192.0.2.1:5000"
    client: Client = Client("192.0.2.1")  # noqa: RUF009 -- it is frozen
    address: str = "192.0.2.1"

    def identify(self, identity: object) -> None:
        pass


OBSERVED = cast("Observed", _Observed())


@pytest.fixture
async def door(stored: StoredImage, tmp_path: Path) -> AsyncIterator[AccessControl]:
    (tmp_path / "htpasswd").write_text(f"bob:{bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}\n")
    (tmp_path / "access.toml").write_text(RULES)
    rules = AccessRules(tmp_path / "access.toml", stored.records, Quotas())
    yield AccessControl(rules, Quotas(), [AMD64], bytes(32))
    await rules.close()


async def ask(
    door: AccessControl, path: str, headers: Mapping[str, str] | None = None, query: str = ""
) -> tuple[Request, Response | None]:
    request = Request("GET", path, {"host": "registry.example", **(headers or {})}, query_string=query)
    request, answer = await door.admit(request, OBSERVED)
    return request, answer and door.finish(request, answer)


async def token(door: AccessControl, headers: Mapping[str, str], *scopes: str) -> Mapping[str, str]:
    _, answer = await ask(door, "/v2/token", headers, urlencode([("scope", scope) for scope in scopes]))
    assert isinstance(answer, BytesResponse)
    assert answer.status == 200
    return {"authorization": f"Bearer {json.loads(answer.content)['token']}"}


async def test_a_token_is_for_names_that_its_owner_may_pull(door: AccessControl) -> None:
    scopes = (
        "repository:git:pull repository:secret:pull",
        "repository:open:pull,push",
        "repository:x",
        "a" * 600,
    )
    request, answer = await ask(door, "/v2/git/manifests/latest", await token(door, BOB, *scopes))
    assert answer is None
    assert (request.repositories, request.catalog) == (frozenset({"git", "open"}), False)
    request, _ = await ask(door, "/v2/_catalog", await token(door, BOB, "registry:catalog:*"))
    assert (request.repositories, request.catalog) == (frozenset(), True)


@pytest.mark.parametrize("path", ["/", "/builds", "/api/v1/builds", "/api/v1/packages", "/metrics"])
async def test_a_token_for_pulling_opens_nothing_else(door: AccessControl, path: str) -> None:
    _, answer = await ask(door, path, await token(door, BOB, "repository:git:pull"))
    assert answer is not None
    assert answer.status == 401
    if path != "/metrics":
        assert (await ask(door, path, BOB))[1] is None


async def test_a_token_gets_no_other_token(door: AccessControl) -> None:
    _, answer = await ask(door, "/v2/token", await token(door, BOB))
    assert answer is not None
    assert answer.status == 401


async def test_a_token_is_no_password_for_another_token(stored: StoredImage, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(f"bob:{bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}\n")
    # With an issuer, passwords may be tokens.
    issuer = '[[oidc]]\nname = "ci"\nissuer = "https://issuer.example"\naudience = "nixery"\n'
    (tmp_path / "access.toml").write_text(RULES + issuer)
    rules = AccessRules(tmp_path / "access.toml", stored.records, Quotas())
    door = AccessControl(rules, Quotas(), [AMD64], bytes(32))
    issued = (await token(door, BOB, "repository:open:pull"))["authorization"].removeprefix("Bearer ")
    answer = await form(
        door, grant_type="password", username="bob", password=issued, scope="repository:git:pull"
    )
    assert (answer.status, b"no password" in cast("BytesResponse", answer).content) == (401, True)
    basic = {"authorization": f"Basic {base64.b64encode(f'bob:{issued}'.encode()).decode()}"}
    for path in ("/v2/token", "/v2/open/manifests/latest", "/builds"):
        _, refused = await ask(door, path, basic)
        assert refused is not None
        assert refused.status == 401
    await rules.close()


async def test_failed_logins_by_form_count_for_the_address(door: AccessControl) -> None:
    observed = _Observed(client=Client("user:eve"))

    async def fail(user: str) -> int:
        content = urlencode({"grant_type": "password", "username": user, "password": "wrong"})
        headers = {"content-type": "application/x-www-form-urlencoded", "host": "registry.example"}
        request = Request("POST", "/v2/token", headers, body=content.encode())
        _, answer = await door.admit(request, cast("Observed", observed))
        assert answer is not None
        return answer.status

    assert [await fail(f"user{number}") for number in range(11)] == [401] * 10 + [429]
    other = await form(door, grant_type="password", username="bob", password="right")  # noqa: S106
    assert other.status == 429
    observed.address = "192.0.2.2"
    assert await fail("user0") == 401


async def test_a_token_is_for_this_service(door: AccessControl) -> None:
    _, answer = await ask(door, "/v2/token", BOB, "service=another")
    assert answer is not None
    assert answer.status == 400


async def form(door: AccessControl, **fields: str) -> Response:
    headers = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
    request = Request("POST", "/v2/token", headers, body=urlencode(fields).encode())
    _, answer = await door.admit(request, OBSERVED)
    assert answer is not None
    return answer


async def test_a_form_needs_its_own_credentials(door: AccessControl) -> None:
    right = {"grant_type": "password", "username": "bob", "password": "right"}
    assert (await form(door, **right)).status == 200
    assert (await form(door, **{**right, "password": "wrong"})).status == 401
    assert (await form(door, grant_type="refresh_token", refresh_token="x")).status == 400  # noqa: S106
    assert (await form(door)).status == 400


@pytest.mark.parametrize(
    ("path", "challenge"),
    [
        ("/v2/", 'Bearer realm="http://{host}/v2/token",service="nixery"'),
        (
            "/v2/a/b/blobs/x",
            'Bearer realm="http://{host}/v2/token",service="nixery",scope="repository:a/b:pull"',
        ),
        ("/v2/_catalog", 'Bearer realm="http://{host}/v2/token",service="nixery",scope="registry:catalog:*"'),
        ('/v2/a"x/blobs/x', 'Bearer realm="http://{host}/v2/token",service="nixery"'),
        ("/builds", 'Basic realm="nixery", charset="UTF-8"'),
    ],
)
@pytest.mark.parametrize(
    ("sent", "host"), [("a.example:5000", "a.example:5000"), ('x",realm="http://evil', "localhost")]
)
def test_the_challenge(door: AccessControl, path: str, challenge: str, sent: str, host: str) -> None:
    answer = door.finish(Request("GET", path, {"host": sent}), BytesResponse(401, b""))
    assert answer.headers["WWW-Authenticate"] == challenge.format(host=host)


@pytest.mark.parametrize("response", [BytesResponse(200, b""), NotModified()])
async def test_shared_caches_keep_nothing_of_an_identified_client(
    door: AccessControl, response: BytesResponse | NotModified
) -> None:
    blob = replace(response, headers={"Cache-Control": IMMUTABLE, "Vary": "Accept"})
    request, _ = await ask(door, "/v2/git/blobs/x", BOB)
    headers = door.finish(request, blob).headers
    assert headers["Cache-Control"] == "private, max-age=31536000, immutable"
    assert headers["Vary"] == "Accept, Authorization, Cookie"
    assert door.finish(request, BytesResponse(200, b"")).headers["Cache-Control"] == "private"
    page = BytesResponse(200, b"", {"Cache-Control": "no-store"})
    assert door.finish(request, page).headers["Cache-Control"] == "no-store"
    # What anonymous clients may have, everybody may have.
    request, _ = await ask(door, "/v2/open/blobs/x")
    headers = door.finish(request, blob).headers
    assert headers["Cache-Control"] == IMMUTABLE
    assert headers["Vary"] == "Accept, Authorization, Cookie"
    style = BytesResponse(200, b"", {"Cache-Control": IMMUTABLE})
    assert door.finish(Request("GET", "/static/style.css"), style) == style
