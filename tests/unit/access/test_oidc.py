"""Tokens of OpenID Connect issuers: what is accepted, what is refused, and how the issuer's keys are had."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OKPKey, RSAKey

from nixery.access import issuer as issuer_module
from nixery.access.configuration import OidcIssuer
from nixery.access.identity import MOST_GROUPS, CredentialsRefused, Identity, Kind
from nixery.access.oidc import OidcIssuers
from nixery.errors import IssuerUnreachable, ShuttingDown
from tests.support.oidc_issuer import OidcProvider, new_key, oidc_provider
from tests.support.server import HOST


class Clock:
    """The time of day, and what tests add to it."""

    def __init__(self) -> None:
        self.later = 0.0

    def __call__(self) -> float:
        return time.time() + self.later


@pytest.fixture
def provider() -> Iterator[OidcProvider]:
    with oidc_provider() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


def section(provider: OidcProvider, **fields: Any) -> OidcIssuer:  # noqa: ANN401 -- fields are anything
    return OidcIssuer.model_validate({"name": "ci", "issuer": provider.url, "audience": "nixery", **fields})


def issuers(provider: OidcProvider, clock: Clock, **fields: Any) -> OidcIssuers:  # noqa: ANN401
    return OidcIssuers([section(provider, **fields)], clock)


async def refusal(verifier: OidcIssuers, token: str) -> str:
    with pytest.raises(CredentialsRefused) as caught:
        await verifier.verify(token)
    return str(caught.value)


async def test_a_token_becomes_an_identity(provider: OidcProvider, clock: Clock) -> None:
    """The claims are those of a job of GitHub Actions."""
    verifier = issuers(
        provider,
        clock,
        claims=["repository", "ref", "environment"],
        required_claims={"repository_owner": "acme"},
        groups_claim="repository_owner",
    )
    token = provider.token(
        sub="repo:acme/web:ref:refs/heads/main",
        repository="acme/web",
        repository_owner="acme",
        ref="refs/heads/main",
        workflow="build",
    )
    assert await verifier.verify(token) == Identity(
        Kind.OIDC,
        "ci:repo:acme/web:ref:refs/heads/main",
        frozenset({"ci:acme"}),
        {"repository": "acme/web", "ref": "refs/heads/main"},
    )


async def test_groups_may_be_a_list_at_a_path(provider: OidcProvider, clock: Clock) -> None:
    verifier = issuers(provider, clock, prefix="", groups_claim="realm_access.roles")
    token = provider.token(realm_access={"roles": ["dev", "ops"]})
    assert (await verifier.verify(token)).groups == {"dev", "ops"}
    kubernetes = issuers(provider, clock, claims=["kubernetes.io.namespace"])
    token = provider.token(None, None, **{"kubernetes.io": {"namespace": "builds"}})
    assert (await kubernetes.verify(token)).claims == {"kubernetes.io.namespace": "builds"}


KEYS = [
    ("RS256", RSAKey.generate_key(2048, {"kid": "one"})),
    ("PS384", RSAKey.generate_key(2048, {"kid": "one"})),
    ("ES256", ECKey.generate_key("P-256", {"kid": "one"})),
    ("ES384", ECKey.generate_key("P-384", {"kid": "one"})),
    ("Ed25519", OKPKey.generate_key("Ed25519", {"kid": "one"})),
]


@pytest.mark.parametrize(("algorithm", "key"), KEYS, ids=[name for name, _ in KEYS])
async def test_asymmetric_algorithms_are_accepted(
    provider: OidcProvider, clock: Clock, algorithm: str, key: RSAKey | ECKey | OKPKey
) -> None:
    provider.keys = [key]
    token = provider.token(header={"alg": algorithm})
    assert (await issuers(provider, clock).verify(token)).name == "ci:me"


async def test_the_old_name_of_ed25519_is_accepted(provider: OidcProvider, clock: Clock) -> None:
    key = OKPKey.generate_key("Ed25519", {"kid": "one"})
    provider.keys = [key]
    header = segment({"alg": "EdDSA", "kid": "one"}) + "." + segment(provider.claims())
    assert key.private_key is not None
    signature = key.private_key.sign(header.encode())  # type: ignore[union-attr]
    assert (await issuers(provider, clock).verify(f"{header}.{encoded(signature)}")).name == "ci:me"


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def segment(document: object) -> str:
    return encoded(json.dumps(document).encode())


async def test_unsigned_tokens_and_shared_secrets_are_refused(provider: OidcProvider, clock: Clock) -> None:
    key = RSAKey.generate_key(2048, {"kid": "first"})
    provider.keys = [key]
    verifier = issuers(provider, clock)
    claims = segment(provider.claims())
    assert "algorithm none is not accepted" in await refusal(
        verifier, f"{segment({'alg': 'none'})}.{claims}."
    )
    # The public key, which everybody knows, as the secret of an HMAC.
    signed = f"{segment({'alg': 'HS256', 'kid': 'first'})}.{claims}"
    signature = hmac.digest(key.as_pem(private=False), signed.encode(), "sha256")
    assert "algorithm HS256 is not accepted" in await refusal(verifier, f"{signed}.{encoded(signature)}")
    assert provider.fetches == 0


async def test_a_key_of_the_token_itself_is_not_used(provider: OidcProvider, clock: Clock) -> None:
    foreign = new_key("first")
    token = provider.token(foreign, {"jwk": foreign.as_dict(private=False), "jku": "http://127.0.0.1:9/"})
    assert await refusal(issuers(provider, clock), token) == "the signature of the token is wrong"


# In 2100.
_LATER = 4102444800


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        (
            {"iss": "https://elsewhere.example"},
            "tokens of the issuer https://elsewhere.example are not accepted",
        ),
        ({"aud": "other"}, "the token is for the audience other; request one for nixery"),
        ({"aud": []}, "the token is for the audience ; request one for nixery"),
        ({"aud": ["a"] * 101}, "its claim aud is missing or wrong"),
        ({"exp": 1_700_000_000}, "the token expired"),
        ({"exp": None}, "its claim exp is missing or wrong"),
        ({"exp": "2999-01-01"}, "its claim exp is missing or wrong"),
        ({"exp": 1e300}, "its claim exp is missing or wrong"),
        ({"exp": float("inf")}, "its claim exp is missing or wrong"),
        ({"nbf": _LATER}, "do the clocks of issuer and server differ?"),
        ({"iat": _LATER}, "do the clocks of issuer and server differ?"),
        ({"sub": None}, "its claim sub is missing or wrong"),
        ({"sub": ""}, "its claim sub is missing or wrong"),
        ({"sub": "x" * 257}, "the claim sub of the token is not usable"),
        ({"sub": "a\nb"}, "the claim sub of the token is not usable"),
        ({"owner": "evil"}, "the claim owner of the token is not one that this server accepts"),
        ({"owner": None}, "the claim owner of the token is not one that this server accepts"),
        ({"groups": [f"g{number}" for number in range(MOST_GROUPS + 1)]}, "the token names 201 groups"),
        ({"groups": ["x" * 300]}, "the claim groups of the token is not usable"),
        ({"groups": [{"name": "x"}]}, "the claim groups of the token is not usable"),
        ({"ref": "x" * 300}, "the claim ref of the token is not usable"),
        ({"ref": ["a", "b"]}, "the claim ref of the token has 2 values"),
    ],
)
async def test_a_refusal_says_why(
    provider: OidcProvider, clock: Clock, claims: dict[str, Any], reason: str
) -> None:
    verifier = issuers(
        provider, clock, required_claims={"owner": "acme*"}, groups_claim="groups", claims=["ref"]
    )
    token = provider.token(**{"owner": "acme-web", **claims})
    assert reason in await refusal(verifier, token)
    assert (await verifier.verify(provider.token(owner="acme-web"))).name == "ci:me"


async def test_clocks_may_differ_by_a_minute(provider: OidcProvider, clock: Clock) -> None:
    verifier = issuers(provider, clock)
    now = int(time.time())
    await verifier.verify(provider.token(exp=now - 30))
    await verifier.verify(provider.token(nbf=now + 50, iat=now + 50))


async def test_an_address_that_was_not_verified_is_no_name(provider: OidcProvider, clock: Clock) -> None:
    verifier = issuers(provider, clock, user_claim="email")
    token = provider.token(email="a@acme.example", email_verified=False)
    assert "has not verified the address" in await refusal(verifier, token)
    assert (await verifier.verify(provider.token(email="a@acme.example"))).name == "ci:a@acme.example"


@pytest.mark.security
@pytest.mark.parametrize("value", ["", 0, {}])
async def test_a_token_with_thousands_of_values_is_refused_unread(
    provider: OidcProvider, clock: Clock, value: object
) -> None:
    """Anybody can send one: its errors took the event loop a sixtieth of a second with each request."""
    token = f"{segment({'alg': 'RS256'})}.{segment({**provider.claims(), 'aud': [value] * 3000})}.AAAA"
    with pytest.raises(CredentialsRefused, match="too many values"):
        await issuers(provider, clock).verify(token)


async def test_a_forged_token_is_refused(provider: OidcProvider, clock: Clock) -> None:
    verifier = issuers(provider, clock)
    token = provider.token()
    header, _, signature = token.split(".")
    forged = f"{header}.{segment(provider.claims(sub='root'))}.{signature}"
    assert await refusal(verifier, forged) == "the signature of the token is wrong"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a.b.c",
        "a.b",
        "é.b.c",
        f"{segment('alg')}.{segment({})}.",
        f"{segment(['alg'])}.{segment({})}.",
        f"{segment({'alg': 1})}.{segment({})}.",
        f"{encoded(b'[' * 3000)}.{segment({})}.",
        f"{segment({'alg': 'ES256'})}.{encoded(b'[' * 9000)}.",
        f"{segment({'alg': 'ES256'})}.{segment([])}.",
        f"{segment({'alg': 'ES256'})}.{encoded(b'{' + b' ' * 9000)}.",
        "x" * 20_000,
    ],
)
async def test_what_is_no_token_is_refused(provider: OidcProvider, clock: Clock, token: str) -> None:
    await refusal(issuers(provider, clock), token)
    assert provider.requests == []


@pytest.mark.parametrize(
    "header", [{"crit": ["b64"], "b64": False}, {"crit": ["exp"]}, {"alg": "XX"}, {"kid": 5}, {"alg": None}]
)
async def test_a_hostile_header_is_refused(
    provider: OidcProvider, clock: Clock, header: dict[str, Any]
) -> None:
    _, payload, signature = provider.token().split(".")
    token = f"{segment({'alg': 'ES256', 'kid': 'first', **header})}.{payload}.{signature}"
    await refusal(issuers(provider, clock), token)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(
    payload=st.dictionaries(
        st.sampled_from(["iss", "aud", "sub", "exp", "azp"]),
        st.text() | st.integers() | st.none() | st.lists(st.text()),
    )
)
def test_any_claims_are_refused_or_unknown(payload: dict[str, Any]) -> None:
    verifier = OidcIssuers(
        [OidcIssuer.model_validate({"name": "ci", "issuer": "http://127.0.0.1:9", "audience": "nixery"})]
    )
    token = f"{segment({'alg': 'ES256'})}.{segment(payload)}.{encoded(bytes(64))}"
    assert asyncio.run(refusal(verifier, token))


async def test_a_verified_token_is_not_verified_again(
    provider: OidcProvider, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = issuers(provider, clock)
    token = provider.token()
    identity = await verifier.verify(token)
    with monkeypatch.context() as patch:
        patch.setattr("joserfc.jws.validate_compact", None)
        assert await verifier.verify(token) is identity
    clock.later = 700.0
    assert "the token expired" in await refusal(verifier, token)


async def test_sections_of_one_issuer_differ_by_audience(provider: OidcProvider, clock: Clock) -> None:
    sections = [
        section(provider, name="one", audience="one", required_claims={"owner": "acme"}),
        section(provider, name="two", audience="two"),
        section(provider, name="three", audience="one"),
    ]
    verifier = OidcIssuers(sections, clock)
    assert (await verifier.verify(provider.token(aud="two"))).name == "two:me"
    assert (await verifier.verify(provider.token(aud=["one"], owner="acme"))).name == "one:me"
    assert (await verifier.verify(provider.token(aud="one"))).name == "three:me"
    assert provider.fetches == 1


# Keys.


async def test_an_unknown_key_has_the_keys_fetched_once_a_minute(
    provider: OidcProvider, clock: Clock
) -> None:
    verifier = issuers(provider, clock)
    await verifier.verify(provider.token())
    provider.keys.insert(0, new_key("second"))
    assert "none of the issuer's keys" in await refusal(verifier, provider.token())
    assert provider.fetches == 1
    clock.later = 61.0
    await verifier.verify(provider.token())
    for number in range(3):
        await refusal(verifier, provider.token(new_key(f"no-{number}")))
    assert provider.fetches == 2


async def test_a_withdrawn_key_is_refused_when_the_keys_are_fetched_again(
    provider: OidcProvider, clock: Clock
) -> None:
    verifier = issuers(provider, clock)
    old = provider.keys[0]
    await verifier.verify(provider.token(old))
    provider.keys = [new_key("second")]
    clock.later = 3590.0
    await verifier.verify(provider.token(old, sub="again", exp=int(clock()) + 60))
    clock.later = 3610.0
    assert "none of the issuer's keys" in await refusal(verifier, provider.token(old, exp=int(clock()) + 60))


@pytest.mark.parametrize(
    ("control", "fresh"),
    [("max-age=0", 300), ("no-store", 3600), ("max-age=600", 600), ("max-age=999999999", 86_400), ("", 3600)],
)
async def test_keys_are_fresh_as_the_issuer_says_within_bounds(
    provider: OidcProvider, clock: Clock, control: str, fresh: int
) -> None:
    provider.cache_control = control
    verifier = issuers(provider, clock)
    await verifier.verify(provider.token())
    for later, fetches in ((fresh - 10, 1), (fresh + 10, 2)):
        clock.later = later
        await verifier.verify(provider.token(sub=str(later), exp=int(clock()) + 60))
        assert provider.fetches == fetches


async def test_concurrent_tokens_cause_one_fetch(provider: OidcProvider, clock: Clock) -> None:
    verifier = issuers(provider, clock)
    await asyncio.gather(*(verifier.verify(provider.token(sub=f"job-{number}")) for number in range(20)))
    assert provider.fetches == 1


async def test_without_the_issuer_known_keys_are_used_for_a_day(provider: OidcProvider, clock: Clock) -> None:
    verifier = issuers(provider, clock)
    await verifier.verify(provider.token())
    provider.behaviour = "down"
    clock.later = 80_000.0
    await verifier.verify(provider.token(sub="later", exp=int(clock()) + 60))
    # Whether the issuer has this key cannot be known.
    with pytest.raises(IssuerUnreachable):
        await verifier.verify(provider.token(new_key("second"), exp=int(clock()) + 60))
    clock.later = 90_000.0
    with pytest.raises(IssuerUnreachable):
        await verifier.verify(provider.token(exp=int(clock()) + 60))
    provider.behaviour = ""
    clock.later = 90_100.0
    await verifier.verify(provider.token(exp=int(clock()) + 60))


@pytest.mark.parametrize("behaviour", ["down", "huge", "redirect", "slow"])
async def test_answers_of_the_issuer_are_bounded(
    provider: OidcProvider, clock: Clock, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_module, "_TIMEOUT", 0.5)
    provider.behaviour = behaviour
    verifier = issuers(provider, clock)
    for _ in range(2):
        with pytest.raises(IssuerUnreachable, match="cannot get the keys"):
            await verifier.verify(provider.token())
    assert provider.requests == ["GET /.well-known/openid-configuration"]
    provider.behaviour = ""
    clock.later = 6.0
    await verifier.verify(provider.token())


async def test_a_request_with_a_known_key_does_not_wait_for_a_slow_issuer(
    provider: OidcProvider, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_module, "_PATIENCE", 0.01)
    verifier = issuers(provider, clock)
    await verifier.verify(provider.token())
    provider.behaviour = "slow"
    clock.later = 4000.0
    await verifier.verify(provider.token(sub="later", exp=int(clock()) + 60))
    await verifier.close()
    with pytest.raises(ShuttingDown):
        await verifier.verify(provider.token(new_key("second"), exp=int(clock()) + 60))


@pytest.mark.parametrize(
    "discovery",
    [
        {"issuer": "https://elsewhere.example"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": None},
        {"jwks_uri": "http://[::1"},
        {"jwks_uri": "x" * 3000},
    ],
)
async def test_a_hostile_discovery_document_is_not_used(
    provider: OidcProvider, clock: Clock, discovery: dict[str, Any]
) -> None:
    provider.discovery = discovery
    with pytest.raises(IssuerUnreachable):
        await issuers(provider, clock).verify(provider.token())
    assert provider.fetches == 0


GOOD = new_key("first")


@pytest.mark.parametrize(
    "published",
    [
        {"kty": "oct", "kid": "first", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "first", "n": "A" * 342, "e": "AQAB"},
        {"kty": "RSA", "kid": "first", "n": "_" * 20_000, "e": "AQAB"},
        {"kty": "RSA", "kid": "first", "n": "_" * 400, "e": "_" * 400},
        {"kty": "EC", "kid": "first", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "kid": "first", "crv": "P-9"},
        {**GOOD.as_dict(private=False), "use": "enc"},
        {**GOOD.as_dict(private=False), "alg": "ES384"},
        "a text",
        None,
    ],
)
async def test_unusable_keys_are_left_out(provider: OidcProvider, clock: Clock, published: Any) -> None:  # noqa: ANN401
    other = new_key("other")
    provider.published = [published, other.as_dict(private=False)]
    verifier = issuers(provider, clock)
    await verifier.verify(provider.token(other))
    assert "none of the issuer's keys" in await refusal(verifier, provider.token(GOOD))


async def test_too_many_keys_are_refused(provider: OidcProvider, clock: Clock) -> None:
    provider.published = [provider.keys[0].as_dict(private=False)] * 101
    with pytest.raises(IssuerUnreachable):
        await issuers(provider, clock).verify(provider.token())


async def test_a_token_without_a_key_id_needs_a_single_key(provider: OidcProvider, clock: Clock) -> None:
    token = provider.token(header={"kid": None})
    await issuers(provider, clock).verify(token)
    provider.keys.append(new_key("second"))
    assert "none of the issuer's keys" in await refusal(issuers(provider, clock), token)


async def test_the_authority_of_a_cluster_is_trusted_for_its_issuer_only(
    tmp_path: Path, clock: Clock
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    file = tmp_path / "ca.crt"
    authority.cert_pem.write_to_path(str(file))
    with oidc_provider(context) as provider:
        name = "system:serviceaccount:builds:runner"
        verifier = issuers(provider, clock, prefix="", ca_file=file)
        assert (await verifier.verify(provider.token(sub=name))).name == name
        with pytest.raises(IssuerUnreachable):
            await issuers(provider, clock).verify(provider.token())
        # A discovery document that leads to plain HTTP.
        provider.discovery = {"jwks_uri": provider.url.replace("https", "http") + "/keys"}
        with pytest.raises(IssuerUnreachable):
            await issuers(provider, clock, ca_file=file).verify(provider.token())
