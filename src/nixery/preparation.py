"""Everything that can go wrong before the first request, looked for at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from nixery.errors import SettingsError, StorageError
from nixery.image.platform import Platform
from nixery.layering.popularity import Popularity
from nixery.nix.native_platform import native_platform
from nixery.nix.sandbox import require_sandbox
from nixery.process_directory import ProcessDirectory
from nixery.server.serve import listening_address
from nixery.settings import Settings
from nixery.storage.files import make_directory
from nixery.storage.opening import open_storage
from nixery.storage.popularity import load_popularity
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
    storage = settings.storage_path
    problems: list[str] = []
    popularity = _try(
        problems,
        lambda: load_popularity(settings.popularity_url) if settings.popularity_url else Popularity(),
    )
    _try(problems, lambda: make_directory(storage))
    usable = storage.is_dir()
    temporary = _try(problems, lambda: ProcessDirectory(storage / "temporary")) if usable else None
    roots = _try(problems, lambda: ProcessDirectory(storage / "gc-roots")) if usable else None
    opened = (
        _try(problems, lambda: open_storage(settings, temporary.path, settings.environment))
        if temporary
        else None
    )
    if settings.nix_sandbox == "on":
        _try(problems, require_sandbox)
    address = _try(problems, lambda: listening_address(settings.host, settings.port)) if serving else None
    if popularity is None or temporary is None or roots is None or opened is None or problems:
        for directory in filter(None, (temporary, roots)):
            directory.close()
        raise SettingsError(tuple(problems))
    platforms = settings.platforms or (native_platform(),)
    return Prepared(address, platforms, popularity, temporary, roots, opened.blobs, opened.records)


def _try(problems: list[str], step: Callable[[], Result]) -> Result | None:
    try:
        return step()
    except (SettingsError, StorageError) as error:
        problems.extend(str(error).splitlines())
        return None
