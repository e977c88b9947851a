"""Layers with made-up contents, a real packer and a real storage."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
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
from nixery.packing.local_store import LocalStore
from nixery.packing.packer import AddContents, LayerPacker, Sink
from nixery.packing.root_filesystem import Content, Entry, RootFilesystem, Tree
from nixery.storage.blobs import BlobStore, StoredFile
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import RecordStore
from tests.support.event_loop import eventually, settle

ROOT = RootFilesystem(Tree({b"etc": Tree({b"passwd": Content(b"root")})}), ())


class Publisher:
    """A publisher on a storage, and the types of its events."""

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


async def test_different_contents_are_different_layers(publisher: Publisher) -> None:
    other = RootFilesystem(Tree({b"etc": Tree({b"passwd": Content(b"toor")})}), ())
    assert (await publisher.publish()).diff_id != (await publisher.publish(other)).diff_id


async def test_a_layer_whose_blob_is_lost_is_packed_again(publisher: Publisher) -> None:
    layer = await publisher.publish()
    (await blob_of(publisher, layer)).unlink()
    assert await publisher.publish() == layer
    await blob_of(publisher, layer)
    assert publisher.events == [LayerPacked, LayerPacked]


async def test_a_layer_whose_blob_is_truncated_is_packed_again(publisher: Publisher) -> None:
    layer = await publisher.publish()
    path = await blob_of(publisher, layer)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:10])
    assert await publisher.publish() == layer
    await blob_of(publisher, layer)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"digest": "sha256:0", "size": 1, "diff_id": "x"}'])
async def test_a_torn_record_of_a_layer_is_overwritten(
    publisher: Publisher, tmp_path: Path, content: bytes
) -> None:
    layer = await publisher.publish()
    (record,) = (path for path in (tmp_path / "records").rglob("*") if path.is_file())
    record.chmod(0o644)
    record.write_bytes(content)
    assert await publisher.publish() == layer
    assert await publisher.publish() == layer
    assert publisher.events == [LayerPacked, LayerPacked, LayerReused]


async def test_concurrent_requests_for_a_layer_share_its_packing_and_keep_their_package_names(
    publisher: Publisher,
) -> None:
    one, two = await asyncio.gather(
        publisher.publish(packages=("one",)), publisher.publish(packages=("two",))
    )
    assert publisher.events == [LayerPacked]
    assert (one.packages, two.packages) == (("one",), ("two",))
    assert one.descriptor == two.descriptor


async def test_an_unreadable_store_path_is_an_error(publisher: Publisher) -> None:
    gone = StorePath("0" * 32 + "-gone")
    with pytest.raises(StorageError, match="gone"):
        await publisher.layers.publish(
            [LayerGroup((gone,), 1)], Closure([PathInfo(gone, "", 1, ())]), LocalStore(), lambda _: None
        )


async def test_a_closed_publisher_packs_nothing(publisher: Publisher) -> None:
    await publisher.layers.close()
    with pytest.raises(ShuttingDown):
        await publisher.publish()


def stop_in_the_middle(publisher: Publisher) -> tuple[threading.Event, threading.Event]:
    """Hold packing before its first check whether it is to stop."""
    begun, may_go_on = threading.Event(), threading.Event()
    pack = publisher.layers._packer.pack

    def slowly(contents: AddContents, sink: Sink, check: Callable[[], None]) -> Digest:
        begun.set()
        may_go_on.wait(10)
        check()
        return pack(contents, sink, check)

    publisher.layers._packer.pack = slowly  # type: ignore[method-assign]
    return begun, may_go_on


async def test_a_layer_that_another_process_packs_is_waited_for(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Publisher(tmp_path)
    begun, may_go_on = stop_in_the_middle(other)
    first = asyncio.ensure_future(other.publish())
    await eventually(begun.is_set)
    found_locked = asyncio.Event()
    attempt = publisher.locks.attempt

    @contextmanager
    def observed(identity: str) -> Iterator[bool]:
        with attempt(identity) as is_ours:
            if not is_ours:
                found_locked.set()
            yield is_ours

    monkeypatch.setattr(publisher.locks, "attempt", observed)
    second = asyncio.ensure_future(publisher.publish())
    await asyncio.wait_for(found_locked.wait(), 10)
    assert publisher.layers._threads == {}
    may_go_on.set()
    assert await first == await second
    assert (other.events, publisher.events) == ([LayerPacked], [LayerReused])
    assert list((tmp_path / "locks").iterdir()) == []
    await other.layers.close()


async def test_a_lock_file_left_by_a_killed_process_does_not_block(
    publisher: Publisher, tmp_path: Path
) -> None:
    await publisher.publish()
    (record,) = (path for path in (tmp_path / "records").rglob("*") if path.is_file())
    (tmp_path / "locks" / record.name).touch()
    record.unlink()
    async with asyncio.timeout(10):
        await publisher.publish()
    assert list((tmp_path / "locks").iterdir()) == []


async def test_packing_stops_when_no_build_wants_the_layer(publisher: Publisher, tmp_path: Path) -> None:
    begun, may_go_on = stop_in_the_middle(publisher)
    first = asyncio.ensure_future(publisher.publish())
    await eventually(begun.is_set)
    first.cancel()
    await settle()  # the packing is abandoned before it goes on
    may_go_on.set()
    await asyncio.wait({first})
    await eventually(lambda: not list((tmp_path / "locks").iterdir()))
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []
    assert list((tmp_path / "temporary").iterdir()) == []
    await publisher.publish()


async def test_a_build_that_joins_in_time_keeps_an_abandoned_packing_going(
    publisher: Publisher, tmp_path: Path
) -> None:
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
    # A publish that did not wait for its thread would end here; a second cancellation changes nothing.
    await settle()
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
