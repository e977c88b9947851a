"""Tokens of the registry's token service: short-lived, signed (ES256), and for some repositories only.

A client sends its credentials once, to ``/v2/token``, and the token with each request. A token names its owner and
their groups, so that any server of the storage can check it alone, and rules that change apply to it at once.

Every server that finds no key in the storage writes one. All sign with the first key in the order of their ids, and
accept each: so servers that start at the same time agree as soon as they have read each other's.

Source: distribution specification, "Token Authentication Implementation"; RFC 7519.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from pydantic import BaseModel, ConfigDict, ValidationError

from nixery.access.identity import CredentialsRefused, Identity, Kind, Limits, Right
from nixery.errors import SettingsError
from nixery.storage.records import SIGNING_KEYS, RecordStore

# Names this service in tokens: all servers of a storage are one.
SERVICE = "nixery"

# Characters of a token: an identity has 200 groups and 50 claims at most.
LONGEST_TOKEN = 64 * 1024

# Of the keys in the storage, those that are read; and seconds between two readings for an unknown key.
_MOST_KEYS = 16
_READ_AGAIN = 10.0

# Seconds by which the clocks of servers may differ.
_LEEWAY = 30

_ALGORITHM = "ES256"
_CURVE = "P-256"
_PULL = "pull"


class _Owner(BaseModel):
    model_config = ConfigDict(strict=False, extra="forbid")

    kind: Kind
    name: str
    groups: tuple[str, ...] = ()
    claims: dict[str, str] = {}
    rights: tuple[Right, ...] | None = None
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grants:
    """What a token can be used for.

    Attributes:
        identity: of its owner.
        repositories: names of images that its owner may pull with it.
        catalog: whether it can be used to list images.
        expires: seconds since the epoch.
    """

    identity: Identity
    repositories: frozenset[str]
    catalog: bool
    expires: float


class SigningKeys:
    """P-256 keys: one from a file, or those that the servers of a storage share.

    Args:
        records: of the storage.
        file: PEM of a private key; ``None`` to share keys in the storage.
        clock: seconds; only differences matter.
    """

    def __init__(
        self, records: RecordStore, file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._records = records
        self._clock = clock
        self._file = None if file is None else read_key(file)
        self._keys: dict[str, ECKey] = {}
        self._read_at: float | None = None
        self._lock = asyncio.Lock()

    async def current(self) -> ECKey:
        """Return the key to sign with.

        Raises:
            StorageError: the storage has no key, and none can be written.
        """
        if self._file is not None:
            return self._file
        if not self._keys:
            async with self._lock:
                if not self._keys:
                    await self._read()
                if not self._keys:
                    await self._create()
                    await self._read()
        return self._keys[min(self._keys)]

    async def find(self, key_id: str) -> ECKey | None:
        """Return the key with an id; ``None`` if there is none.

        Raises:
            StorageError: the storage cannot be read.
        """
        if self._file is not None:
            return self._file if _id(self._file) == key_id else None
        if key_id not in self._keys and (
            self._read_at is None or self._clock() - self._read_at >= _READ_AGAIN
        ):
            async with self._lock:
                await self._read()
        return self._keys.get(key_id)

    async def secret(self, purpose: str) -> bytes:
        """Return 32 secret bytes for one purpose, which the servers that share the key have as well.

        Raises:
            StorageError: as ``current``.
        """
        key = await self.current()
        return hashlib.sha256(purpose.encode() + b"\0" + key.as_der(private=True)).digest()

    async def _read(self) -> None:
        self._read_at = self._clock()
        async with aclosing(self._records.scan(SIGNING_KEYS)) as listing:
            async for listed in listing:
                if listed.key not in self._keys:
                    key = _parsed(await self._records.get(SIGNING_KEYS, listed.key))
                    if key is not None and _id(key) == listed.key:
                        self._keys[listed.key] = key
                if len(self._keys) == _MOST_KEYS:
                    break

    async def _create(self) -> None:
        key = ECKey.generate_key(_CURVE)
        await self._records.put(SIGNING_KEYS, _id(key), key.as_pem(private=True))


class RegistryTokens:
    """Issues and verifies tokens.

    Args:
        keys: that sign them.
        lifetime: seconds for which a token is valid.
        clock: seconds since the epoch.
    """

    def __init__(self, keys: SigningKeys, lifetime: int, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._clock = clock
        self.lifetime = lifetime

    async def issue(self, identity: Identity, repositories: frozenset[str], *, catalog: bool) -> str:
        """Return a token for its owner.

        Args:
            identity: the owner.
            repositories: names of images that the token can be used to pull.
            catalog: whether it can be used to list images.

        Raises:
            StorageError: the keys cannot be read.
        """
        now = int(self._clock())
        granted: list[dict[str, Any]] = [
            {"type": "repository", "name": name, "actions": [_PULL]} for name in sorted(repositories)
        ]
        if catalog:
            granted.append({"type": "registry", "name": "catalog", "actions": ["*"]})
        limits = identity.limits
        claims = {
            "iss": SERVICE,
            "aud": SERVICE,
            "sub": str(identity),
            "iat": now,
            "nbf": now,
            "exp": now + self.lifetime,
            "jti": secrets.token_hex(8),
            "access": granted,
            "owner": {
                "kind": identity.kind,
                "name": identity.name,
                "groups": sorted(identity.groups),
                "claims": dict(identity.claims),
                "rights": None if limits is None else sorted(limits.rights),
                "packages": () if limits is None else limits.packages,
            },
        }
        key = await self._keys.current()
        return jwt.encode({"alg": _ALGORITHM, "kid": _id(key)}, claims, key)

    async def verify(self, token: str) -> Grants:
        """Check a token.

        Raises:
            CredentialsRefused: it is not one of these, or has expired.
            StorageError: the keys cannot be read.
        """
        if len(token) > LONGEST_TOKEN:
            raise CredentialsRefused("the token is too long")
        try:
            header = json.loads(_decoded(token.partition(".")[0]))
            key = await self._keys.find(str(header["kid"]))
            if key is None:
                raise CredentialsRefused("the token is not from this registry")
            claims = jwt.decode(token, key, algorithms=[_ALGORITHM]).claims
            return self._grants(claims)
        except (JoseError, ValidationError, ValueError, KeyError, TypeError, RecursionError):
            raise CredentialsRefused("the token is not from this registry") from None

    def _grants(self, claims: Mapping[str, Any]) -> Grants:
        now, expires = self._clock(), float(claims["exp"])
        if claims["iss"] != SERVICE or claims["aud"] != SERVICE or now < claims["nbf"] - _LEEWAY:
            raise CredentialsRefused("the token is not for this registry")
        if now > expires:
            raise CredentialsRefused("the token has expired")
        owner = _Owner.model_validate(claims["owner"])
        limits = None if owner.rights is None else Limits(frozenset(owner.rights), owner.packages)
        identity = Identity(owner.kind, owner.name, frozenset(owner.groups), owner.claims, limits)
        granted = claims["access"]
        repositories = (one["name"] for one in granted if one["type"] == "repository")
        return Grants(
            identity, frozenset(repositories), any(one["type"] == "registry" for one in granted), expires
        )


def read_key(file: Path) -> ECKey:
    """Read a private key.

    Raises:
        SettingsError: the file has no private P-256 key.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SettingsError((f"cannot read {file}: {error.strerror}",)) from None
    key = _parsed(content)
    if key is None:
        raise SettingsError(
            (
                f"{file} should have a private P-256 key in PEM: openssl ecparam -name prime256v1 -genkey -noout",
            )
        )
    return key


def read_signing_key(content: bytes) -> ECKey:
    """Read the record of a signing key.

    Raises:
        ValueError: it is none.
    """
    key = _parsed(content)
    if key is None:
        raise ValueError("the record has no private P-256 key")
    return key


def looks_like_one(token: str) -> bool:
    """Whether a token says that this service issued it. Nothing is verified."""
    try:
        claims = json.loads(_decoded(token.split(".")[1])) if len(token) <= LONGEST_TOKEN else None
    except (ValueError, IndexError, RecursionError):
        return False
    return isinstance(claims, dict) and claims.get("iss") == SERVICE


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _parsed(content: bytes | None) -> ECKey | None:
    try:
        key = ECKey.import_key(content or b"")
    except (JoseError, ValueError, TypeError):
        return None
    return key if key.is_private and key.curve_name == _CURVE else None


def _id(key: ECKey) -> str:
    # Hexadecimal digits, as the keys of records are.
    return hashlib.sha256(key.as_der(private=False)).hexdigest()
