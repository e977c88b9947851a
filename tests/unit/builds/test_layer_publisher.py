"""With a real packer and a real store; only the layers are made up."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from nixery.builds.events import BuildEvent, LayerPacked, LayerReused
from nixery.builds.layers import LayerPublisher, Packing
from nixery.closure import Closure, PathInfo, StorePath
from nixery.errors import ShuttingDown, StorageError
from nixery.layering.grouping import LayerGroup
from nixery.locks import FileLocks
from nixery.oci.digest import Digest
from nixery.oci.documents import Layer
from nixery.packing.compression import compression
from nixery.packing.packer import Contents, LayerPacker, Sink
from nixery.packing.root_filesystem import Content, Entry, RootFilesystem, Tree
from nixery.storage.blobs import BlobStore, StoredFile
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore

ROOT = RootFilesystem(Tree({b"etc": Tree({b"passwd": Content(b"root")})}), ())


class Publisher:
    """A publisher on a store, and the kinds of the events it told."""

    def __init__(self, storage: Path) -> None:
        temporary = storage / "temporary"
        temporary.mkdir(exist_ok=True)
        self.blobs = BlobStore(FilesystemDriver(storage, temporary))
        records = RecordStore(FilesystemDriver(storage, temporary))
        self.locks = FileLocks(storage / "locks")
        packing = Packing(LayerPacker(compression("gzip")), 2, self.locks)
        self.layers = LayerPublisher(self.blobs, records, packing)
        self.events: list[type[BuildEvent]] = []

    async def publish(self, root: RootFilesystem = ROOT, packages: tuple[str, ...] = ("p",)) -> Layer:
        return await self.layers.publish_root(root, packages, lambda event: self.events.append(type(event)))


@pytest.fixture
async def publisher(tmp_path: Path) -> AsyncIterator[Publisher]:
    publisher = Publisher(tmp_path)
    yield publisher
    await publisher.layers.close()


async def blob_of(publisher: Publisher, layer: Layer) -> Path:
    blob = await publisher.blobs.find(layer.descriptor.digest)
    assert isinstance(blob, StoredFile)
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


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 -- files and threads tell nobody
            await asyncio.sleep(0.01)


def stop_in_the_middle(publisher: Publisher) -> tuple[threading.Event, threading.Event]:
    """Let the publisher pack no further than to its first look whether it is to stop."""
    begun, may_go_on = threading.Event(), threading.Event()
    pack = publisher.layers._packer.pack

    def slowly(contents: Contents, sink: Sink, check: Callable[[], None]) -> Digest:
        begun.set()
        may_go_on.wait(10)
        check()
        return pack(contents, sink, check)

    publisher.layers._packer.pack = slowly  # type: ignore[method-assign]
    return begun, may_go_on


async def test_another_process_packs_it_and_this_one_waits_without_a_thread(
    publisher: Publisher, tmp_path: Path
) -> None:
    other = Publisher(tmp_path)
    begun, may_go_on = stop_in_the_middle(other)
    first = asyncio.ensure_future(other.publish())
    await eventually(begun.is_set)
    second = asyncio.ensure_future(publisher.publish())
    await asyncio.sleep(0.3)
    assert not second.done()
    may_go_on.set()
    assert await first == await second
    assert (other.events, publisher.events) == ([LayerPacked], [LayerReused])
    assert list((tmp_path / "locks").iterdir()) == []
    await other.layers.close()


async def test_a_lock_of_a_process_that_was_killed_holds_nobody_up(
    publisher: Publisher, tmp_path: Path
) -> None:
    await publisher.publish()
    (record,) = (path for path in (tmp_path / "records").rglob("*") if path.is_file())
    (tmp_path / "locks" / record.name).touch()
    record.unlink()
    async with asyncio.timeout(10):
        await publisher.publish()
    assert list((tmp_path / "locks").iterdir()) == []


async def test_what_nobody_waits_for_any_more_is_not_packed_to_its_end(
    publisher: Publisher, tmp_path: Path
) -> None:
    begun, may_go_on = stop_in_the_middle(publisher)
    first = asyncio.ensure_future(publisher.publish())
    await eventually(begun.is_set)
    first.cancel()
    may_go_on.set()
    await asyncio.wait({first})
    await eventually(lambda: not list((tmp_path / "locks").iterdir()))
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "temporary").iterdir()) == []
    await publisher.publish()


async def test_who_comes_in_time_has_what_another_one_gave_up(publisher: Publisher, tmp_path: Path) -> None:
    begun, may_go_on = stop_in_the_middle(publisher)
    first = asyncio.ensure_future(publisher.publish())
    await eventually(begun.is_set)
    first.cancel()
    second = asyncio.ensure_future(publisher.publish())
    await asyncio.sleep(0)
    may_go_on.set()
    await second
    await asyncio.wait({first})
    assert publisher.events == [LayerPacked]
    assert len(list((tmp_path / "blobs").rglob("*.size"))) == 1


async def test_a_cancelled_publish_ends_after_its_thread(publisher: Publisher) -> None:
    begun, may_go_on = stop_in_the_middle(publisher)
    ended: list[str] = []
    publishing = asyncio.ensure_future(publisher.publish())
    publishing.add_done_callback(lambda _: ended.append("publish"))
    await eventually(begun.is_set)
    (thread,) = publisher.layers._threads.values()
    thread.add_done_callback(lambda _: ended.append("thread"))
    publishing.cancel()
    # As often as the loop needs for a publish that waits for no thread; a second cancellation changes nothing.
    for _ in range(20):
        await asyncio.sleep(0)
    publishing.cancel()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert ended == ["thread", "publish"]


async def test_a_root_file_system_is_planned_off_the_event_loop(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It may have hundreds of thousands of names.
    planning: list[threading.Thread] = []
    entries = RootFilesystem.entries

    def observed(root: RootFilesystem) -> Iterator[Entry]:
        planning.append(threading.current_thread())
        return entries(root)

    monkeypatch.setattr(RootFilesystem, "entries", observed)
    await publisher.publish()
    assert planning
    assert threading.current_thread() not in planning
