"""What a server does in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from nixery.errors import StorageError
from nixery.preparation import Prepared
from nixery.process_directory import ProcessDirectory
from nixery.settings import Settings
from nixery.storage.files import file_system_use
from nixery.storage.store import BlobStore, RecordStore
from nixery.upkeep.collector import Collector
from nixery.upkeep.keeper import Keeper, Marks
from nixery.upkeep.scrubber import Scrubber

# Seconds between two scans of all records. In a bucket, a listing costs a request for 1000 of them.
_TIDIED = 300.0
_TIDIED_IN_A_BUCKET = 3600.0


def upkeep(
    settings: Settings, prepared: Prepared, blobs: BlobStore, records: RecordStore
) -> list[Coroutine[Any, Any, None]]:
    """What a server does in the background; commands end before there is anything to do."""
    collector = Collector(blobs, records, settings.storage_grace)
    usage = partial(file_system_use, settings.storage_path)
    tidied = _TIDIED if settings.storage_backend == "filesystem" else _TIDIED_IN_A_BUCKET
    high = settings.storage_high
    marks = Marks(high, settings.storage_low or high.times(0.9)) if high is not None else None
    work = [Keeper(collector, blobs, records, usage, marks).run(tidied)]
    if settings.scrub_rate:
        work.append(Scrubber(blobs, records, settings.scrub_rate * 1024 * 1024).run())
    work.append(_keep(prepared.temporary, prepared.roots))
    return work


async def _keep(*directories: ProcessDirectory) -> None:
    """Make directories again that somebody deletes, and keep them from being taken for left behind."""
    while True:
        await asyncio.sleep(1)
        for directory in directories:
            with suppress(StorageError):  # whoever needs it is told
                await asyncio.to_thread(directory.restore)
