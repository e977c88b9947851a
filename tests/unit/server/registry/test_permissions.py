"""Who may pull what by digest."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from nixery.access.identity import ANONYMOUS, Identity, Kind, Right
from nixery.access.policy import Access, Policy, Rule, enter_access
from nixery.errors import BlobUnknown, LoginRequired, NixeryError, NotVisible
from nixery.image.platform import AMD64
from nixery.oci.digest import Digest
from nixery.server.http import Request
from nixery.server.registry.permissions import Permissions
from nixery.storage.catalogue import MOST_TAGS
from tests.unit.server.conftest import StoredImage

PULL = frozenset({Right.PULL})
BOB = Identity(Kind.PASSWORD, "bob")
RULES = (
    Rule(("user:bob",), PULL, ("git",), ("stable",)),
    Rule(("user:eve",), PULL, ("git",), ("latest",)),
    Rule(("user:eve",), PULL, ("curl",)),
    Rule(("everyone",), PULL, ("open",)),
    Rule(("everyone",), PULL, ("partly",), ("1.*",)),
    Rule(("user:bob",), PULL, ("partly",)),
)
REQUEST = Request("GET", "/v2/")


def log_in(user: str) -> None:
    enter_access(Access(Identity(Kind.PASSWORD, user), RULES))


@pytest.fixture
def permissions(stored: StoredImage) -> Permissions:
    return Permissions(stored.catalogue, stored.blobs, [AMD64])


async def may_pull(permissions: Permissions, name: str, digest: Digest) -> bool:
    unknown = BlobUnknown(str(digest))
    try:
        await permissions.require_digest(REQUEST, name, digest, unknown)
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
    await permissions.note("git", "stable", "stable", stored.image.manifest)
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
    await permissions.note("git", "stable", "stable", stored.image.manifest)
    log_in("eve")
    await permissions.note("git", "latest", "latest", stored.image.manifest)
    assert await may_pull(permissions, "git", layer)
    log_in("bob")
    assert await may_pull(permissions, "git", layer)


async def test_children_of_an_index_belong_to_its_name(stored: StoredImage, permissions: Permissions) -> None:
    log_in("eve")
    await permissions.note("curl", "latest", "latest", stored.index.index)
    manifest = stored.image.manifest
    assert await may_pull(permissions, "curl", manifest.descriptor.digest)
    permissions.note_part("curl", manifest)
    assert await may_pull(permissions, "curl", stored.config)
    elsewhere = Permissions(stored.catalogue, stored.blobs, [AMD64])
    assert await may_pull(elsewhere, "curl", stored.config)


async def test_another_server_knows_each_tag_of_a_digest(
    stored: StoredImage, permissions: Permissions
) -> None:
    manifest, layer = stored.image.manifest, Digest.of(stored.layer)
    log_in("eve")
    await permissions.note("git", "latest", "latest", manifest)
    elsewhere = Permissions(stored.catalogue, stored.blobs, [AMD64])
    assert await may_pull(elsewhere, "git", layer)
    log_in("bob")
    assert not await may_pull(elsewhere, "git", layer)
    await permissions.note("git", "stable", "stable", manifest)
    # It has the other tag in memory.
    for digest in (layer, manifest.descriptor.digest):
        assert await may_pull(elsewhere, "git", digest)


async def test_requests_at_the_same_time_record_all_their_tags(
    stored: StoredImage, permissions: Permissions
) -> None:
    log_in("eve")
    tags = [f"tag-{number}" for number in range(8)]
    await asyncio.gather(*(permissions.note("git", tag, tag, stored.image.manifest) for tag in tags))
    recorded = await stored.catalogue.tags_of("git", stored.image.manifest.descriptor.digest)
    assert sorted(recorded) == tags


async def test_a_source_without_versions_answers_the_digest_of_the_tag_that_was_pulled(
    stored: StoredImage, permissions: Permissions
) -> None:
    log_in("bob")
    # Each tag is the same image, which is listed as `latest`; bob may only pull `stable`.
    await permissions.note("git", "stable", "latest", stored.image.manifest)
    elsewhere = Permissions(stored.catalogue, stored.blobs, [AMD64])
    for server in (permissions, elsewhere):
        assert await may_pull(server, "git", Digest.of(stored.layer))
    log_in("eve")
    assert not await may_pull(permissions, "git", Digest.of(stored.layer))
    # Made-up tags of those who may pull the listed one take no room.
    for number in range(40):
        await permissions.note("git", f"made-up-{number}", "latest", stored.image.manifest)
    recorded = await stored.catalogue.tags_of("git", stored.image.manifest.descriptor.digest)
    assert recorded == ("latest", "stable")


async def test_a_tag_that_others_displaced_counts_again_when_it_is_pulled(
    stored: StoredImage, permissions: Permissions
) -> None:
    manifest, layer = stored.image.manifest, Digest.of(stored.layer)
    for _ in range(2):
        log_in("bob")
        await permissions.note("git", "stable", "stable", manifest)
        assert await may_pull(permissions, "git", layer)
        log_in("eve")
        for number in range(MOST_TAGS):
            await permissions.note("git", f"tag-{number}", f"tag-{number}", manifest)


async def test_the_last_manifests_of_a_name_are_read(stored: StoredImage, permissions: Permissions) -> None:
    log_in("eve")
    # With more earlier digests than are read.
    for number in range(300):
        await stored.catalogue.record_name("curl", "latest", Digest.of(str(number).encode()))
    await permissions.note("curl", "latest", "latest", stored.image.manifest)
    elsewhere = Permissions(stored.catalogue, stored.blobs, [AMD64])
    assert await may_pull(elsewhere, "curl", stored.config)


async def test_attached_manifests_belong_to_the_name_of_their_subject(
    stored: StoredImage, permissions: Permissions
) -> None:
    subject = stored.image.manifest.descriptor.digest
    attached = Digest.of(b"signature")
    record = json.dumps({"digest": str(attached)}).encode()
    await stored.records.put("referrers", subject.hex + attached.hex, record)
    log_in("bob")
    await permissions.note("git", "stable", "stable", stored.image.manifest)
    assert await may_pull(permissions, "git", attached)
    log_in("eve")
    assert not await may_pull(permissions, "git", attached)


def log_in_anonymously() -> None:
    enter_access(Policy(RULES).access(ANONYMOUS))


def test_credentials_are_asked_for_where_they_show_more(permissions: Permissions) -> None:
    log_in_anonymously()
    permissions.require_login(REQUEST, "open")
    with pytest.raises(LoginRequired, match="to see all of partly"):
        permissions.require_login(REQUEST, "partly")
    # A token without credentials, or one that was refused nothing.
    permissions.require_login(replace(REQUEST, headers={"authorization": "Bearer x"}), "partly")
    log_in("eve")
    permissions.require_login(REQUEST, "partly")


async def test_a_digest_that_others_may_pull_asks_for_credentials(permissions: Permissions) -> None:
    log_in_anonymously()
    unknown = BlobUnknown("")
    with pytest.raises(BlobUnknown):
        await permissions.require_digest(REQUEST, "open", Digest.of(b""), unknown)
    with pytest.raises(LoginRequired):
        await permissions.require_digest(REQUEST, "partly", Digest.of(b""), unknown)


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
        await permissions.require_digest(REQUEST, "git", Digest.of(b""), BlobUnknown(""))
