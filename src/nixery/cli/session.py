"""What the commands that make images without a server have in common."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import typer

from nixery.app import Components, wire
from nixery.builds.events import BuildObserver
from nixery.cli.completion import user_storage
from nixery.cli.logs import configure_logs, print_line
from nixery.errors import NixeryError, SettingsError
from nixery.nix.guard import guarded, hide_from_builders
from nixery.nix.packages import NixExpression
from nixery.settings import Settings, StorageSettings, storage_settings
from nixery.startup import Resources, prepare, storage
from nixery.storage.opening import Storage

Result = TypeVar("Result")

_FAILED = 1
_TERMINATED = 128 + signal.SIGTERM


@asynccontextmanager
async def open_session(
    expression: NixExpression | None = None,
    observer: BuildObserver | None = None,
    without: Collection[str] = (),
) -> AsyncIterator[tuple[Components, Resources]]:
    """Wire everything for the process environment, with places of the user's own where nothing is set.

    Args:
        expression: added to the package set.
        observer: of builds; ``None`` for the log.
        without: variables that are of no use to the command, and may be wrong.
    """
    settings = _of_what_is_there(user_settings(without))
    resources = prepare(settings, serving=False)
    async with wire(settings, resources, expression, observer) as components:
        yield components, resources


@contextmanager
def open_storage_session() -> Iterator[tuple[StorageSettings, Storage]]:
    """Open the store of the process environment for whoever looks after it: without a package source, and without Nix.

    Raises:
        SettingsError: there is none, or it cannot be used.
    """
    environment = {**_defaults(), **os.environ}
    settings = storage_settings(environment)
    if settings.storage_backend == "memory":
        raise SettingsError(
            ("NIXERY_STORAGE_BACKEND=memory is in a server's memory, out of reach from here",)
        )
    if settings.storage_backend == "filesystem" and not settings.storage_path.exists():
        # Rather than make one and find nothing in it: the server's environment was hardly meant to be left out.
        raise SettingsError(
            (f"there is no storage at {settings.storage_path}: set STORAGE_PATH as the server has it",)
        )
    with storage(settings, environment) as opened:
        yield settings, opened


def user_settings(without: Collection[str] = ()) -> Settings:
    """Read the environment; nothing but a source has to be set.

    Raises:
        SettingsError: with every problem there is.
    """
    environment = {name: value for name, value in os.environ.items() if name not in without}
    return Settings.from_environment({**_defaults(), **environment})


def run(
    command: Callable[[], Awaitable[Result]],
    *,
    quiet: bool,
    failed: Callable[[NixeryError], None] = lambda _: None,
) -> Result:
    """Run a command to its end; what goes wrong is told on stderr, and ends with status 1."""
    configure_logs(logging.WARNING if quiet else logging.INFO)
    try:
        hide_from_builders()
        with guarded(os.environ):
            return asyncio.run(_awaited(command))
    except asyncio.CancelledError:
        raise typer.Exit(_TERMINATED) from None
    except NixeryError as error:
        failed(error)
        for line in (*str(error).splitlines(), *getattr(error, "log_tail", ())):
            print_line(line)
        raise typer.Exit(_FAILED) from None


async def _awaited(command: Callable[[], Awaitable[Result]]) -> Result:
    task = asyncio.current_task()
    if task is None:
        raise AssertionError("this is a coroutine of a task")
    # As Ctrl-C does. Nix runs in a session of its own, and would go on without us.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await command()


def _of_what_is_there(settings: Settings) -> Settings:
    """Have each command read a directory anew: the user has probably edited it since the last one."""
    flake = settings.flake or ""
    is_directory = settings.package_set is not None or flake.startswith(("/", ".", "path:"))
    if not is_directory or "NIXERY_PIN_TTL" in os.environ:
        return settings
    return settings.model_copy(update={"pin_ttl": 0})


def missing_for_a_server() -> list[str]:
    """Name what the environment does not have, which is no problem where there is a default, and would be one for a server."""
    missing = [name for name in _defaults() if not os.environ.get(name)]
    if os.environ.get("NIXERY_STORAGE_BACKEND", "filesystem") != "filesystem":
        missing = [name for name in missing if name != "STORAGE_PATH"]
    return missing


def _defaults() -> dict[str, str]:
    return {"PORT": "8080", "NIXERY_STORAGE_BACKEND": "filesystem", "STORAGE_PATH": str(user_storage())}
