"""The version of what is stored: the object ``version``, a decimal number and a newline.

1. Storages without that object. Tags have records of the kind ``tags``.
2. Tags have records of the kind ``tags-in-order`` (``nixery.storage.catalogue``).

A server migrates a storage in place while it serves; commands work on both versions. A storage of a later
version is refused.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing

import structlog

from nixery.errors import StorageError
from nixery.storage.catalogue import Catalogue
from nixery.storage.driver import Driver

VERSION = 2
NAME = "version"
CONTENT = b"%d\n" % VERSION

# Bytes of the object, at most, also for the formats of later versions.
LARGEST = 4096

# Seconds until a migration that failed is resumed.
_RETRY_AFTER = 60.0

_NUMBER = re.compile(rb"[0-9]{1,9}\n?", re.ASCII)

_log = structlog.get_logger("nixery.storage")


def require_version(content: bytes | None, storage: str) -> None:
    """Check that this code can work on a storage.

    Args:
        content: of the object ``version``; ``None`` if there is none.
        storage: its path or URL, for the message.

    Raises:
        StorageError: it cannot.
    """
    if content is None:
        return
    if _NUMBER.fullmatch(content) is None:
        raise StorageError(
            f"cannot use the storage {storage}: its version is {content[:20]!r} instead of a number "
            f"(restore the object '{NAME}' from a backup, or use another storage)"
        )
    if int(content) > VERSION:
        raise StorageError(
            f"cannot use the storage {storage}: a later nixery wrote it in version {int(content)}, and this one supports "
            f"versions up to {VERSION} (upgrade this nixery, or use another storage)"
        )


async def check_version(driver: Driver) -> None:
    """Check that this code can work on a storage, and record the current version in a new one.

    Raises:
        StorageError: it cannot, or the storage fails.
    """
    found = await driver.read(NAME, LARGEST)
    require_version(found, driver.name)
    if found is None and not any([await has_objects(driver, name) for name in ("blobs", "records")]):
        await driver.write(NAME, CONTENT)


async def has_objects(driver: Driver, directory: str) -> bool:
    """Whether a storage has an object below a directory.

    Raises:
        StorageError: it cannot be listed.
    """
    async with aclosing(driver.list(directory)) as entries:
        return await anext(entries, None) is not None


async def migrate(driver: Driver, catalogue: Catalogue) -> None:
    """Migrate a storage to the current version, and record that.

    Servers of earlier versions may still write to a storage, so a server looks for their records at every
    start.

    Raises:
        StorageError: the storage fails, or has a later version by now.
    """
    moved = await catalogue.migrate()
    found = await driver.read(NAME, LARGEST)
    require_version(found, driver.name)
    if found != CONTENT:
        await driver.write(NAME, CONTENT)
    if moved or found != CONTENT:
        _log.info("migrated the storage", version=VERSION, tags=moved)


async def migrate_with_retries(driver: Driver, catalogue: Catalogue) -> None:
    """Migrate a storage in the background of a server, until that succeeds."""
    while True:
        try:
            await migrate(driver, catalogue)
        except StorageError as error:
            _log.warning("cannot migrate the storage, trying again later", reason=str(error))
        else:
            return
        await asyncio.sleep(_RETRY_AFTER)
