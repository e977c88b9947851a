"""Everything that can go wrong before the first request, looked for at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from nixery.errors import SettingsError, StorageError
from nixery.image.platform import Platform
from nixery.layering.popularity import Popularity
from nixery.locks import FileLocks, ProcessDirectory
from nixery.nix.advisories import Release, release
from nixery.nix.machine import native_platform, owns_store
from nixery.nix.options import NixOptions
from nixery.nix.sandbox import (
    BuilderGate,
    BuilderProbe,
    Confinement,
    is_loopback,
    log_confinement,
    require_confinement,
    require_sandbox,
)
from nixery.server.serve import listening_address
from nixery.settings import Settings, StorageSettings
from nixery.storage.files import make_storage_directory
from nixery.storage.opening import Storage, open_storage
from nixery.storage.popularity import PopularityCopies, load_popularity

Result = TypeVar("Result")

_SANDBOX = {"auto": None, "on": True, "off": False}

_log = structlog.get_logger("nixery.nix")


@dataclass(frozen=True, slots=True)
class Resources:
    """The result of all preparations that can fail before the first request.

    Attributes:
        address: to bind; with the host's name resolved. ``None`` if no server is to start.
        admin_address: to bind for health and metrics; ``None`` without a listener of their own.
        platforms: for a name that does not begin with a platform.
        sandbox: whether builds ask for Nix's sandbox; ``None`` to leave that to Nix's configuration.
        gate: that builds have to pass first.
    """

    address: str | None
    platforms: tuple[Platform, ...]
    popularity: Popularity
    temporary: ProcessDirectory
    roots: ProcessDirectory
    locks: FileLocks
    storage: Storage
    sandbox: bool | None
    gate: BuilderGate
    admin_address: str | None = None


def prepare(settings: Settings, *, serving: bool = True) -> Resources:
    """Look for all that the settings name. Blocks, and so can be interrupted.

    Args:
        settings: with what to look for.
        serving: whether there is an address to listen on.

    Raises:
        SettingsError: with every problem there is.
    """
    with ExitStack() as undone:
        resources = _prepare(settings, undone, serving=serving)
        undone.pop_all()
    if serving:
        _warn_of_known_flaws(settings)
    return resources


def _prepare(settings: Settings, undone: ExitStack, *, serving: bool) -> Resources:
    directory = settings.storage_path
    problems: list[str] = []
    usable = _try(problems, lambda: make_storage_directory(directory)) is not None
    temporary = _try(problems, lambda: ProcessDirectory(directory / "temporary")) if usable else None
    roots = _try(problems, lambda: ProcessDirectory(directory / "gc-roots")) if usable else None
    for made in filter(None, (temporary, roots)):
        undone.callback(made.close)
    locks = _try(problems, lambda: FileLocks(directory / "locks")) if usable else None
    with ExitStack() as probing:
        # The probe takes a tenth of a second; the other preparations run meanwhile.
        probe = (
            _try(problems, lambda: probing.enter_context(builder_probe(settings, temporary.path)))
            if temporary and (serving or settings.nix_sandbox == "on")
            else None
        )
        opened = (
            _try(problems, lambda: open_storage(settings, temporary.path, settings.environment))
            if temporary
            else None
        )
        popularity = _try(problems, lambda: _popularity(settings, temporary))
        address = _try(problems, lambda: listening_address(settings.host, settings.port)) if serving else None
        admin_address = _try(problems, lambda: _admin_address(settings)) if serving else None
        platforms = settings.platforms or (native_platform(settings.build_environment),)
        confinement = probe.confinement() if probe else None
    # Only this machine can request builds, or the operator has accepted what builders can reach.
    waived = address is None or settings.nix_sandbox == "off" or is_loopback(address)
    if confinement is not None:
        if settings.nix_sandbox == "on":
            _try(problems, lambda: require_sandbox(confinement))
        if not waived:
            _try(problems, lambda: require_confinement(confinement, settings.host))
    if (
        popularity is None
        or temporary is None
        or roots is None
        or locks is None
        or opened is None
        or problems
    ):
        raise SettingsError(tuple(problems))
    if serving and confinement is not None:
        log_confinement(confinement)
    gate = BuilderGate(None if waived else confinement, lambda: _confinement(settings, temporary.path))
    sandbox = _SANDBOX[settings.nix_sandbox]
    if sandbox is None and confinement is not None and owns_store():
        # If we ask for a sandbox, Nix has no fallback, even if the machine runs out of namespaces later.
        # After a failed probe, the gate accepts only a sandbox.
        sandbox = confinement.sandbox == "on" or (confinement.sandbox == "unknown" and not waived) or None
    return Resources(
        address=address,
        platforms=platforms,
        popularity=popularity,
        temporary=temporary,
        roots=roots,
        locks=locks,
        storage=opened,
        sandbox=sandbox,
        gate=gate,
        admin_address=admin_address,
    )


def _admin_address(settings: Settings) -> str | None:
    if settings.admin_port is None:
        return None
    return listening_address(settings.admin_host, settings.admin_port, "NIXERY_ADMIN_HOST, NIXERY_ADMIN_PORT")


def builder_probe(settings: Settings, directory: Path) -> BuilderProbe:
    """Start to determine what builders could reach.

    Args:
        settings: for running Nix.
        directory: private to the server.

    Raises:
        StorageError: the directory cannot be written to.
    """
    options = NixOptions(settings.nix_arguments, _SANDBOX[settings.nix_sandbox]).for_building
    try:
        return BuilderProbe(options, settings.build_environment, directory)
    except OSError as error:
        raise StorageError(f"cannot make a file in {directory}: {error.strerror}") from error


def _confinement(settings: Settings, directory: Path) -> Confinement:
    with builder_probe(settings, directory) as probe:
        return probe.confinement()


def _warn_of_known_flaws(settings: Settings) -> None:
    for found in releases(settings):
        if found.warning:
            names = [advisory.name for advisory in found.advisories]
            _log.warning(
                "unsafe version",
                program=found.program,
                version=found.version,
                advisories=names,
                meaning=found.warning,
            )


def releases(settings: Settings) -> Sequence[Release]:
    """Get the versions of programs that read untrusted input: Nix, and git if the package source uses it."""
    programs = ("nix-store",) if settings.package_set is not None else ("nix-store", "git")
    found = (release(program, settings.build_environment) for program in programs)
    return [program for program in found if program is not None]


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
