"""Azure with signatures and permissions, which Azurite verifies."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixery.oci.digest import Digest
from tests.acceptance.starting import error_line
from tests.support.command_line import CommandLine
from tests.support.object_stores import BUCKET, ObjectStore, azurite, shared_access_signature

# Permissions of a shared access signature: read, create, write, delete, list.
ALL = "rcwdl"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with azurite(tmp_path_factory.mktemp("azurite")) as running:
        yield running


def settings_with(permissions: str, server: ObjectStore) -> dict[str, str]:
    settings = {**server.settings, "AZURE_STORAGE_SAS_TOKEN": shared_access_signature(permissions)}
    del settings["AZURE_STORAGE_ACCOUNT_KEY"]
    return settings


@pytest.mark.parametrize(
    ("permission", "cannot"),
    [("w", "cannot write to"), ("r", "cannot read from"), ("l", "cannot list"), ("d", "cannot delete from")],
)
def test_a_missing_permission_is_reported(
    server: ObjectStore, tmp_path: Path, permission: str, cannot: str
) -> None:
    # The permission to create includes writing new blobs.
    permissions = "".join(one for one in ALL if one not in {permission, "c" if permission == "w" else ""})
    line = error_line(settings_with(permissions, server), tmp_path)
    assert line == f"nixery: {cannot} az://{BUCKET}: there is no permission to"


def test_credentials_that_cannot_sign_are_reported(server: ObjectStore, tmp_path: Path) -> None:
    line = error_line(settings_with(ALL, server), tmp_path)
    assert line.startswith(f"nixery: cannot make a URL for az://{BUCKET}: ")
    assert line.endswith("; with NIXERY_BLOB_DELIVERY=proxy none is needed")


def test_a_storage_is_copied_with_credentials_that_cannot_sign(server: ObjectStore, tmp_path: Path) -> None:
    blob = b"content"
    digest = Digest.of(blob)
    place = tmp_path / "from" / "blobs" / "sha256" / digest.hex[:2]
    place.mkdir(parents=True)
    (place / digest.hex).write_bytes(blob)
    (place / f"{digest.hex}.size").write_text(f"{len(blob)}")
    nixery = CommandLine(settings_with(ALL, server), tmp_path)
    nixery("storage", "copy", f"file://{tmp_path}/from", f"az://{BUCKET}/copied")
    nixery("storage", "copy", f"az://{BUCKET}/copied", f"file://{tmp_path}/to")
    assert (tmp_path / "to" / "blobs" / "sha256" / digest.hex[:2] / digest.hex).read_bytes() == blob


def test_wrong_credentials_are_reported(server: ObjectStore, tmp_path: Path) -> None:
    wrong = base64.b64encode(bytes(64)).decode()
    line = error_line({**server.settings, "AZURE_STORAGE_ACCOUNT_KEY": wrong}, tmp_path)
    assert line == f"nixery: cannot write to az://{BUCKET}: the credentials are wrong"


def test_a_missing_container_is_reported(server: ObjectStore, tmp_path: Path) -> None:
    line = error_line({**server.settings, "AZURE_CONTAINER_NAME": "no-such"}, tmp_path)
    assert line == "nixery: there is no bucket az://no-such"
