"""Credentials become an identity once, and wrong ones never become anonymous."""

from __future__ import annotations

import base64
from pathlib import Path

import bcrypt
import pytest

from nixery.access.api_tokens import ApiTokens
from nixery.access.authentication import Authenticator, Verifiers
from nixery.access.failed_logins import FailedLogins
from nixery.access.identity import CredentialsRefused, Kind
from nixery.access.passwords import Htpasswd
from nixery.access.registry_tokens import RegistryTokens, SigningKeys
from nixery.request_context import Client
from nixery.storage.records import RecordStore

CLIENT = Client("192.0.2.1")


@pytest.fixture
def passwords(tmp_path: Path) -> Htpasswd:
    (tmp_path / "htpasswd").write_text(f"alice:{bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}\n")
    return Htpasswd(tmp_path / "htpasswd")


@pytest.fixture
def tokens(records: RecordStore) -> RegistryTokens:
    return RegistryTokens(SigningKeys(records), 300)


@pytest.fixture
def authenticator(records: RecordStore, passwords: Htpasswd, tokens: RegistryTokens) -> Authenticator:
    groups = {"platform": ("alice",), "others": ("bob",)}
    return Authenticator(Verifiers(tokens, ApiTokens(records), FailedLogins(), passwords, groups))


def basic(text: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


async def test_a_password_is_hashed_once(
    authenticator: Authenticator, passwords: Htpasswd, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = basic("alice:right")
    assert authenticator.remembered(headers) is None
    found = await authenticator.authenticate(headers, CLIENT, "")
    assert (found.identity.kind, found.identity.name) == (Kind.PASSWORD, "alice")
    assert found.identity.groups == {"platform"}

    async def verify(*_: object) -> bool:
        raise AssertionError("hashed again")

    monkeypatch.setattr(passwords, "verify", verify)
    assert authenticator.remembered(headers) == found
    assert await authenticator.authenticate(headers, CLIENT, "") == found
    # After the file has changed, it is.
    authenticator.forget()
    assert authenticator.remembered(headers) is None


async def test_a_token_of_the_token_service_is_for_its_images(
    authenticator: Authenticator, tokens: RegistryTokens
) -> None:
    alice = (await authenticator.authenticate(basic("alice:right"), CLIENT, "")).identity
    token = await tokens.issue(alice, frozenset({"shell/git"}), catalog=False)
    headers = {"authorization": f"Bearer {token}"}
    found = await authenticator.authenticate(headers, CLIENT, "")
    assert (found.identity, found.repositories, found.catalog) == (alice, frozenset({"shell/git"}), False)
    assert authenticator.remembered(headers) == found


def test_who_sends_no_credentials_is_anonymous(authenticator: Authenticator) -> None:
    found = authenticator.remembered({})
    assert found is not None
    assert found.identity.is_anonymous


@pytest.mark.parametrize(
    "authorization",
    [
        "Basic !",
        basic("alice")["authorization"],
        basic("alice:wrong")["authorization"],
        basic("mallory:right")["authorization"],
        basic("a\x1bb:right")["authorization"],
        "Basic " + "A" * 100_000,
        "Bearer abc",
        "Bearer a.b.c",
        "Bearer nixery_0123456789abcdef_" + "A" * 43,
        "Digest username=alice",
    ],
    ids=lambda text: text[:30],
)
async def test_wrong_credentials_are_refused_and_not_remembered(
    authenticator: Authenticator, authorization: str
) -> None:
    headers = {"authorization": authorization}
    with pytest.raises(CredentialsRefused):
        await authenticator.authenticate(headers, CLIENT, "")
    assert authenticator.remembered(headers) is None
