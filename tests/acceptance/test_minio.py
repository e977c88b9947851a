"""S3 with signatures and permissions, which MinIO verifies and the servers of ``make test`` do not."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest

from nixery.oci.digest import Digest
from nixery.settings import StorageSettings
from nixery.storage.blobs import BlobStore
from nixery.storage.bucket import BucketDriver
from nixery.storage.opening import open_storage
from tests.acceptance.starting import error_line
from tests.support.object_stores import BUCKET, PREFIX, ObjectStore, minio
from tests.support.server import clean_environment

_DOCUMENTED = (Path(__file__).parents[2] / "docs" / "how-to" / "store-images-in-a-bucket.md").read_text()

# Uploads a layer in three parts and is killed when the first have arrived.
_KILLED = """
import os, pathlib, signal, sys, tempfile, time
from nixery.settings import StorageSettings
from nixery.storage.opening import open_storage
with tempfile.TemporaryDirectory() as directory:
    settings = StorageSettings.model_validate({**os.environ, "STORAGE_PATH": directory})
    with open_storage(settings.storage_options, pathlib.Path(directory), os.environ).blobs.create() as writer:
        for _ in range(30):
            writer.write(bytes(1000 * 1000))
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with minio(tmp_path_factory.mktemp("minio")) as running:
        yield running


def documented(heading: str) -> Any:  # noqa: ANN401 -- JSON is anything
    """The JSON that docs/how-to/store-images-in-a-bucket.md has below a line, with the bucket and the prefix of these tests."""
    (block,) = re.findall(rf"^{re.escape(heading)}.*\n\n((?:    .*\n)+)", _DOCUMENTED, re.MULTILINE)
    return json.loads(block.replace("my-layers", BUCKET))


def amazon(name: str, server: ObjectStore) -> Any:  # noqa: ANN401 -- the vendor's library has no types
    return boto3.client(
        name,
        endpoint_url=server.settings["AWS_ENDPOINT_URL"],
        region_name=server.settings["AWS_REGION"],
        aws_access_key_id=server.settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=server.settings["AWS_SECRET_ACCESS_KEY"],
    )


def settings_with(policy: dict[str, Any], server: ObjectStore) -> dict[str, str]:
    """The settings of a user with a policy."""
    role = {"RoleArn": "arn:aws:iam::1:role/any", "RoleSessionName": "any", "Policy": json.dumps(policy)}
    given = amazon("sts", server).assume_role(**role)["Credentials"]
    return {
        **server.settings,
        "AWS_ACCESS_KEY_ID": given["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
        "AWS_SESSION_TOKEN": given["SessionToken"],
    }


def without(action: str) -> dict[str, Any]:
    policy = documented("The smallest policy:")
    statements = []
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        if left := [one for one in actions if one != action]:
            statements.append({**statement, "Action": left})
    assert statements != policy["Statement"]
    return {**policy, "Statement": statements}


@contextmanager
def opened(settings: Mapping[str, str], directory: Path) -> Iterator[BlobStore]:
    given = {"STORAGE_PATH": str(directory), "NIXERY_BLOB_DELIVERY": "redirect", **settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        storage = open_storage(StorageSettings.model_validate(given).storage_options, directory, settings)
        assert isinstance(storage.driver, BucketDriver)
        blobs = storage.blobs
        yield blobs


def names(server: ObjectStore) -> set[str]:
    found = amazon("s3", server).list_objects_v2(Bucket=BUCKET).get("Contents", [])
    return {one["Key"].removeprefix(f"{PREFIX}/") for one in found}


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 -- http
        content: bytes = answer.read()
        return content


def kill_during_upload(server: ObjectStore) -> int:
    environment = clean_environment(server.settings)
    command = [sys.executable, "-c", _KILLED]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, timeout=60, check=False
    ).returncode


async def test_the_smallest_policy_is_enough(server: ObjectStore, tmp_path: Path) -> None:
    settings = settings_with(documented("The smallest policy:"), server)
    content = bytes(range(256)) * 80_000
    with opened(settings, tmp_path) as blobs:
        with blobs.create() as writer:
            writer.write(content)
            blob = writer.commit()
        small = Digest.of(b"small")
        await blobs.put(small, b"small")
        assert {one.digest async for one in blobs.scan()} == {blob.digest, small}
        assert await blobs.read(blob) == content
        url = await blobs.url(blob)
        assert url is not None
        assert fetched(url) == content
        await blobs.quarantine(blob.digest)
        await blobs.delete(small)
        assert names(server) == {f"quarantine/{blob.digest.hex}", "version"}
        await blobs._driver.delete(f"quarantine/{blob.digest.hex}")
        assert names(server) == {"version"}


@pytest.mark.parametrize(
    ("action", "cannot"),
    [
        ("s3:PutObject", "cannot write to"),
        ("s3:GetObject", "cannot read from"),
        ("s3:ListBucket", "cannot list"),
        ("s3:DeleteObject", "cannot delete from"),
    ],
)
def test_a_missing_permission_is_reported(
    server: ObjectStore, tmp_path: Path, action: str, cannot: str
) -> None:
    line = error_line(settings_with(without(action), server), tmp_path)
    assert line == f"nixery: {cannot} s3://{BUCKET}: there is no permission to"
    left = names(server)
    for name in left:
        amazon("s3", server).delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{name}")
    assert len(left) == (1 if action == "s3:DeleteObject" else 0)


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_reported(server: ObjectStore, tmp_path: Path, variable: str) -> None:
    line = error_line({**server.settings, variable: "somebody-else"}, tmp_path)
    assert line == f"nixery: cannot write to s3://{BUCKET}: the credentials are wrong"


def test_a_missing_bucket_is_reported(server: ObjectStore, tmp_path: Path) -> None:
    line = error_line({**server.settings, "S3_BUCKET": "no-such"}, tmp_path)
    assert line == "nixery: there is no bucket s3://no-such"


async def test_a_killed_upload_leaves_no_object(server: ObjectStore, tmp_path: Path) -> None:
    """Its parts are stored, but become an object only when the upload is completed."""
    assert kill_during_upload(server) == -signal.SIGKILL
    assert names(server) == {"version"}
    s3 = amazon("s3", server)
    (upload,) = s3.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    place = {"Bucket": BUCKET, "Key": upload["Key"], "UploadId": upload["UploadId"]}
    assert s3.list_parts(**place)["Parts"]
    assert upload["Key"].startswith(f"{PREFIX}/uploads/")
    digest = Digest.of(bytes(30_000_000))
    with opened(server.settings, tmp_path) as blobs:
        assert await blobs.find(digest) is None
        assert [one async for one in blobs.scan()] == []
        with blobs.create() as writer:
            writer.write(bytes(30_000_000))
            assert writer.commit().digest == digest
        await blobs.delete(digest)
    assert names(server) == {"version"}
    s3.abort_multipart_upload(**place)


def test_the_lifecycle_rule_expires_unfinished_files(server: ObjectStore) -> None:
    """The other rule, for parts, has no counterpart in MinIO, which drops them after a day."""
    rules = documented("Lifecycle rules")["Rules"]
    (unfinished,) = [rule for rule in rules if "Expiration" in rule]
    s3 = amazon("s3", server)
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [unfinished]})
    (kept,) = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert (kept["Filter"]["Prefix"], kept["Expiration"]["Days"]) == ("uploads/", 1)
