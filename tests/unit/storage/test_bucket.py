import obstore
import pytest
from obstore.store import MemoryStore

from nixery.errors import StorageError
from nixery.storage.bucket import PART, Bucket, BucketUpload


def test_an_upload_that_is_deleted_before_its_copy_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delete an upload too early, like a lifecycle rule that is too strict."""
    bucket = Bucket("memory:", MemoryStore())
    upload = BucketUpload(bucket)
    put = BucketUpload._put

    def put_late(self: BucketUpload, name: str, content: bytes) -> None:
        put(self, name, content)
        obstore.delete(bucket.store, upload._name)

    monkeypatch.setattr(BucketUpload, "_put", put_late)
    upload.write(bytes(2 * PART))
    with pytest.raises(StorageError, match="no such bucket or upload"):
        upload.commit("blob", {"blob.size": b"1"})
    upload.discard()
