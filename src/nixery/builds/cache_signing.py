"""Keys that sign the store paths of the binary cache (Ed25519), in Nix's format: ``name:<base64>``.

The key is from a file, as ``nix-store --generate-binary-cache-key`` writes it, or one that the servers of a storage
share. A server that finds none in the storage writes one. Servers that start at the same time may write one each; then
all sign with each of them, since Nix accepts a path that has one signature of a trusted key.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from nixery.binary_caches.narinfo import fingerprint
from nixery.closure import PathInfo
from nixery.errors import SettingsError
from nixery.storage.records import CACHE_KEYS, RecordStore

# Of the keys in the storage, those that are read; and seconds after which they are read again.
_MOST_KEYS = 4
_READ_AGAIN = 30.0

# Bytes of a secret key: its seed, and its public key.
_SEED, _SECRET = 32, 64

# Bytes of a file, of which a key is the first line.
_LARGEST_FILE = 4096

# Clients know a key by its name, so that of a shared key has digits of the key.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_SHARED_NAME, _DIGITS = "nixery", 8


@dataclass(frozen=True, slots=True)
class CacheKey:
    """A secret key with its name."""

    name: str
    secret: Ed25519PrivateKey

    @classmethod
    def parse(cls, content: bytes) -> CacheKey:
        """Parse a secret key in Nix's format.

        Raises:
            ValueError: it is none.
        """
        name, colon, encoded = content.strip().decode("ascii").partition(":")
        secret = base64.b64decode(encoded, validate=True)
        if not colon or _NAME.fullmatch(name) is None or len(secret) != _SECRET:
            raise ValueError("not a secret key of a binary cache")
        key = cls(name, Ed25519PrivateKey.from_private_bytes(secret[:_SEED]))
        if key._public_bytes != secret[_SEED:]:
            raise ValueError("the secret key does not belong to the public key beside it")
        return key

    @property
    def public(self) -> str:
        """The public key, as clients name it in ``trusted-public-keys``."""
        return f"{self.name}:{base64.b64encode(self._public_bytes).decode()}"

    @property
    def encoded(self) -> bytes:
        """The secret key in Nix's format."""
        secret = self.secret.private_bytes_raw() + self._public_bytes
        return f"{self.name}:{base64.b64encode(secret).decode()}".encode()

    @property
    def record(self) -> str:
        """The key of its record."""
        return hashlib.sha256(self._public_bytes).hexdigest()

    @property
    def _public_bytes(self) -> bytes:
        return self.secret.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, info: PathInfo) -> str:
        """Sign what Nix has registered of a store path; return the value of the line ``Sig``."""
        signature = self.secret.sign(fingerprint(info))
        return f"{self.name}:{base64.b64encode(signature).decode()}"


class CacheKeys:
    """The keys of a binary cache.

    Args:
        records: of the storage.
        key: the only one; ``None`` to share keys in the storage.
        clock: seconds; only differences matter.
    """

    def __init__(
        self, records: RecordStore, key: CacheKey | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._records = records
        self._clock = clock
        self._only = key
        self._keys: dict[str, CacheKey] = {}
        self._read_at: float | None = None
        self._lock = asyncio.Lock()

    async def current(self) -> Sequence[CacheKey]:
        """Return the keys to sign with, in an order that all servers of the storage share.

        Raises:
            StorageError: the storage has no key, and none can be written.
        """
        if self._only is not None:
            return (self._only,)
        if self._read_at is None or self._clock() - self._read_at >= _READ_AGAIN:
            async with self._lock:
                await self._read()
        return [self._keys[key] for key in sorted(self._keys)[:_MOST_KEYS]]

    async def _read(self) -> None:
        now = self._clock()
        if self._read_at is not None and now - self._read_at < _READ_AGAIN:
            return  # another request has read them meanwhile
        self._keys = await shared_keys(self._records)
        if not self._keys:
            key = new_key()
            await self._records.put(CACHE_KEYS, key.record, key.encoded)
            self._keys = await shared_keys(self._records) or {key.record: key}
        self._read_at = now


async def shared_keys(records: RecordStore) -> dict[str, CacheKey]:
    """Return the keys in a storage, by the keys of their records.

    Raises:
        StorageError: the storage cannot be read.
    """
    found: dict[str, CacheKey] = {}
    async with aclosing(records.scan(CACHE_KEYS)) as listing:
        async for listed in listing:
            key = _parsed(await records.get(CACHE_KEYS, listed.key))
            if key is not None and key.record == listed.key:
                found[listed.key] = key
            if len(found) == _MOST_KEYS:
                break
    return found


def new_key() -> CacheKey:
    """Make a key, whose name has digits of its own."""
    secret = Ed25519PrivateKey.generate()
    return CacheKey(f"{_SHARED_NAME}-{CacheKey('', secret).record[:_DIGITS]}", secret)


def read_cache_key(file: Path) -> CacheKey:
    """Read a secret key.

    Raises:
        SettingsError: the file has none.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST_FILE)
    except OSError as error:
        raise SettingsError((f"NIXERY_CACHE_KEY_FILE: cannot read {file}: {error.strerror}",)) from None
    key = _parsed(content)
    if key is None:
        wanted = f"nix-store --generate-binary-cache-key NAME {file} PUBLIC_KEY_FILE"
        raise SettingsError((f"NIXERY_CACHE_KEY_FILE: {file} should have a secret key: {wanted}",))
    return key


def _parsed(content: bytes | None) -> CacheKey | None:
    try:
        return CacheKey.parse(content or b"")
    except ValueError:
        return None
