"""Progress as bars on a terminal."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from nixery.errors import NixeryError
from nixery.image.request import ImageRequest
from nixery.nix.progress import Building, Fetching
from nixery.pipeline.events import (
    Build,
    BuildEvent,
    Evaluated,
    Failed,
    Grouped,
    LayerPacked,
    LayerReused,
    LayersComplete,
    NamesClashed,
    Realised,
    Reused,
    Started,
    Stored,
)
from nixery.pushing.events import BlobPushed, BytesPushed, Pushed, PushEvent, PushStarted


class BarReporter:
    """Bars: one for each image that is built, and one for each target."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[stage]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._bytes = Progress(
            TextColumn("  push {task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._builds: dict[ImageRequest, TaskID] = {}
        self._pushes: dict[str, TaskID] = {}

    def observe(self, build: Build, event: BuildEvent) -> None:  # noqa: C901 -- a case each
        """See ``Reporter``."""
        request = build.request
        self._progress.start()
        task = self._builds.get(request)
        if task is None:
            name = f"{'/'.join(request.requested) or '(base)'} {request.platform}"
            task = self._builds[request] = self._progress.add_task(name, total=None, stage="")
        match event:
            case Started():
                self._progress.update(task, stage="evaluating")
            case Evaluated(packages):
                self._progress.update(task, stage=f"fetching and building {len(packages)} packages")
            case Fetching(done, expected) if expected:
                self._progress.update(task, stage=f"fetching {done * 100 // expected} %")
            case Building(derivations) if derivations:
                name = derivations[-1].partition("-")[2].removesuffix(".drv")
                others = f" and {len(derivations) - 1} others" if len(derivations) > 1 else ""
                self._progress.update(task, stage=f"building {name}{others}")
            case Realised(paths):
                self._progress.update(task, stage=f"grouping {paths} store paths")
            case Grouped(layers):
                self._progress.update(task, total=layers, stage=f"packing {layers} layers")
            case LayerPacked() | LayerReused():
                self._progress.advance(task)
            case LayersComplete() | NamesClashed():
                pass
            case Stored() | Reused():
                self._progress.update(
                    task, total=1, completed=1, stage="built" if isinstance(event, Stored) else "found"
                )
            case Failed():
                self._progress.update(task, stage="failed")
        # All that is shown of builds is over before the first push: two displays never share the terminal.

    def pushing(self, event: PushEvent) -> None:
        """See ``Reporter``."""
        self._progress.stop()
        self._bytes.start()
        match event:
            case PushStarted(target, _, size):
                self._pushes[target] = self._bytes.add_task(target, total=size)
            case BytesPushed(target, size):
                self._bytes.advance(self._pushes[target], size)
            case BlobPushed() | Pushed():
                pass

    def failed(self, error: NixeryError) -> None:  # noqa: ARG002 -- the command prints it
        """See ``Reporter``."""
        self._stop()

    def finished(self, result: dict[str, Any]) -> None:
        """See ``Reporter``."""
        self._stop()
        typer.echo(result["digest"])

    def _stop(self) -> None:
        self._progress.stop()
        self._bytes.stop()
