"""The version of a storage, on every backend."""

from hashlib import sha256

import pytest

from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.storage.catalogue import Catalogue, TagRecord
from nixery.storage.records import TAGS
from nixery.storage.versions import migrate
from tests.storage_contract.conftest import OpenStorage
from tests.storage_contract.test_blobs import write
from tests.support.object_stores import ObjectStore


async def test_a_storage_of_a_later_version_is_refused(backend: ObjectStore, open_at: OpenStorage) -> None:
    storage = open_at(backend)
    assert await storage.driver.read("version", 100) == b"2\n"
    open_at(backend)
    await storage.driver.write("version", b"3\n")
    with pytest.raises(StorageError, match=r"in version 3.*upgrade this nixery"):
        open_at(backend)


async def test_a_storage_of_version_1_is_migrated_in_place(
    backend: ObjectStore, open_at: OpenStorage
) -> None:
    storage = open_at(backend)
    write(storage, b"content")
    await storage.driver.delete("version")
    digest = Digest.of(b"manifest")
    key = sha256(b"name").hexdigest() + sha256(b"tag").hexdigest()
    record = TagRecord(name="name", tag="tag", digest=str(digest))
    await storage.records.put(TAGS, key, record.model_dump_json().encode())
    opened = open_at(backend)
    assert await opened.driver.read("version", 100) is None
    await migrate(opened.driver, Catalogue(opened.records))
    assert await opened.driver.read("version", 100) == b"2\n"
    assert await opened.records.get(TAGS, key) is None
    assert await Catalogue(opened.records).tags("name", "", 10) == ["tag"]
