"""Keys of the binary cache: Nix's format, and one key for all servers of a storage."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from nixery.builds.cache_signing import CacheKey, CacheKeys, new_key, read_cache_key, shared_keys
from nixery.closure import PathInfo, StorePath
from nixery.errors import SettingsError
from nixery.gc.records import CHECKS
from nixery.storage.records import CACHE_KEYS, RecordStore

# The same in each process, since tests are named by their parameters.
_PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = CacheKey.parse(
    b"test-1:" + base64.b64encode(_PRIVATE.private_bytes_raw() + _PRIVATE.public_key().public_bytes_raw())
)
PATH, OTHER = StorePath(f"{'0' * 32}-path"), StorePath(f"{'1' * 32}-other")


@pytest.mark.parametrize(
    ("refers_to_itself", "references"),
    [(False, f"{OTHER}"), (True, f"{PATH},{OTHER}")],
)
def test_a_signature_is_over_what_nix_has_registered(refers_to_itself: bool, references: str) -> None:  # noqa: FBT001 -- a parameter of the test
    info = PathInfo(PATH, "00" * 32, 7, (OTHER,), refers_to_itself=refers_to_itself)
    name, _, signature = KEY.sign(info).partition(":")
    trusted, _, public = KEY.public.partition(":")
    assert name == trusted
    verifier = Ed25519PublicKey.from_public_bytes(base64.b64decode(public))
    verifier.verify(base64.b64decode(signature), f"1;{PATH};sha256:{'0' * 52};7;{references}".encode())


def test_a_key_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(KEY.encoded + b"\n")
    assert read_cache_key(file).public == KEY.public
    assert CHECKS[CACHE_KEYS](KEY.encoded)


SECRET = KEY.encoded.partition(b":")[2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"name",
        b"name:",
        b":" + SECRET,
        b"a name:" + SECRET,
        "n\u00e4me:".encode() + SECRET,
        b"name:" + SECRET[:-8],
        b"name:" + SECRET + b"AAAA",
        b"name:!" + SECRET,
        KEY.public.encode(),
        # The public key beside another secret.
        b"name:" + base64.b64encode(bytes(32) + base64.b64decode(SECRET)[32:]),
    ],
)
def test_a_file_without_a_key(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(
        SettingsError, match="should have a secret key: nix-store --generate-binary-cache-key"
    ):
        read_cache_key(file)
    assert not CHECKS[CACHE_KEYS](content)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"NIXERY_CACHE_KEY_FILE: cannot read .*: No such file"):
        read_cache_key(tmp_path / "none")


async def test_servers_of_a_storage_share_a_key(records: RecordStore) -> None:
    (first,) = await CacheKeys(records).current()
    (second,) = await CacheKeys(records).current()
    assert first.public == second.public
    assert first.name == f"nixery-{first.record[:8]}"


async def test_servers_that_started_together_sign_with_each_of_their_keys(records: RecordStore) -> None:
    now = 0.0
    keys = CacheKeys(records, clock=lambda: now)
    (own,) = await keys.current()
    other = new_key()
    await records.put(CACHE_KEYS, other.record, other.encoded)
    assert [key.public for key in await keys.current()] == [own.public]
    now = 31.0
    both = sorted((own, other), key=lambda key: key.record)
    assert [key.public for key in await keys.current()] == [key.public for key in both]


@pytest.mark.security
async def test_a_planted_record_is_no_key(records: RecordStore) -> None:
    other = new_key()
    await records.put(CACHE_KEYS, "00" * 32, other.encoded)
    await records.put(CACHE_KEYS, other.record, b"torn")
    assert await shared_keys(records) == {}


def test_a_key_in_a_file_is_the_only_one() -> None:
    assert CacheKey.parse(KEY.encoded).public == KEY.public
