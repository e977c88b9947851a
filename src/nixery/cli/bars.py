"""Progress as bars on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import TaskID

from nixery.cli.activity import BYTES, Amount, bars
from nixery.errors import NixeryError
from nixery.image.request import ImageRequest
from nixery.nix.progress import Building, Fetching, LogLines, NixProgress
from nixery.pipeline.build_report import image_name
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
    Queued,
    Realised,
    Reused,
    Started,
    Stored,
)
from nixery.plain_text import escaped
from nixery.pushing.events import BlobPushed, BytesPushed, Pushed, PushEvent, PushStarted


class BarReporter:
    """Bars: one for each image that is built, and one for each target."""

    def __init__(self, console: Console | None = None, *, transient: bool = False) -> None:
        console = console or Console(stderr=True)
        self._progress = bars(console, transient=transient)
        self._bytes = bars(console, Amount(BYTES), transient=transient)
        self._builds: dict[ImageRequest, TaskID] = {}
        self._pushes: dict[str, TaskID] = {}
        # What Nix says, by image: its last fetching, its last building, and the last line of a builder's log.
        self._nix: dict[ImageRequest, tuple[str, str, str]] = {}

    def observe(self, build: Build, event: BuildEvent) -> None:  # noqa: C901 -- a case each
        """See ``Reporter``."""
        request = build.request
        self._progress.start()
        task = self._builds.get(request)
        if task is None:
            # The platform first: the end of a long name is cut off.
            name = f"{request.platform} {image_name(request)}"
            task = self._builds[request] = self._progress.add_task(name, total=None, stage="")
        match event:
            case Started():
                self._progress.update(task, stage="evaluating")
            case Evaluated(packages):
                self._progress.update(
                    task, stage=f"fetching and building {_number(len(packages), 'package')}"
                )
            case Queued(position):
                self._progress.update(task, stage=f"waiting, place {position} in the queue")
            case Fetching() | Building() | LogLines():
                self._progress.update(task, stage=self._told_by_nix(request, event))
            case Realised(paths):
                self._progress.update(task, stage=f"grouping {_number(paths, 'store path')}")
            case Grouped(layers):
                self._progress.update(task, total=layers, stage=f"packing {_number(layers, 'layer')}")
            case LayerPacked() | LayerReused():
                self._progress.advance(task)
            case LayersComplete() | NamesClashed():
                pass
            case Stored() | Reused():
                self._progress.update(
                    task, total=1, completed=1, stage="built" if isinstance(event, Stored) else "found"
                )
            case Failed():
                self._progress.update(task, stage="failed", failed=True)
                self._progress.stop_task(task)
        # All that is shown of builds is over before the first push: two displays never share the terminal.

    def pushing(self, event: PushEvent) -> None:
        """See ``Reporter``."""
        self._progress.stop()
        self._bytes.start()
        match event:
            case PushStarted(target, blobs, size):
                name = escaped(f"push {target}")
                self._pushes[target] = self._bytes.add_task(name, total=size, stage=_number(blobs, "blob"))
            case BytesPushed(target, size):
                self._bytes.advance(self._pushes[target], size)
            case Pushed(target):
                # What was there already, or was mounted, is not sent.
                self._finish(self._pushes[target])
            case BlobPushed():
                pass

    def failed(self, error: NixeryError) -> None:  # noqa: ARG002 -- the command prints it
        """See ``Reporter``."""
        self.close()  # before the message: nothing moves on a terminal once that is there

    def finished(self, result: dict[str, Any]) -> None:
        """See ``Reporter``."""
        self.close()
        typer.echo(f"built from revision {escaped(result['revision'])} of the package set", err=True)
        typer.echo(result["digest"])

    def close(self) -> None:
        """See ``Reporter``."""
        self._progress.stop()
        self._bytes.stop()

    def _finish(self, push: TaskID) -> None:
        total = self._bytes.tasks[self._bytes.task_ids.index(push)].total
        self._bytes.update(push, completed=total, stage="pushed")

    def _told_by_nix(self, request: ImageRequest, event: NixProgress) -> str:
        fetching, building, line = self._nix.get(request, ("", "", ""))
        match event:
            case Fetching(done, expected):
                fetching = f"fetching {decimal(done)} of {decimal(expected)}" if done < expected else ""
            case Building(derivations, ended):
                building, line = _building(derivations, ended), ""
            case LogLines(lines):
                line = escaped(lines[-1][1].strip()) if lines else line
        self._nix[request] = fetching, building, line
        shown = [part for part in (fetching, building) if part]
        return ", ".join(shown) + (f": {line}" if line and building else "")


def _building(derivations: Sequence[str], ended: int) -> str:
    if not derivations:
        return f"{ended} built" if ended else ""
    name = derivations[-1].partition("-")[2].removesuffix(".drv")
    others = f" and {_number(len(derivations) - 1, 'other')}" if len(derivations) > 1 else ""
    return f"building {name}{others}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
