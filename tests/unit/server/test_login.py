"""Logins with an issuer, the sessions that they begin, and what cannot be had with a forged one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from nixery.access.configuration import OidcIssuer
from nixery.access.identity import Identity, Kind
from nixery.access.oidc import OidcIssuers
from nixery.access.sealing import Sealer
from nixery.server.app import Application
from nixery.server.http import Request
from nixery.server.login import Login
from nixery.server.observation import Observation
from nixery.telemetry.metrics import RequestCounts
from tests.fuzz.application import _Headers, _Protocol, _Scope
from tests.support.client import Response
from tests.support.oidc_issuer import OidcProvider, oidc_provider

SECRET = bytes(range(32))
PUBLIC = "https://registry.example"


@pytest.fixture
def provider() -> Iterator[OidcProvider]:
    with oidc_provider() as running:
        yield running


class Clock:
    later = 0.0

    def __call__(self) -> float:
        return time.time() + self.later


def section(provider: OidcProvider, **fields: Any) -> OidcIssuer:  # noqa: ANN401 -- fields are anything
    given = {"name": "company", "issuer": provider.url, "audience": "nixery", "client_id": "pages", **fields}
    return OidcIssuer.model_validate(given)


class Browser:
    """Keeps cookies, and calls the application as the web server does."""

    def __init__(
        self, sections: Sequence[OidcIssuer], public: str | None = PUBLIC, clock: Clock | None = None
    ) -> None:
        self.clock = clock or Clock()
        self.login = Login(OidcIssuers(sections, self.clock), SECRET, clock=self.clock)
        self.public = public
        self.application = Application(
            None, Observation(RequestCounts()), self.login.routes(), public_url=public
        )
        self.cookies: dict[str, str] = {}
        self.fields: dict[str, str] = {}

    async def request(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> Response:
        parts = urlsplit(url)
        fields = {"host": "registry.example", **(headers or {})}
        if self.cookies:
            fields["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        scope = _Scope(method, parts.path, parts.query, _Headers(fields.items()))
        protocol = _Protocol()
        await self.application.__rsgi__(scope, protocol)
        (response,) = protocol.responses
        if cookie := response.headers.get("set-cookie"):
            pair, _, attributes = cookie.partition("; ")
            name, _, value = pair.partition("=")
            self.cookies[name] = value
            self.fields[name] = attributes
        return response

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> Response:
        return await self.request("GET", url, headers)

    async def authorize(self, to: str = "/builds") -> str:
        """Begin a login and log in at the issuer; return the URL of the callback."""
        begun = await self.get(f"/login?to={to}")
        assert begun.status == 303, begun
        async with httpx.AsyncClient() as client:
            answer = await client.get(begun.headers["location"])
        return answer.headers["location"].removeprefix(self.public or "http://registry.example")

    def identity(self) -> Identity | None:
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return self.login.identity_of(Request("GET", "/", {"cookie": cookies}, public_url=self.public))


async def test_a_login_begins_a_session(provider: OidcProvider) -> None:
    provider.id_claims = {"sub": "alice", "groups": ["dev"], "email": "a@acme.example"}
    browser = Browser([section(provider, groups_claim="groups", claims=["email"])])
    callback = await browser.authorize()
    assert browser.identity() is None
    done = await browser.get(callback)
    assert (done.status, done.headers["location"]) == (303, "/builds")
    assert browser.identity() == Identity(
        Kind.OIDC, "company:alice", frozenset({"company:dev"}), {"email": "a@acme.example"}
    )
    assert browser.fields["__Host-nixery-session"] == "Path=/; HttpOnly; SameSite=Lax; Max-Age=28800; Secure"
    assert browser.fields["__Host-nixery-login"] == "Path=/; HttpOnly; SameSite=Lax; Max-Age=600; Secure"
    # Nothing of it can be read from the cookie; and an answer with it is never stored.
    assert "alice" not in browser.cookies["__Host-nixery-session"]
    assert done.headers["cache-control"] == "no-store"


async def test_another_replica_knows_the_session_until_it_expires(provider: OidcProvider) -> None:
    first, second = Browser([section(provider)]), Browser([section(provider)])
    second.cookies = first.cookies
    callback = await first.authorize()
    assert (await second.get(callback)).status == 303
    assert first.identity() == second.identity() != None  # noqa: E711 -- both at once
    first.clock.later = second.clock.later = 8 * 3600.0 + 1
    assert first.identity() is second.identity() is None


async def test_a_session_ends_with_its_issuer(provider: OidcProvider) -> None:
    browser = Browser([section(provider)])
    await browser.get(await browser.authorize())
    other = Browser([section(provider, name="other")])
    other.cookies = browser.cookies
    assert browser.identity() is not None
    assert other.identity() is None


async def test_a_confidential_client_sends_its_secret(provider: OidcProvider, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("sesame\n")
    provider.client_secret = "sesame"  # noqa: S105 -- of a test
    browser = Browser([section(provider, client_secret_file=file)])
    assert (await browser.get(await browser.authorize())).status == 303
    file.write_text("wrong")
    refused = await browser.get(await browser.authorize())
    assert refused.status == 403
    assert "the issuer company refused the login: invalid_client" in refused.errors[0]["message"]
    file.unlink()
    callback = await browser.authorize()
    assert (await browser.get(callback)).status == 500


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"state": "other"}, "the answer is for another login"),
        ({"state": ""}, "the answer is for another login"),
        ({"code": ""}, "the issuer sent no code"),
        ({"code": "x" * 2049}, "the issuer sent no code"),
        ({"code": "stolen"}, "refused the login: invalid_grant"),
        # A code that another issuer gave to the browser is not for this one (RFC 9207).
        ({"iss": "https://other.example"}, "the code is from another issuer"),
        ({"iss": ""}, "the code is from another issuer"),
        ({"error": "access_denied"}, "the issuer company refused the login: access_denied"),
    ],
)
async def test_a_forged_callback_begins_no_session(
    provider: OidcProvider, changed: Mapping[str, str], reason: str
) -> None:
    browser = Browser([section(provider)])
    path, _, query = (await browser.authorize()).partition("?")
    forged = httpx.QueryParams({**dict(parse_qsl(query)), **changed})
    answer = await browser.get(f"{path}?{forged}")
    assert answer.status == 403
    assert reason in answer.errors[0]["message"]
    assert browser.identity() is None


async def test_a_callback_needs_the_browser_that_began(provider: OidcProvider) -> None:
    """Otherwise, another site could log a user in under its own name."""
    browser = Browser([section(provider)])
    callback = await browser.authorize()
    begun, browser.cookies = browser.cookies, {}
    assert "this browser has not begun it here" in (await browser.get(callback)).errors[0]["message"]
    # A cookie that was sealed for something else.
    sealed = Sealer(SECRET, "session").seal({"flow": {}, "to": "/"}, 60)
    browser.cookies = {"__Host-nixery-login": sealed}
    assert (await browser.get(callback)).status == 403
    browser.cookies = begun
    browser.clock.later = 601.0
    assert (await browser.get(callback)).status == 403
    browser.clock.later = 0.0
    assert (await browser.get(callback)).status == 303


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "other"},
        {"nonce": None},
        {"aud": "nixery"},
        {"azp": "other"},
        {"iss": "http://other"},
        {"exp": 1},
    ],
)
async def test_a_token_that_is_not_of_this_login_begins_no_session(
    provider: OidcProvider, claims: dict[str, Any]
) -> None:
    provider.id_claims = {"sub": "alice", **claims}
    browser = Browser([section(provider)])
    assert (await browser.get(await browser.authorize())).status == 403
    assert browser.identity() is None


@pytest.mark.parametrize(
    "to",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/%09/evil.example",
        "/a%0d%0aSet-Cookie:x=y",
        "evil",
        "",
        "/é",
        "/" + "x" * 2000,
    ],
)
async def test_a_login_leads_to_paths_of_this_server_only(provider: OidcProvider, to: str) -> None:
    browser = Browser([section(provider)])
    done = await browser.get(await browser.authorize(to))
    assert (done.status, done.headers["location"]) == (303, "/")


async def test_of_several_issuers_the_user_chooses(provider: OidcProvider) -> None:
    browser = Browser(
        [section(provider), section(provider, name="other"), section(provider, name="ci", client_id=None)]
    )
    page = (await browser.get("/login?to=/packages?q=%26")).body.decode()
    assert '<a class="button" href="/login?with=company&amp;to=/packages%3Fq%3D%26">company</a>' in page
    assert "with=other" in page
    assert "with=ci" not in page
    assert (
        (await browser.get("/login?with=other")).headers["location"].startswith(f"{provider.url}/authorize?")
    )
    assert (await browser.get("/login?with=ci")).status == 404


async def test_without_an_issuer_browsers_ask_for_a_password(provider: OidcProvider) -> None:
    browser = Browser([section(provider, client_id=None)])
    answer = await browser.get("/login?to=/builds")
    assert (answer.status, answer.headers["www-authenticate"]) == (
        401,
        'Basic realm="nixery", charset="UTF-8"',
    )
    known = await browser.get("/login?to=/builds", {"authorization": "Basic YTpi"})
    assert (known.status, known.headers["location"]) == (303, "/builds")
    page = await browser.get("/logout", {"authorization": "Basic YTpi"})
    assert b"cannot end that" in page.body.replace(b"\n", b" ")


async def test_an_issuer_that_is_down_is_a_temporary_error(provider: OidcProvider) -> None:
    provider.behaviour = "down"
    answer = await Browser([section(provider)]).get("/login")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")


async def test_a_logout_ends_the_session_of_a_browser(provider: OidcProvider) -> None:
    browser = Browser([section(provider)])
    await browser.get(await browser.authorize())
    page = await browser.get("/logout")
    assert b"<b>company:alice</b>" in page.body
    # So that the form has an Origin to check.
    assert page.headers["referrer-policy"] == "same-origin"
    assert browser.identity() is not None
    foreign = await browser.request("POST", "/logout", {"origin": "https://evil.example"})
    assert foreign.status == 403
    assert browser.identity() is not None
    own = await browser.request("POST", "/logout", {"origin": PUBLIC})
    assert (own.status, own.headers["location"]) == (303, "/logout")
    assert browser.identity() is None
    assert b"Not logged in" in (await browser.get("/logout")).body


async def test_a_session_of_many_groups_that_fits_into_no_cookie_is_refused(provider: OidcProvider) -> None:
    browser = Browser([section(provider, groups_claim="groups")])
    provider.id_claims = {"sub": "a", "groups": [f"team-{number}" for number in range(200)]}
    assert (await browser.get(await browser.authorize())).status == 303
    identity = browser.identity()
    assert identity is not None
    assert len(identity.groups) == 200
    provider.id_claims["groups"] = [hashlib.sha256(bytes([number])).hexdigest() for number in range(120)]
    refused = await browser.get(await browser.authorize())
    assert "does not fit into a cookie" in refused.errors[0]["message"]


async def test_plain_http_is_for_loopback_only(provider: OidcProvider) -> None:
    browser = Browser([section(provider)], public=None)
    assert "by https" in (await browser.get("/login")).errors[0]["message"]
    assert (await browser.get("/login", {"host": "127.0.0.1.evil.example"})).status == 403
    assert (await browser.get("/login", {"host": "[::1]:8080"})).status == 303
    assert browser.fields == {"nixery-login": "Path=/; HttpOnly; SameSite=Lax; Max-Age=600"}


async def test_a_cookie_without_the_prefix_counts_for_nothing_over_tls(provider: OidcProvider) -> None:
    """A neighbouring host can set it."""
    browser = Browser([section(provider)])
    await browser.get(await browser.authorize())
    browser.cookies = {"nixery-session": browser.cookies["__Host-nixery-session"]}
    assert browser.identity() is None


@pytest.mark.parametrize(
    "cookie",
    [
        "",
        "__Host-nixery-session",
        "__Host-nixery-session=",
        "__Host-nixery-session=a.b.c.d.e",
        "__Host-nixery-session=" + "x" * 20_000,
        "__Host-nixery-session=é",
    ],
)
def test_a_cookie_that_was_not_sealed_is_nobody(provider: OidcProvider, cookie: str) -> None:
    login = Login(OidcIssuers([section(provider)]), SECRET)
    assert login.identity_of(Request("GET", "/", {"cookie": cookie}, public_url=PUBLIC)) is None


async def test_cookies_may_be_in_several_fields(provider: OidcProvider) -> None:
    """HTTP/2 sends them so."""
    browser = Browser([section(provider)])
    await browser.get(await browser.authorize())
    cookie = f"a=b, __Host-nixery-session={browser.cookies['__Host-nixery-session']}, c=d"
    request = Request("GET", "/", {"cookie": cookie}, public_url=PUBLIC)
    assert browser.login.identity_of(request) is browser.login.identity_of(request) is not None


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/login"), ("POST", "/login/callback"), ("PUT", "/logout")]
)
async def test_other_methods_are_refused(provider: OidcProvider, method: str, path: str) -> None:
    assert (await Browser([section(provider)]).request(method, path)).status == 405
