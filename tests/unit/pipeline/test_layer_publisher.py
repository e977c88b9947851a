"""With a real packer and a real store; only the layers are made up."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nixery.closure.graph import Closure, PathInfo
from nixery.closure.store_path import StorePath
from nixery.errors import ShuttingDown, StorageError
from nixery.layering.grouping import LayerGroup
from nixery.oci.image import Layer
from nixery.packing.compression import compression
from nixery.packing.layer_packer import LayerPacker
from nixery.packing.root_filesystem import RootFilesystem
from nixery.packing.tree import Content, Tree
from nixery.pipeline.events import BuildEvent, LayerPacked, LayerReused
from nixery.pipeline.layer_publisher import LayerPublisher
from nixery.storage.filesystem import FilesystemBlobStore
from nixery.storage.filesystem_records import FilesystemRecordStore

ROOT = RootFilesystem(Tree({b"etc": Tree({b"passwd": Content(b"root")})}), ())


class Publisher:
    """A publisher on a store, and the kinds of the events it told."""

    def __init__(self, storage: Path, executor: ThreadPoolExecutor) -> None:
        temporary = storage / "temporary"
        temporary.mkdir()
        self.blobs = FilesystemBlobStore(storage, temporary)
        records = FilesystemRecordStore(storage, temporary)
        self.layers = LayerPublisher(self.blobs, records, LayerPacker(compression("gzip")), executor)
        self.events: list[type[BuildEvent]] = []

    async def publish(self, root: RootFilesystem = ROOT, packages: tuple[str, ...] = ("p",)) -> Layer:
        return await self.layers.publish_root(root, packages, lambda event: self.events.append(type(event)))


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    with ThreadPoolExecutor(2) as executor:
        yield Publisher(tmp_path, executor)


async def blob_of(publisher: Publisher, layer: Layer) -> Path:
    blob = await publisher.blobs.find(layer.descriptor.digest)
    assert blob is not None
    return blob.path


async def test_a_layer_is_packed_once(publisher: Publisher) -> None:
    assert await publisher.publish() == await publisher.publish()
    assert publisher.events == [LayerPacked, LayerReused]


async def test_another_content_is_another_layer(publisher: Publisher) -> None:
    other = RootFilesystem(Tree({b"etc": Tree({b"passwd": Content(b"toor")})}), ())
    assert (await publisher.publish()).diff_id != (await publisher.publish(other)).diff_id


async def test_a_record_without_its_blob_is_not_believed(publisher: Publisher) -> None:
    layer = await publisher.publish()
    (await blob_of(publisher, layer)).unlink()
    assert await publisher.publish() == layer
    await blob_of(publisher, layer)
    assert publisher.events == [LayerPacked, LayerPacked]


async def test_neither_is_one_with_a_fragment(publisher: Publisher) -> None:
    layer = await publisher.publish()
    path = await blob_of(publisher, layer)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:10])
    assert await publisher.publish() == layer
    await blob_of(publisher, layer)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"digest": "sha256:0", "size": 1, "diff_id": "x"}'])
async def test_a_torn_record_is_written_anew(publisher: Publisher, tmp_path: Path, content: bytes) -> None:
    layer = await publisher.publish()
    (record,) = (path for path in (tmp_path / "records").rglob("*") if path.is_file())
    record.chmod(0o644)
    record.write_bytes(content)
    assert await publisher.publish() == layer
    assert await publisher.publish() == layer
    assert publisher.events == [LayerPacked, LayerPacked, LayerReused]


async def test_the_same_layer_at_the_same_time_is_packed_once_and_keeps_each_ones_names(
    publisher: Publisher,
) -> None:
    one, two = await asyncio.gather(
        publisher.publish(packages=("one",)), publisher.publish(packages=("two",))
    )
    assert publisher.events == [LayerPacked]
    assert (one.packages, two.packages) == (("one",), ("two",))
    assert one.descriptor == two.descriptor


async def test_a_store_path_that_cannot_be_read_fails_its_image(publisher: Publisher) -> None:
    gone = StorePath("0" * 32 + "-gone")
    with pytest.raises(StorageError, match="gone"):
        await publisher.layers.publish(
            [LayerGroup((gone,), 1)], Closure([PathInfo(gone, "", 1, ())]), lambda _: None
        )


async def test_nothing_is_packed_after_closing(publisher: Publisher) -> None:
    await publisher.layers.close()
    with pytest.raises(ShuttingDown):
        await publisher.publish()
