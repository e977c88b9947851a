"""Start-up checks: report everything that can fail before the first request at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from nixery.errors import NixUnusable, SettingsError, StorageError
from nixery.image.platform import Platform
from nixery.layering.popularity import Popularity
from nixery.locks import FileLocks, ProcessDirectory
from nixery.nix.machine import Release, is_installed, native_platform, owns_store, release
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
from nixery.server.tls import CredentialsWatch, TLSFiles
from nixery.settings import Settings, StorageSettings
from nixery.storage.files import make_storage_directory
from nixery.storage.opening import Storage, open_storage
from nixery.storage.popularity import PopularityCopies, load_popularity

Result = TypeVar("Result")

_SANDBOX = {"auto": None, "on": True, "off": False}

_log = structlog.get_logger("nixery.nix")


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything that a process acquires at the start.

    Attributes:
        address: to listen on, with the name of the host resolved; ``None`` if no server is to start.
        platforms: of a name that does not begin with a platform.
        popularity: reference counts for grouping layers.
        temporary: directory for unfinished files; removed with the process.
        roots: directory for roots of Nix's garbage collector; removed with the process.
        locks: on layers, between the processes of this machine.
        storage: opened, with its blobs and records.
        sandbox: whether builds ask for Nix's sandbox; ``None`` to leave that to Nix's configuration.
        gate: that builds have to pass first.
        admin_address: to listen on for health and metrics; ``None`` without such a listener.
        tls: certificate and key of the server; ``None`` without TLS.
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
    tls: CredentialsWatch | None = None


def prepare(settings: Settings, *, serving: bool = True) -> Resources:
    """Acquire everything that the settings name; blocks, so that a signal can interrupt it.

    Args:
        settings: of the process.
        serving: whether a server is to listen.

    Raises:
        SettingsError: with a line for every problem.
    """
    with ExitStack() as cleanup:
        resources = _prepare(settings, cleanup, serving=serving)
        cleanup.pop_all()
    if serving:
        _warn_of_unsafe_versions(settings)
        if (
            resources.tls is None
            and not settings.trusted_proxies
            and not is_loopback(resources.address or "")
        ):
            structlog.get_logger("nixery.tls").warning(
                "listening on a network without TLS: anybody on the way can read and change images and logins; set "
                "NIXERY_TLS_CERTIFICATE and NIXERY_TLS_KEY, or NIXERY_TRUSTED_PROXIES behind a proxy with TLS",
                address=resources.address,
            )
    return resources


def _prepare(settings: Settings, cleanup: ExitStack, *, serving: bool) -> Resources:
    directory = settings.storage_path
    problems: list[str] = []

    # Directories of the storage.
    usable = _try(problems, lambda: make_storage_directory(directory)) is not None
    temporary = _try(problems, lambda: ProcessDirectory(directory / "temporary")) if usable else None
    roots = _try(problems, lambda: ProcessDirectory(directory / "gc-roots")) if usable else None
    for made in filter(None, (temporary, roots)):
        cleanup.callback(made.close)
    locks = _try(problems, lambda: FileLocks(directory / "locks")) if usable else None

    # The probe of the sandbox takes a tenth of a second; the other checks run meanwhile.
    with ExitStack() as probing:
        probe = (
            _try(problems, lambda: probing.enter_context(builder_probe(settings, temporary.path)))
            if temporary and (serving or settings.nix_sandbox == "on")
            else None
        )
        opened = (
            _try(
                problems, lambda: open_storage(settings.storage_options, temporary.path, settings.environment)
            )
            if temporary
            else None
        )
        _try(problems, lambda: _check_configuration(settings))
        popularity = _try(problems, lambda: _popularity(settings, temporary))
        address = _try(problems, lambda: listening_address(settings.host, settings.port)) if serving else None
        admin_address = _try(problems, lambda: _admin_address(settings)) if serving else None
        platforms = settings.platforms or (native_platform(settings.build_environment),)
        confinement = probe.confinement() if probe else None

    # Confinement is waived if only this machine can request builds, or the operator accepts what builders can
    # reach.
    tls = _try(problems, lambda: _tls(settings, temporary)) if serving else None
    waived = address is None or settings.nix_sandbox == "off" or is_loopback(address)
    if confinement is not None and settings.nix_sandbox == "on":
        _try(problems, lambda: require_sandbox(confinement))
    if confinement is not None and not waived:
        _try(problems, lambda: require_confinement(confinement, settings.host))

    if not (temporary and roots and locks and opened and popularity is not None) or problems:
        raise SettingsError(tuple(problems))
    if serving and confinement is not None:
        if settings.substitute == "nix" or is_installed():
            log_confinement(confinement)
        if confinement.sandbox == "unknown":
            _log_unusable_nix(settings, confinement)
    return Resources(
        address=address,
        platforms=platforms,
        popularity=popularity,
        temporary=temporary,
        roots=roots,
        locks=locks,
        storage=opened,
        sandbox=_sandbox(settings, confinement, waived=waived),
        gate=BuilderGate(None if waived else confinement, lambda: _confinement(settings, temporary.path)),
        admin_address=admin_address,
        tls=tls,
    )


def _log_unusable_nix(settings: Settings, confinement: Confinement) -> None:
    """Log what is served without Nix. The server starts all the same, and Nix may work again later."""
    if settings.substitute == "nix":
        _log.error(
            "cannot build with Nix: only stored images are served until it works (run nixery check)",
            reason=confinement.reason,
        )
    elif is_installed():
        _log.error(
            "cannot build with Nix: only stored images, and those whose packages are in binary caches, are served "
            "until it works (run nixery check)",
            reason=confinement.reason,
        )
    else:
        # An operator's choice: see docs/how-to/run-without-a-store.md.
        _log.warning(
            "serving without Nix: stored images, and those whose packages are in the package index of the storage "
            "and in binary caches"
        )


def _sandbox(settings: Settings, confinement: Confinement | None, *, waived: bool) -> bool | None:
    asked = _SANDBOX[settings.nix_sandbox]
    if asked is not None or confinement is None or not owns_store():
        return asked
    # If builds ask for a sandbox, Nix has no fallback, even if the machine runs out of namespaces later.
    # After a failed probe, the gate accepts only a sandbox.
    return confinement.sandbox == "on" or (confinement.sandbox == "unknown" and not waived) or None


def tls_files(settings: Settings) -> TLSFiles | None:
    """Return the files for TLS; ``None`` without TLS."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return TLSFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def _tls(settings: Settings, temporary: ProcessDirectory | None) -> CredentialsWatch | None:
    files = tls_files(settings)
    if files is None or temporary is None:
        return None
    return CredentialsWatch(files, temporary.path, settings.public_url)


def _admin_address(settings: Settings) -> str | None:
    if settings.admin_port is None:
        return None
    return listening_address(settings.admin_host, settings.admin_port, "NIXERY_ADMIN_HOST, NIXERY_ADMIN_PORT")


def _check_configuration(settings: Settings) -> None:
    if settings.package_configuration is not None:
        # Without Nix, a server still serves stored images, and its builds report the error.
        with suppress(NixUnusable):
            settings.package_configuration.check(settings.build_environment)


def _popularity(settings: Settings, temporary: ProcessDirectory | None) -> Popularity:
    if settings.popularity_url is None:
        return Popularity()
    # Without a directory for a copy, the data is still checked.
    copies = PopularityCopies(settings.storage_path, temporary.path) if temporary else None
    return load_popularity(settings.popularity_url, copies)


def builder_probe(settings: Settings, directory: Path) -> BuilderProbe:
    """Start to determine what builders can reach.

    Args:
        settings: for running Nix.
        directory: private to the process.

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


def releases(settings: Settings) -> Sequence[Release]:
    """Return the versions of programs that read untrusted input: Nix, and git if the package source uses it."""
    programs = ("nix-store",) if settings.package_set is not None else ("nix-store", "git")
    found = (release(program, settings.build_environment) for program in programs)
    return [program for program in found if program is not None]


def _warn_of_unsafe_versions(settings: Settings) -> None:
    for found in releases(settings):
        if found.warning:
            _log.warning(
                "unsafe version",
                program=found.program,
                version=found.version,
                advisories=[advisory.name for advisory in found.advisories],
                meaning=found.warning,
            )


@contextmanager
def storage(settings: StorageSettings, environment: Mapping[str, str]) -> Iterator[Storage]:
    """Open a storage without the rest of the application.

    Args:
        settings: of the storage.
        environment: of the process, with the endpoints of buckets.

    Raises:
        StorageError: it cannot be used.
    """
    make_storage_directory(settings.storage_path)
    temporary = ProcessDirectory(settings.storage_path / "temporary")
    try:
        yield open_storage(settings.storage_options, temporary.path, environment)
    finally:
        temporary.close()


def _try(problems: list[str], step: Callable[[], Result]) -> Result | None:
    """Run a step; add what is wrong to the problems instead of raising it."""
    try:
        return step()
    except (SettingsError, StorageError) as error:
        problems.extend(str(error).splitlines())
        return None
