"""Who may pull what by digest."""

from __future__ import annotations

import pytest

from nixery.access.identity import ANONYMOUS, Identity, Kind, Right
from nixery.access.policy import Access, Rule, enter_access
from nixery.errors import BlobUnknown, LoginRequired, NixeryError, NotVisible
from nixery.image.platform import AMD64
from nixery.oci.digest import Digest
from nixery.server.http import Request
from nixery.server.registry.permissions import Permissions
from tests.unit.server.conftest import StoredImage

PULL = frozenset({Right.PULL})
BOB = Identity(Kind.PASSWORD, "bob")
RULES = (
    Rule(("user:bob",), PULL, ("git",), ("stable",)),
    Rule(("user:eve",), PULL, ("git",), ("latest",)),
    Rule(("user:eve",), PULL, ("curl",)),
)


def log_in(user: str) -> None:
    enter_access(Access(Identity(Kind.PASSWORD, user), RULES))


@pytest.fixture
def permissions(stored: StoredImage) -> Permissions:
    return Permissions(stored.catalogue, stored.blobs, [AMD64])


async def may_pull(permissions: Permissions, name: str, digest: Digest) -> bool:
    unknown = BlobUnknown(str(digest))
    try:
        await permissions.require_digest(name, digest, unknown)
    except NixeryError as error:
        if error is not unknown and not isinstance(error, NotVisible):
            raise
        return False
    return True


@pytest.mark.parametrize("is_warm", [False, True])
async def test_a_digest_belongs_to_a_name_and_a_tag(
    stored: StoredImage,
    permissions: Permissions,
    is_warm: bool,  # noqa: FBT001
) -> None:
    log_in("bob")
    await permissions.note("git", "stable", stored.image.manifest)
    if not is_warm:
        # As another server, which reads what this one has recorded.
        permissions = Permissions(stored.catalogue, stored.blobs, [AMD64])
    for digest in (stored.image.manifest.descriptor.digest, stored.config, Digest.of(stored.layer)):
        assert await may_pull(permissions, "git", digest)
        assert not await may_pull(permissions, "curl", digest)
        log_in("eve")
        # Another tag; and a name that never had it.
        assert not await may_pull(permissions, "git", digest)
        assert not await may_pull(permissions, "curl", digest)
        log_in("bob")
    assert not await may_pull(permissions, "git", Digest.of(b"something else"))


async def test_an_image_with_several_tags_is_for_who_may_pull_one(
    stored: StoredImage, permissions: Permissions
) -> None:
    layer = Digest.of(stored.layer)
    log_in("bob")
    await permissions.note("git", "stable", stored.image.manifest)
    log_in("eve")
    await permissions.note("git", "latest", stored.image.manifest)
    assert await may_pull(permissions, "git", layer)
    log_in("bob")
    assert await may_pull(permissions, "git", layer)


async def test_children_of_an_index_belong_to_its_name(stored: StoredImage, permissions: Permissions) -> None:
    log_in("eve")
    await permissions.note("curl", "latest", stored.index.index)
    manifest = stored.image.manifest
    assert await may_pull(permissions, "curl", manifest.descriptor.digest)
    permissions.note_part("curl", manifest)
    assert await may_pull(permissions, "curl", stored.config)
    elsewhere = Permissions(stored.catalogue, stored.blobs, [AMD64])
    assert await may_pull(elsewhere, "curl", stored.config)


def test_a_token_for_another_name(permissions: Permissions) -> None:
    log_in("eve")
    request = Request("GET", "/v2/", repositories=frozenset({"git"}))
    permissions.require_name(request, "git")
    with pytest.raises(LoginRequired, match="the token is not for curl"):
        permissions.require_name(request, "curl")
    # What rules deny looks missing, whatever the token is for.
    with pytest.raises(NotVisible):
        permissions.require_name(request, "secret")


async def test_anonymous_clients_are_asked_to_log_in(permissions: Permissions) -> None:
    enter_access(Access(ANONYMOUS, RULES))
    with pytest.raises(LoginRequired):
        await permissions.require_digest("git", Digest.of(b""), BlobUnknown(""))
