"""What a server does in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from nixery.errors import StorageError
from nixery.preparation import Prepared
from nixery.process_directory import ProcessDirectory
from nixery.settings import Settings
from nixery.storage.files import used_and_total
from nixery.upkeep.collector import Collector
from nixery.upkeep.keeper import FileSystemUsage, Keeper, Marks
from nixery.upkeep.scrubber import Scrubber


def upkeep(settings: Settings, prepared: Prepared) -> list[Coroutine[Any, Any, None]]:
    """What a server does in the background; commands end before there is anything to do."""
    blobs, records = prepared.blobs, prepared.records
    work = []
    if settings.storage_high is not None:
        low = settings.storage_low or settings.storage_high.times(0.9)
        marks = Marks(
            high=settings.storage_high.value,
            low=low.value,
            in_percent=settings.storage_high.percent is not None,
        )
        collector = Collector(blobs, records, settings.storage_grace)

        def usage() -> FileSystemUsage:
            return FileSystemUsage(*used_and_total(settings.storage_path))

        work.append(Keeper(collector, blobs, usage, marks).run())
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
