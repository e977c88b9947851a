"""Behaviour of buckets alone: URLs for clients, and failures of the connection."""

import asyncio
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from datetime import datetime, timedelta
from email.message import Message
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.storage import bucket as bucket_module
from nixery.storage.blobs import PRESENCE_TTL, BlobStore
from nixery.storage.catalogue import Catalogue
from nixery.storage.opening import Storage
from tests.storage_contract.conftest import OpenStorage, through
from tests.storage_contract.test_blobs import content_of, listed, read, write
from tests.storage_contract.test_copying import DISK, KEY, copy, holds
from tests.support.faulty_proxy import Fault, faulty_proxy
from tests.support.object_stores import ObjectStore
from tests.support.server import free_port


def fetch(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes, Message]:
    """Send a request like a client without any knowledge of buckets."""
    request = urllib.request.Request(url, headers=headers or {})  # noqa: S310 -- http
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


@pytest.mark.parametrize("size", [1000, 20_000_000])
async def test_a_client_reads_from_a_signed_url(bucket: ObjectStore, open_at: OpenStorage, size: int) -> None:
    storage = open_at(bucket)
    content = content_of(size)
    blob = write(storage, content)
    url = await storage.blobs.url(blob)
    assert url is not None
    status, body, headers = fetch(url)
    assert (status, body) == (200, content)
    assert headers["content-type"] == "application/octet-stream"
    status, body, _ = fetch(url, {"Range": "bytes=100-299"})
    assert (status, body) == (206, content[100:300])


async def test_uploads_leave_nothing_but_the_blob(bucket: ObjectStore, open_at: OpenStorage) -> None:
    storage = open_at(bucket)
    write(storage, content_of(20_000_000))
    assert isinstance(storage.driver, bucket_module.BucketDriver)
    reached = storage.driver.bucket
    paths = [found["path"] for found in reached.store.list(reached.prefix).collect()]
    assert len([path for path in paths if "/blobs/sha256/" in path]) == 2
    assert objects_of(storage) == {"blobs", "version"}


@pytest.mark.parametrize("fault", ["error", "cut"])
async def test_a_server_that_fails_intermittently(
    bucket: ObjectStore, open_at: OpenStorage, fault: Fault
) -> None:
    content = content_of(20_000_000)
    with faulty_proxy(bucket.port) as proxy:
        storage = open_at(through(bucket, proxy.port))
        if fault == "error":
            proxy.fault = fault
        blob = write(storage, content)
        proxy.fault = fault
        found = await storage.blobs.find(blob.digest)
        assert found == blob
        for _ in range(3):
            assert await read(storage, blob, 0, blob.size - 1) == content
        assert proxy.faults > 0


@pytest.mark.parametrize("every", [2, 3, 7])
@pytest.mark.parametrize("size", [1000, 20_000_000])
async def test_lost_responses_to_uploads(
    bucket: ObjectStore, open_at: OpenStorage, size: int, every: int
) -> None:
    """Also the response to the last request of a multipart upload: the object exists, and the upload cannot be completed again."""
    content = content_of(size)
    with faulty_proxy(bucket.port) as proxy:
        storage = open_at(through(bucket, proxy.port))
        proxy.fault, proxy.every = "cut", every
        blob = write(storage, content)
        proxy.fault = "none"
        assert await storage.blobs.find(blob.digest) == blob
        assert await read(storage, blob, 0, size - 1) == content
        assert objects_of(storage) == {"blobs", "version"}


async def test_lost_responses_to_deletions(bucket: ObjectStore, open_at: OpenStorage) -> None:
    with faulty_proxy(bucket.port) as proxy:
        storage = open_at(through(bucket, proxy.port))
        blob = write(storage, b"content")
        proxy.fault, proxy.every = "cut", 2
        for _ in range(4):
            await storage.blobs.delete(blob.digest)
        proxy.fault = "none"
        assert proxy.faults > 0
        assert await storage.blobs.find(blob.digest) is None


def objects_of(storage: Storage) -> set[str]:
    """The first parts of the names of all objects."""
    assert isinstance(storage.driver, bucket_module.BucketDriver)
    reached = storage.driver.bucket
    paths = [found["path"] for found in reached.store.list(reached.prefix).collect()]
    return {path.removeprefix(reached.prefix).partition("/")[0] for path in paths}


async def test_a_warm_read_sends_no_request_to_the_bucket(bucket: ObjectStore, open_at: OpenStorage) -> None:
    with faulty_proxy(bucket.port) as proxy:
        storage = open_at(through(bucket, proxy.port))
        blob = write(storage, b"content")
        await storage.blobs.find(blob.digest)
        before = list(proxy.requests)
        for _ in range(3):
            assert await storage.blobs.find_cached(blob.digest) == blob
            assert await storage.blobs.url(blob)
        assert proxy.requests == before


async def test_cached_lookups_expire(bucket: ObjectStore, open_at: OpenStorage) -> None:
    storage = open_at(bucket)
    assert isinstance(storage.driver, bucket_module.BucketDriver)
    now = [0.0]
    blobs = BlobStore(storage.driver, clock=lambda: now[0])
    blob = write(storage, b"content")
    assert await blobs.find(blob.digest) == blob
    await storage.blobs.delete(blob.digest)
    assert await blobs.find_cached(blob.digest) == blob
    now[0] += PRESENCE_TTL
    assert await blobs.find_cached(blob.digest) is None


async def test_find_ignores_cached_lookups(bucket: ObjectStore, open_at: OpenStorage) -> None:
    storage, collector = open_at(bucket), open_at(bucket)
    blob = write(storage, b"content")
    assert await storage.blobs.find(blob.digest) == blob
    await collector.blobs.delete(blob.digest)
    assert await storage.blobs.find_cached(blob.digest) == blob
    assert await storage.blobs.find(blob.digest) is None
    assert await storage.blobs.find_cached(blob.digest) is None


async def test_an_upload_that_breaks_off_is_no_blob(
    bucket: ObjectStore, open_at: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of(30_000_000)
    with faulty_proxy(bucket.port) as proxy:
        storage = open_at(through(bucket, proxy.port))
        monkeypatch.setattr("nixery.storage.opening._RETRY", {})
        proxy.fault, proxy.every = "error", 1
        with pytest.raises(StorageError):
            await asyncio.to_thread(write, storage, content)
        proxy.fault = "none"
        assert await listed(storage) == []
        assert await storage.blobs.find(Digest.of(content)) is None


def test_a_missing_bucket_is_found_at_the_start(bucket: ObjectStore, open_at: OpenStorage) -> None:
    with pytest.raises(StorageError) as raised:
        open_at(bucket, S3_BUCKET="no-such", GCS_BUCKET="no-such", AZURE_CONTAINER_NAME="no-such")
    assert "no-such" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_server_that_is_down(open_at: OpenStorage, bucket: ObjectStore) -> None:
    with pytest.raises(StorageError, match="cannot be reached"):
        open_at(through(bucket, free_port()))


def test_a_server_that_starts_late(bucket: ObjectStore, open_at: OpenStorage) -> None:
    port = free_port()
    with ExitStack() as stack:

        def start() -> None:
            time.sleep(1)
            stack.enter_context(faulty_proxy(bucket.port, port))

        thread = threading.Thread(target=start)
        thread.start()
        try:
            open_at(through(bucket, port))
        finally:
            thread.join(60)


async def test_urls_expire(
    bucket: ObjectStore, open_at: OpenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_at(bucket)
    blob = write(storage, b"content")
    monkeypatch.setattr(bucket_module, "LIFETIME", timedelta(seconds=1))
    url = await storage.blobs.url(blob)
    assert url is not None
    await asyncio.sleep(2.1)
    lifetime = parse_qs(urlsplit(url).query)
    if "se" in lifetime:
        assert time.time() - 5 < datetime.fromisoformat(lifetime["se"][0]).timestamp() < time.time() + 1
    else:
        assert {value[0] for name, value in lifetime.items() if name.endswith("-Expires")} == {"1"}
    # A server that verifies no signatures can show no more than that.
    assert (fetch(url)[0] == 403) is bucket.verifies


async def test_a_page_of_many_tags_costs_a_bucket_a_handful_of_requests(
    bucket: ObjectStore, open_at: OpenStorage
) -> None:
    direct = Catalogue(open_at(bucket).records)
    tags = [f"v{number:03}" for number in range(200)]
    for start in range(0, len(tags), 20):
        some = tags[start : start + 20]
        await asyncio.gather(*(direct.record_tag("name", tag, Digest.of(b"manifest")) for tag in some))
    await direct.record_tag("other", "latest", Digest.of(b"manifest"))
    with faulty_proxy(bucket.port) as proxy:
        catalogue = Catalogue(open_at(through(bucket, proxy.port)).records)
        before = len(proxy.requests)
        assert await catalogue.names("", 2) == ["name", "other"]
        assert await catalogue.tags("name", "v099", 2) == ["v100", "v101"]
        assert len(proxy.requests) - before <= 8


async def test_the_command_copies_a_storage_into_a_bucket_and_back(
    bucket: ObjectStore, open_at: OpenStorage, tmp_path: Path, prefix: str
) -> None:
    disk = open_at(DISK)
    contents = [content_of(10, b"1"), content_of(100_000, b"2"), content_of(9_000_000, b"3")]
    for content in contents:
        write(disk, content)
    await disk.records.put("layers", KEY, b"record")
    for copied in (3, 0):
        ended = copy(f"file://{tmp_path}", f"{bucket.url}/{prefix}", bucket.settings)
        assert ended.returncode == 0, ended
        assert ended.stdout.startswith(f"{copied} of 3 blobs copied")
        await holds(open_at(bucket), contents)
    ended = copy(f"{bucket.url}/{prefix}", f"file://{tmp_path}/back", bucket.settings)
    assert ended.returncode == 0, ended
    await holds(open_at(DISK, STORAGE_PATH=str(tmp_path / "back")), contents)
