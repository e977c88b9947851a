from __future__ import annotations

from pathlib import Path

import pytest

from nixery.oci.digest import Digest
from nixery.storage.filesystem_records import FilesystemRecordStore
from nixery.storage.uses import USES, Leases

GRACE = 3600.0
DOCUMENTS = [Digest.of(b"manifest"), Digest.of(b"docker's manifest")]


class World:
    """A storage that may take no claims, and a clock."""

    def __init__(self, directory: Path) -> None:
        self.records = FilesystemRecordStore(directory, directory)
        self.now = 0.0
        self.uses = Leases(self.records, GRACE, lambda: self.now)
        self._place, self._elsewhere = directory / "records" / USES, directory / "elsewhere"
        self._place.mkdir()

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


async def test_a_claim_that_could_not_be_written_is_made_again(world: World) -> None:
    world.fail()
    await world.uses.claim(DOCUMENTS)
    assert not world.uses.note(DOCUMENTS)
    world.recover()
    await world.uses.claim(DOCUMENTS)
    assert world.uses.note(DOCUMENTS)
    assert await world.written() == len(DOCUMENTS)


async def test_a_renewal_that_could_not_be_written_is_due_still(world: World) -> None:
    await world.uses.claim(DOCUMENTS)
    world.fail()
    world.now = GRACE * 0.4
    assert world.uses.note(DOCUMENTS)
    await world.uses.close()
    # It holds as long as what was written before.
    assert world.uses.note(DOCUMENTS)
    await world.uses.close()
    world.now = GRACE * 0.6
    assert not world.uses.note(DOCUMENTS)


async def test_the_next_use_renews_what_could_not_be_written(world: World) -> None:
    await world.uses.claim(DOCUMENTS)
    world.fail()
    world.now = GRACE * 0.3
    world.uses.note(DOCUMENTS)
    await world.uses.close()
    world.recover()
    for document in DOCUMENTS:
        await world.records.delete(USES, document.hex)
    world.now = GRACE * 0.4
    assert world.uses.note(DOCUMENTS)
    await world.uses.close()
    assert await world.written() == len(DOCUMENTS)
    world.now = GRACE * 0.8
    assert world.uses.note(DOCUMENTS)
    await world.uses.close()
