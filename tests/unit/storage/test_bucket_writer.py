import obstore
import pytest
from obstore.store import MemoryStore

from nixery.errors import StorageError
from nixery.oci.digest import Digest
from nixery.storage import bucket_writer
from nixery.storage.bucket_access import Bucket
from nixery.storage.bucket_writer import PART, BucketBlobWriter


def test_an_upload_that_is_deleted_before_it_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a lifecycle rule does that is too strict."""
    bucket = Bucket("memory:", MemoryStore())
    writer = BucketBlobWriter(bucket)
    put_size = bucket_writer.put_size

    def put_size_late(bucket: Bucket, digest: Digest, size: int) -> None:
        put_size(bucket, digest, size)
        obstore.delete(bucket.store, writer._name)

    monkeypatch.setattr(bucket_writer, "put_size", put_size_late)
    writer.write(bytes(2 * PART))
    with pytest.raises(StorageError, match="no such bucket or upload"):
        writer.commit()
    writer.discard()
