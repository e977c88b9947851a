"""How commands show what they do: bars on a terminal, lines elsewhere, JSON for machines. All but the result goes to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

import structlog
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
from nixery.pipeline.events import (
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
from nixery.pipeline.logging_observer import LoggingObserver
from nixery.pushing.push import BlobPushed, BytesPushed, Pushed, PushEvent, PushStarted

_log = structlog.get_logger("nixery.push")


class Reporter(Protocol):
    """Shows a command's progress; a ``BuildObserver``, too."""

    def observe(self, request: ImageRequest, event: BuildEvent) -> None:
        """Take note of an event in a build."""
        ...

    def pushing(self, event: PushEvent) -> None:
        """Take note of an event in a push."""
        ...

    def failed(self, error: NixeryError) -> None:
        """Take note of the end; the message itself is told by the command."""
        ...

    def finished(self, result: dict[str, Any]) -> None:
        """Print the result, which has a ``digest``."""
        ...


def reporter(*, as_json: bool, quiet: bool) -> Reporter:
    """Choose how progress is shown, by what was asked for and by where stderr goes."""
    if as_json:
        return JsonReporter()
    return BarReporter() if sys.stderr.isatty() and not quiet else LineReporter()


class LineReporter:
    """Log lines; the level of the logs says how many."""

    def __init__(self) -> None:
        self._builds = LoggingObserver()

    def observe(self, request: ImageRequest, event: BuildEvent) -> None:
        """See ``Reporter``."""
        self._builds.observe(request, event)

    def pushing(self, event: PushEvent) -> None:
        """See ``Reporter``."""
        match event:
            case PushStarted(target, blobs, size):
                _log.info("pushing", target=target, blobs=blobs, bytes=size)
            case Pushed(target, digest):
                _log.info("pushed", target=target, digest=digest)
            case BlobPushed() | BytesPushed():
                pass

    def failed(self, error: NixeryError) -> None:
        """See ``Reporter``."""

    def finished(self, result: dict[str, Any]) -> None:
        """See ``Reporter``."""
        typer.echo(result["digest"])


class JsonReporter:
    """One JSON object a line on stdout, each with ``event``; the last one is ``result`` or ``error``."""

    def observe(self, request: ImageRequest, event: BuildEvent) -> None:
        """See ``Reporter``."""
        image = {"image": "/".join(request.requested), "platform": str(request.platform)}
        self._print(_event_name(event), {**image, **_fields(event)})

    def pushing(self, event: PushEvent) -> None:
        """See ``Reporter``."""
        match event:
            case PushStarted(target, blobs, size):
                self._print("push-started", {"target": target, "blobs": blobs, "size": size})
            case BlobPushed(target, digest, size, how):
                self._print("blob-pushed", {"target": target, "digest": digest, "size": size, "how": how})
            case Pushed(target, digest):
                self._print("pushed", {"target": target, "digest": digest})
            case BytesPushed():
                pass  # too many for lines

    def failed(self, error: NixeryError) -> None:
        """See ``Reporter``."""
        self._print("error", {"message": str(error)})

    def finished(self, result: dict[str, Any]) -> None:
        """See ``Reporter``."""
        self._print("result", result)

    def _print(self, event: str, fields: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()


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

    def observe(self, request: ImageRequest, event: BuildEvent) -> None:
        """See ``Reporter``."""
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


def _event_name(event: BuildEvent) -> str:
    name = type(event).__name__
    return "".join(f"-{c.lower()}" if c.isupper() and at else c.lower() for at, c in enumerate(name))


def _fields(event: BuildEvent) -> dict[str, Any]:  # noqa: PLR0911 -- a case each
    match event:
        case Evaluated(packages):
            return {"packages": len(packages)}
        case Realised(paths, size):
            return {"paths": paths, "size": size}
        case Grouped(layers):
            return {"layers": layers}
        case LayerPacked(layer) | LayerReused(layer):
            return {"digest": str(layer.descriptor.digest), "size": layer.descriptor.size}
        case Stored(manifest) | Reused(manifest):
            return {"manifest": str(manifest)}
        case NamesClashed(clashes):
            return {"names": [clash.name for clash in clashes]}
        case Failed(error):
            return {"message": str(error)}
        case _:
            return {}
