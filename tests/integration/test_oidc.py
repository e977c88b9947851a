"""Jobs and users of an OpenID Connect issuer, from the token to the pull and the page, over HTTP."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tests.integration.conftest import StartServer
from tests.support.client import MANIFEST, Response
from tests.support.oidc_issuer import OidcProvider, new_key, oidc_provider
from tests.support.server import Server

RULES = """
[[oidc]]
name = "ci"
issuer = "{issuer}"
audience = "nixery"
required-claims = {{ owner = "acme" }}
claims = ["repository"]
groups-claim = "groups"

[[oidc]]
name = "company"
issuer = "{issuer}"
audience = "pages"
client-id = "pages"

[[rule]]
who = ["claim:repository=acme/web"]
may = ["pull", "build"]

[[rule]]
who = ["user:company:alice"]
may = ["pull", "build", "see-builds"]
"""


@pytest.fixture
def provider() -> Iterator[OidcProvider]:
    with oidc_provider() as running:
        yield running


@pytest.fixture
def access(tmp_path: Path, provider: OidcProvider) -> Path:
    file = tmp_path / "access.toml"
    file.write_text(RULES.format(issuer=provider.url))
    return file


def job(provider: OidcProvider, **claims: str) -> str:
    return provider.token(None, None, **{"owner": "acme", "repository": "acme/web", **claims})


def manifest(server: Server, authorization: str) -> Response:
    return server.client.get(
        "/v2/hello/manifests/latest", {"Accept": MANIFEST, "Authorization": authorization}
    )


def basic(token: str) -> str:
    return f"Basic {base64.b64encode(f'any:{token}'.encode()).decode()}"


def test_a_job_pulls_with_its_token(start_server: StartServer, access: Path, provider: OidcProvider) -> None:
    server = start_server(NIXERY_ACCESS=str(access))
    assert manifest(server, f"Bearer {job(provider)}").status == 200
    # As docker does after `docker login --password-stdin`.
    scope = quote("repository:hello:pull")
    issued = server.client.get(
        f"/v2/token?service=nixery&scope={scope}", {"Authorization": basic(job(provider))}
    )
    assert manifest(server, f"Bearer {issued.json()['token']}").status == 200
    for token, reason in (
        (job(provider, owner="evil"), "the claim owner of the token is not one that this server accepts"),
        (job(provider, aud="other"), "the token is for the audience other; request one for nixery or pages"),
        (provider.token(exp=int(time.time()) - 600), "the token expired 10 minutes ago"),
        (provider.token(new_key("foreign")), "none of the issuer's keys has signed the token"),
    ):
        for authorization in (f"Bearer {token}", basic(token)):
            refused = manifest(server, authorization)
            assert (refused.status, refused.error["code"]) == (401, "UNAUTHORIZED")
            assert reason in refused.error["message"]
    assert manifest(server, f"Bearer {job(provider, repository='acme/other')}").status == 404


def test_keys_of_an_issuer_that_is_down_outlive_a_reload(
    start_server: StartServer, access: Path, provider: OidcProvider
) -> None:
    server = start_server(NIXERY_ACCESS=str(access))
    assert manifest(server, f"Bearer {job(provider)}").status == 200
    provider.behaviour = "down"
    access.write_text(access.read_text().replace('"acme/web"', '"acme/*"').replace("acme/web", "acme/*"))
    deadline = time.monotonic() + 60
    other = f"Bearer {job(provider, repository='acme/other')}"
    while manifest(server, other).status == 404 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert manifest(server, other).status == 200
    assert provider.fetches == 1


def test_an_issuer_that_is_down_is_a_temporary_error(
    start_server: StartServer, access: Path, provider: OidcProvider
) -> None:
    provider.behaviour = "down"
    server = start_server(NIXERY_ACCESS=str(access))
    answer = manifest(server, f"Bearer {job(provider)}")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert "issuer does not answer" in server.log


def test_a_user_logs_in_with_a_browser(
    start_server: StartServer, access: Path, provider: OidcProvider
) -> None:
    server = start_server(NIXERY_ACCESS=str(access))
    base = f"http://{server.client.host}:{server.client.port}"
    html = {"Accept": "text/html", "User-Agent": "Mozilla/5.0"}
    provider.id_claims = {"sub": "alice"}
    with httpx.Client(base_url=base, headers=html, trust_env=False, timeout=60) as browser:
        led = browser.get("/builds?state=done")
        assert (led.status_code, led.headers["location"]) == (303, "/login?to=/builds%3Fstate%3Ddone")
        page = browser.get("/builds?state=done", follow_redirects=True)
        assert (page.status_code, str(page.url)) == (200, f"{base}/builds?state=done")
        assert "company:alice" in browser.get("/logout").text
        build = {"name": "hello"}
        foreign: Mapping[str, str] = {"Origin": "https://evil.example"}
        assert browser.post("/api/v1/builds", json=build, headers=foreign).status_code == 403
        assert browser.post("/api/v1/builds", json=build, headers={"Origin": base}).status_code == 202
        assert browser.post("/logout", headers={"Origin": base}).status_code == 303
        assert browser.get("/builds").status_code == 303
        # Programs are asked for credentials, and so is a user who sends wrong ones.
        plain = browser.get("/builds", headers={"Accept": "*/*"})
        assert (plain.status_code, plain.headers["www-authenticate"][:5]) == (401, "Basic")
        assert browser.get("/builds", auth=("alice", "wrong")).status_code == 401
        provider.id_claims = {"sub": "mallory"}
        browser.get("/login", follow_redirects=True)
        assert browser.get("/builds").status_code == 404
