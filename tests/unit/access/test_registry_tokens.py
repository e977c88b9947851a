"""Tokens of the token service."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from nixery.access.identity import CredentialsRefused, Identity, Kind, Limits, Right
from nixery.access.registry_tokens import LONGEST_TOKEN, RegistryTokens, SigningKeys, looks_like_one, read_key
from nixery.errors import SettingsError
from nixery.storage.records import RecordStore

NOW = 1_700_000_000
OWNER = Identity(
    Kind.OIDC, "ci", frozenset({"web"}), {"ref": "main"}, Limits(frozenset({Right.PULL}), ("git",))
)


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(records: RecordStore) -> SigningKeys:
    return SigningKeys(records)


@pytest.fixture
def tokens(keys: SigningKeys, clock: Clock) -> RegistryTokens:
    return RegistryTokens(keys, 300, clock)


async def issued(tokens: RegistryTokens) -> str:
    return await tokens.issue(OWNER, frozenset({"git", "shell/git"}), catalog=False)


def _encoded(document: Mapping[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


def _decoded(part: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return document


async def test_a_token_has_its_owner_and_its_names(tokens: RegistryTokens) -> None:
    token = await issued(tokens)
    assert looks_like_one(token)
    grants = await tokens.verify(token)
    assert grants.identity == OWNER
    assert (grants.repositories, grants.catalog) == (frozenset({"git", "shell/git"}), False)
    assert grants.expires == NOW + 300
    assert (await tokens.verify(await tokens.issue(OWNER, frozenset(), catalog=True))).catalog


async def test_a_token_expires(tokens: RegistryTokens, clock: Clock) -> None:
    token = await issued(tokens)
    clock.now += 300
    await tokens.verify(token)
    clock.now += 1
    with pytest.raises(CredentialsRefused, match="expired"):
        await tokens.verify(token)
    # The clock of another server may be late, but not by that much.
    clock.now = NOW - 31
    with pytest.raises(CredentialsRefused):
        await tokens.verify(token)


async def test_forged_tokens_are_refused(tokens: RegistryTokens, keys: SigningKeys) -> None:
    token = await issued(tokens)
    header, claims, signature = token.split(".")
    given, key = _decoded(header), await keys.current()
    other = ECKey.generate_key("P-256")
    # The public key as the secret of an HMAC.
    signed = f"{_encoded({**given, 'alg': 'HS256'})}.{claims}"
    mac = hmac.digest(key.as_pem(private=False), signed.encode(), hashlib.sha256)
    confused = f"{signed}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
    elsewhere = {**_decoded(claims), "aud": "another"}
    for forged in (
        "",
        ".",
        "..",
        token[:-1],
        f"{header}.{claims}.",
        f"{header}.{claims}",
        f"{header}.{_encoded({**_decoded(claims), 'sub': 'root'})}.{signature}",
        f"{_encoded({**given, 'alg': 'none'})}.{claims}.",
        f"{_encoded({**given, 'kid': '../../x'})}.{claims}.{signature}",
        f"{_encoded({**given, 'kid': ['x']})}.{claims}.{signature}",
        f"{_encoded({'alg': 'ES256'})}.{claims}.{signature}",
        f"{_encoded({**given, 'jwk': other.as_dict(private=False)})}.{claims}.{signature}",
        "[" * 50_000 + f".{claims}.{signature}",
        jwt.encode({**given, "alg": "ES256"}, _decoded(claims), other),
        confused,
        jwt.encode(given, elsewhere, key),
        jwt.encode(given, {**_decoded(claims), "owner": {"kind": "root", "name": "x"}}, key),
        jwt.encode(given, {"iss": "nixery"}, key),
        token + "A" * LONGEST_TOKEN,
    ):
        with pytest.raises(CredentialsRefused):
            await tokens.verify(forged)
    assert not looks_like_one("a.b.c")
    assert not looks_like_one(f"{header}.{_encoded({'iss': 'https://issuer.example'})}.{signature}")


async def test_servers_that_start_at_once_agree(records: RecordStore, clock: Clock) -> None:
    servers = [RegistryTokens(SigningKeys(records, clock=clock), 300, clock) for _ in range(3)]
    found = await asyncio.gather(*map(issued, servers))
    # An unknown key is looked up again after ten seconds.
    clock.now += 10
    for server in [*servers, RegistryTokens(SigningKeys(records), 300, clock)]:
        for token in found:
            assert (await server.verify(token)).identity == OWNER
    kids = {_decoded((await issued(RegistryTokens(SigningKeys(records), 300, clock))).split(".")[0])["kid"]}
    assert len(kids) == 1


async def test_unknown_keys_are_not_looked_up_each_time(records: RecordStore, clock: Clock) -> None:
    keys = SigningKeys(records, clock=clock)
    await keys.current()
    late = SigningKeys(records, clock=clock)
    assert await late.find("0" * 64) is None
    other = ECKey.generate_key("P-256")
    await records.put("signing-keys", "0" * 64, other.as_pem(private=True))
    clock.now += 11
    # A record under an id that is not its key's is not used.
    assert await late.find("0" * 64) is None


async def test_a_key_from_a_file(records: RecordStore, tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(ECKey.generate_key("P-256").as_pem(private=True))
    token = await issued(RegistryTokens(SigningKeys(records, file), 300, clock))
    await RegistryTokens(SigningKeys(records, file), 300, clock).verify(token)
    with pytest.raises(CredentialsRefused):
        await RegistryTokens(SigningKeys(records), 300, clock).verify(token)


@pytest.mark.parametrize("kind", ["empty", "text", "other curve"])
def test_a_file_without_a_private_key_is_a_mistake(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "key.pem"
    other = ECKey.generate_key("P-384").as_pem(private=True)
    file.write_bytes({"empty": b"", "text": b"no key", "other curve": other}[kind])
    with pytest.raises(SettingsError, match="should have a private P-256 key"):
        read_key(file)
    with pytest.raises(SettingsError, match="cannot read"):
        read_key(tmp_path / "missing")
