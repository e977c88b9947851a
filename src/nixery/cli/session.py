"""The environment in which commands run: settings with defaults for a user, components without a server, and the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import typer

from nixery.app import Components, assemble
from nixery.builds.creation_date import CreationDate
from nixery.builds.events import BuildObserver
from nixery.cli.completion import user_storage
from nixery.cli.logs import configure_logs, print_line
from nixery.errors import NixeryError, SettingsError
from nixery.nix.packages import NixExpression
from nixery.nix.processes import guarded, hide_from_builders
from nixery.plain_text import escaped
from nixery.settings import Settings, StorageSettings
from nixery.startup import Resources, prepare, storage
from nixery.storage.opening import Storage

Result = TypeVar("Result")

# Beginnings of flake references and repository URLs on this machine.
_LOCAL = ("/", ".", "path:", "file:", "git+file:")

_FAILED = 1
_TERMINATED = 128 + signal.SIGTERM


@asynccontextmanager
async def open_session(
    expression: NixExpression | None = None,
    observer: BuildObserver | None = None,
    without: Collection[str] = (),
    created: CreationDate | None = None,
) -> AsyncIterator[tuple[Components, Resources]]:
    """Wire all components for the process environment, with defaults for a user.

    Args:
        expression: added to the package set.
        observer: of builds; ``None`` for the log.
        without: variables that the command ignores, even if their values are invalid.
        created: the date of images, instead of the environment's.

    Raises:
        SettingsError: with every problem of the settings.
    """
    settings = _with_current_source(user_settings(without))
    if created is not None:
        settings = settings.model_copy(update={"created": created})
    resources = prepare(settings, serving=False)
    async with assemble(settings, resources, expression, observer) as components:
        yield components, resources


@contextmanager
def open_storage_session() -> Iterator[tuple[StorageSettings, Storage]]:
    """Open the storage of the process environment, without a package source and without Nix.

    Raises:
        SettingsError: there is no storage, or it is unusable.
    """
    environment = {**_defaults(), **os.environ}
    settings = StorageSettings.from_environment(environment)
    if settings.storage_backend == "memory":
        raise SettingsError(
            ("NIXERY_STORAGE_BACKEND=memory is the memory of a server, which commands cannot reach",)
        )
    if settings.storage_backend == "filesystem" and not settings.storage_path.exists():
        # Opening would create an empty one: the command probably runs without the server's environment.
        raise SettingsError(
            (f"there is no storage at {settings.storage_path}: set STORAGE_PATH to the server's value",)
        )
    with storage(settings, environment) as opened:
        yield settings, opened


def user_settings(without: Collection[str] = ()) -> Settings:
    """Read the environment; only a package source has no default.

    Raises:
        SettingsError: with every problem of the settings.
    """
    environment = {name: value for name, value in os.environ.items() if name not in without}
    return Settings.from_environment({**_defaults(), **environment})


def run(
    command: Callable[[], Awaitable[Result]],
    *,
    quiet: bool,
    failed: Callable[[NixeryError], None] = lambda _: None,
) -> Result:
    """Run a command on an event loop.

    Args:
        command: the coroutine function to run.
        quiet: log warnings and errors only.
        failed: called with the error before its message is printed.

    Raises:
        typer.Exit: with status 1 after an error, whose message is on stderr, and with 143 after SIGTERM.
    """
    configure_logs(logging.WARNING if quiet else logging.INFO)
    try:
        hide_from_builders()
        with guarded(os.environ):
            return asyncio.run(_cancellable(command))
    except asyncio.CancelledError:
        raise typer.Exit(_TERMINATED) from None
    except NixeryError as error:
        failed(error)
        for line in str(error).splitlines():
            print_line(line)
        for line in getattr(error, "log_tail", ()):
            # A builder wrote it: marked, so that it is not taken for a line of this program.
            typer.echo(f"  | {escaped(line)}", err=True)
        raise typer.Exit(_FAILED) from None


async def _cancellable(command: Callable[[], Awaitable[Result]]) -> Result:
    task = asyncio.current_task()
    if task is None:
        raise AssertionError("a coroutine runs in a task")
    # As Ctrl-C does. Nix runs in a separate session, and would otherwise outlive this process.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await command()


def _with_current_source(settings: Settings) -> Settings:
    """Disable the pins of a source on this machine, so that each command reads its current state."""
    places = (settings.flake or "", settings.repository or "")
    is_local = settings.package_set is not None or any(place.startswith(_LOCAL) for place in places)
    if not is_local or "NIXERY_PIN_TTL" in os.environ:
        return settings
    return settings.model_copy(update={"pin_ttl": 0})


def missing_for_a_server() -> list[str]:
    """Return the variables that have a default for commands, but none for a server, and are not set."""
    missing = [name for name in _defaults() if not os.environ.get(name)]
    if os.environ.get("NIXERY_STORAGE_BACKEND", "filesystem") != "filesystem":
        missing = [name for name in missing if name != "STORAGE_PATH"]
    return missing


def _defaults() -> dict[str, str]:
    return {"PORT": "8080", "NIXERY_STORAGE_BACKEND": "filesystem", "STORAGE_PATH": str(user_storage())}
