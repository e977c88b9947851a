"""Everything that can go wrong before the first request, looked for at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from nixery.errors import SettingsError, StorageError
from nixery.file_locks import FileLocks
from nixery.image.platform import Platform
from nixery.layering.popularity import Popularity
from nixery.nix.native_platform import native_platform
from nixery.nix.sandbox import require_sandbox
from nixery.process_directory import ProcessDirectory
from nixery.server.serve import listening_address
from nixery.settings import Settings
from nixery.settings.storage import StorageSettings
from nixery.storage.files import make_storage_directory
from nixery.storage.opening import Storage, open_storage
from nixery.storage.popularity import PopularityCopies, load_popularity
from nixery.storage.store import BlobStore, RecordStore

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that can go wrong before the first request, done.

    Attributes:
        address: to bind; the host's name is resolved. ``None`` if nothing is to be served.
        platforms: what a name stands for that does not begin with a platform.
    """

    address: str | None
    platforms: tuple[Platform, ...]
    popularity: Popularity
    temporary: ProcessDirectory
    roots: ProcessDirectory
    locks: FileLocks
    blobs: BlobStore
    records: RecordStore


def prepare(settings: Settings, *, serving: bool = True) -> Prepared:
    """Look for all that the settings name. Blocks, and so can be interrupted.

    Args:
        settings: with what to look for.
        serving: whether there is an address to listen on.

    Raises:
        SettingsError: with every problem there is.
    """
    directory = settings.storage_path
    problems: list[str] = []
    usable = _try(problems, lambda: make_storage_directory(directory)) is not None
    temporary = _try(problems, lambda: ProcessDirectory(directory / "temporary")) if usable else None
    roots = _try(problems, lambda: ProcessDirectory(directory / "gc-roots")) if usable else None
    locks = _try(problems, lambda: FileLocks(directory / "locks")) if usable else None
    opened = (
        _try(problems, lambda: open_storage(settings, temporary.path, settings.environment))
        if temporary
        else None
    )
    popularity = _try(problems, lambda: _popularity(settings, temporary))
    if settings.nix_sandbox == "on":
        _try(problems, require_sandbox)
    address = _try(problems, lambda: listening_address(settings.host, settings.port)) if serving else None
    if (
        popularity is None
        or temporary is None
        or roots is None
        or locks is None
        or opened is None
        or problems
    ):
        for made in filter(None, (temporary, roots)):
            made.close()
        raise SettingsError(tuple(problems))
    platforms = settings.platforms or (native_platform(),)
    return Prepared(address, platforms, popularity, temporary, roots, locks, opened.blobs, opened.records)


def _popularity(settings: Settings, temporary: ProcessDirectory | None) -> Popularity:
    if settings.popularity_url is None:
        return Popularity()
    # Without a place for a copy, it is still told what is wrong with the data.
    copies = PopularityCopies(settings.storage_path, temporary.path) if temporary else None
    return load_popularity(settings.popularity_url, copies)


@contextmanager
def storage(settings: StorageSettings, environment: Mapping[str, str]) -> Iterator[Storage]:
    """Open a store alone.

    Args:
        settings: of the store.
        environment: of the process, with the endpoints of buckets.

    Raises:
        StorageError: it cannot be used.
    """
    make_storage_directory(settings.storage_path)
    temporary = ProcessDirectory(settings.storage_path / "temporary")
    try:
        yield open_storage(settings, temporary.path, environment)
    finally:
        temporary.close()


def _try(problems: list[str], step: Callable[[], Result]) -> Result | None:
    try:
        return step()
    except (SettingsError, StorageError) as error:
        problems.extend(str(error).splitlines())
        return None
