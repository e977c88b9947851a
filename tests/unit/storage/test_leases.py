from __future__ import annotations

from pathlib import Path

import pytest

from nixery.oci.digest import Digest
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.leases import Leases
from nixery.storage.records import USES, RecordStore

GRACE = 3600.0
DOCUMENTS = [Digest.of(b"manifest"), Digest.of(b"docker's manifest")]


class World:
    """A storage that can refuse leases, and a clock."""

    def __init__(self, directory: Path) -> None:
        self.records = RecordStore(FilesystemDriver(directory, directory))
        self.now = 0.0
        self.leases = Leases(self.records, GRACE, lambda: self.now)
        self._place, self._elsewhere = directory / "records" / USES, directory / "elsewhere"
        self._place.mkdir(parents=True)

    def fail(self) -> None:
        self._place.rename(self._elsewhere)
        self._place.touch()

    def recover(self) -> None:
        self._place.unlink()
        self._elsewhere.rename(self._place)

    async def written(self) -> int:
        return len([record async for record in self.records.scan(USES)])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_lease_that_could_not_be_written_has_to_be_acquired_again(world: World) -> None:
    world.fail()
    await world.leases.acquire(DOCUMENTS)
    assert not world.leases.renew(DOCUMENTS)
    world.recover()
    await world.leases.acquire(DOCUMENTS)
    assert world.leases.renew(DOCUMENTS)
    assert await world.written() == len(DOCUMENTS)


async def test_a_lease_whose_renewal_failed_lasts_until_its_old_expiry(world: World) -> None:
    await world.leases.acquire(DOCUMENTS)
    world.fail()
    world.now = GRACE * 0.4
    assert world.leases.renew(DOCUMENTS)
    await world.leases.close()
    assert world.leases.renew(DOCUMENTS)
    await world.leases.close()
    world.now = GRACE * 0.6
    assert not world.leases.renew(DOCUMENTS)


async def test_the_next_use_repeats_a_failed_renewal(world: World) -> None:
    await world.leases.acquire(DOCUMENTS)
    world.fail()
    world.now = GRACE * 0.3
    world.leases.renew(DOCUMENTS)
    await world.leases.close()
    world.recover()
    for document in DOCUMENTS:
        await world.records.delete(USES, document.hex)
    world.now = GRACE * 0.4
    assert world.leases.renew(DOCUMENTS)
    await world.leases.close()
    assert await world.written() == len(DOCUMENTS)
    world.now = GRACE * 0.8
    assert world.leases.renew(DOCUMENTS)
    await world.leases.close()
