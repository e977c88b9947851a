"""How commands show progress: bars on a terminal, log lines elsewhere, JSON for programs.

Only results go to stdout. An ``Activity`` shows one step after the other; a ``Reporter`` shows builds and
pushes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
import typer
from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from nixery.builds.events import (
    Build,
    BuildEvent,
    Evaluated,
    Failed,
    Grouped,
    LayerPacked,
    LayerReused,
    LayersComplete,
    LoggingObserver,
    NamesClashed,
    Queued,
    Realised,
    Reused,
    Started,
    Stored,
    implied_packages,
)
from nixery.cli.logs import print_line
from nixery.errors import NixeryError, derivation_name
from nixery.image.name import ImageRequest
from nixery.nix.build_log import Building, Fetching, LogLines, NixProgress
from nixery.plain_text import escaped
from nixery.push.push import BlobPushed, BytesPushed, Pushed, PushEvent, PushStarted

# The unit of amounts that are shown as sizes with prefixes.
BYTES = "bytes"

# Seconds between two lines about the same step.
_LINE_EVERY = 10.0

# Columns of a terminal below which texts are short, below which there is no bar, and from which there is room for
# downloads and builders at once.
_WIDE, _NARROW, _VERY_WIDE = 100, 72, 140

# Seconds from which the age of a builder is shown.
_SOON = 1.0

_log = structlog.get_logger("nixery.push")


class Activity(Protocol):
    """Shows the steps of a command."""

    def begin(self, what: str, total: int | None = None) -> None:
        """Begin a step; ``total`` is in the activity's unit, ``None`` if unknown."""
        ...

    def advance(self, count: int) -> None:
        """Add to the amount that is done."""
        ...

    def update(self, what: str) -> None:
        """Replace the description of the step."""
        ...

    def note(self, line: str) -> None:
        """Print a permanent line."""
        ...


@contextmanager
def activity(unit: str = "", *, pause: float = _LINE_EVERY, quiet: bool = False) -> Iterator[Activity]:
    """Show the steps of a command within a context.

    Args:
        unit: of amounts: ``BYTES``, or a plural noun; empty if nothing is counted.
        pause: seconds between two lines, without a terminal.
        quiet: show only notes.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _Lines(unit, None if quiet else pause)
        return
    with bars(console, *([Amount(unit)] if unit else []), transient=True) as progress:
        yield _OnTerminal(progress)


class Reporter(Protocol):
    """Shows builds and pushes; a ``BuildObserver``, too."""

    def observe(self, build: Build, event: BuildEvent) -> None:
        """Show an event of a build."""
        ...

    def pushing(self, event: PushEvent) -> None:
        """Show an event of a push."""
        ...

    def failed(self, error: NixeryError) -> None:
        """Show that the command failed, before it prints the message."""
        ...

    def finished(self, result: dict[str, Any]) -> None:
        """Print the result, which has a ``digest`` and a ``revision``."""
        ...

    def close(self) -> None:
        """Restore the terminal, however the command ends."""
        ...


def reporter(*, as_json: bool, quiet: bool) -> Reporter:
    """Choose a reporter by the command's options, and by whether stderr is a terminal."""
    if as_json:
        return JsonReporter()
    return BarReporter() if sys.stderr.isatty() and not quiet else LineReporter()


class BarReporter:
    """Bars: one for each build, and one for each push target."""

    def __init__(self, console: Console | None = None, *, transient: bool = False) -> None:
        console = console or Console(stderr=True)
        self._progress = bars(console, transient=transient)
        self._bytes = bars(console, Amount(BYTES), transient=transient)
        self._builds: dict[ImageRequest, TaskID] = {}
        self._pushes: dict[str, TaskID] = {}
        self._nix: dict[ImageRequest, _NixProgress] = {}
        self._wide = console.width >= _WIDE
        self._shows_both = console.width >= _VERY_WIDE

    def observe(self, build: Build, event: BuildEvent) -> None:  # noqa: C901 -- a case each
        """See ``Reporter``."""
        request = build.request
        self._progress.start()
        task = self._builds.get(request)
        if task is None:
            # The platform first, since the end of a long name is cut off.
            name = f"{request.platform} {request.name}"
            task = self._builds[request] = self._progress.add_task(name, total=None, stage="")
        match event:
            case Started():
                self._progress.update(task, stage="evaluating")
            case Evaluated(packages):
                implied = implied_packages(request, packages)
                what = _number(len(packages) - implied, "package")
                more = f" and {implied} that come with {'it' if len(packages) - implied == 1 else 'them'}"
                stage = f"{what}{more if implied else ''}"
                self._progress.update(task, stage=f"fetching and building {stage}" if self._wide else stage)
            case Queued(position, wait):
                about = "" if wait is None else f", about {_minutes(wait)}"
                place = (
                    f"waiting, place {position} in the queue" if self._wide else f"place {position} in queue"
                )
                self._progress.update(task, stage=f"{place}{about}")
            case Fetching() | Building() | LogLines():
                self._show_nix(task, request, event)
            case Realised(paths):
                self._progress.update(
                    task, stage=f"grouping {_number(paths, 'store path')}", since=None, line=""
                )
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
                self._progress.update(task, stage="failed", failed=True, since=None, line="")
                self._progress.stop_task(task)
        # Builds end before the first push, so that two displays never share the terminal.

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
                # Blobs that were present or mounted are not sent.
                self._finish(self._pushes[target])
            case BlobPushed():
                pass

    def failed(self, error: NixeryError) -> None:  # noqa: ARG002 -- the command prints it
        """See ``Reporter``."""
        self.close()  # before the message, which would otherwise be overwritten

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

    def _show_nix(self, task: TaskID, request: ImageRequest, event: NixProgress) -> None:
        nix = self._nix.setdefault(request, _NixProgress())
        nix.update(event)
        fetching = _fetching(nix.fetching, wide=self._wide)
        building = _building(nix.building, nix.shown, wide=self._wide)
        shown = [part for part in (fetching, building) if part]
        if not shown:
            return
        stage = ", ".join(shown if self._shows_both else shown[-1:])
        since, line = nix.begun.get(nix.shown), nix.line if building else ""
        self._progress.update(task, stage=stage, since=since, line=line)


@dataclass(slots=True)
class _NixProgress:
    """The last progress of Nix for an image.

    Attributes:
        shown: the running derivation that is shown: the last one that wrote a line or was started.
        line: the last one that it wrote.
        begun: when the running builders were first seen, by derivation.
    """

    fetching: Fetching = field(default_factory=lambda: Fetching(0, 0))
    building: Building = field(default_factory=lambda: Building((), 0))
    shown: str = ""
    line: str = ""
    begun: dict[str, float] = field(default_factory=dict)

    def update(self, event: NixProgress) -> None:
        match event:
            case Fetching():
                self.fetching = event
            case Building(derivations):
                now = time.monotonic()
                started = [one for one in derivations if one not in self.begun]
                self.begun = {one: self.begun.get(one, now) for one in derivations}
                self.building = event
                if started or self.shown not in derivations:
                    self.shown, self.line = derivations[-1] if derivations else "", ""
            case LogLines(lines) if lines:
                derivation, text = lines[-1]
                self.line = escaped(text.strip())
                if derivation in self.begun:
                    self.shown = derivation
            case LogLines():
                pass


class LineReporter:
    """Log lines; the log level decides how many."""

    def __init__(self) -> None:
        self._builds = LoggingObserver()
        # Logged at the end, unless the command prints the message.
        self._failed: list[tuple[Build, Failed]] = []

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``Reporter``."""
        if isinstance(event, Failed):
            self._failed.append((build, event))
        else:
            self._builds.observe(build, event)

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
        self._log_failed(str(error))

    def finished(self, result: dict[str, Any]) -> None:
        """See ``Reporter``."""
        self._log_failed("")  # an image of several platforms may lack one
        typer.echo(result["digest"])

    def close(self) -> None:
        """See ``Reporter``."""

    def _log_failed(self, printed: str) -> None:
        for build, event in self._failed:
            if str(event.error) not in printed:
                self._builds.observe(build, event)
        self._failed.clear()


class JsonReporter:
    """One JSON object per line on stdout, each with ``event``; the last one is ``result`` or ``error``."""

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``Reporter``."""
        request = build.request
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
                pass  # too many events

    def failed(self, error: NixeryError) -> None:
        """See ``Reporter``."""
        self._print("error", {"message": str(error)})

    def finished(self, result: dict[str, Any]) -> None:
        """See ``Reporter``."""
        self._print("result", result)

    def close(self) -> None:
        """See ``Reporter``."""

    def _print(self, event: str, fields: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()


class Amount(ProgressColumn):
    """A column with the amount that is done, and the total if it is known."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """See ``ProgressColumn``."""
        nothing = not task.completed and task.total is None
        return Text(
            "" if nothing else amount(task.completed, task.total, self._unit), style="progress.download"
        )


def amount(done: float, total: float | None, unit: str) -> str:
    """Format the amount that is done, and the total if it is known."""
    if unit == BYTES:
        return decimal(int(done)) + ("" if total is None else f" of {decimal(int(total))}")
    return f"{int(done)}{'' if total is None else f' of {int(total)}'} {unit}"


def bars(console: Console, *columns: ProgressColumn, transient: bool = False) -> Progress:
    """Make the display of bars that all commands share; each task has a field ``stage`` with a text.

    Args:
        console: a terminal.
        columns: between the bar and the time, for example an amount.
        transient: whether to erase the bars at the end.
    """
    return Progress(
        _Mark(),
        # A long name must leave room for the other columns.
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", max_width=max(16, console.width * 2 // 5)),
        ),
        *(
            [BarColumn(min(20, console.width // 6) if console.width >= _WIDE else 8)]
            if console.width >= _NARROW
            else []
        ),
        *columns,
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        # A builder's line may be long; it must not move the bars.
        _Stage(table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        console=console,
        transient=transient,
        expand=True,
    )


class _OnTerminal:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, what: str, total: int | None = None) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(escaped(what), total=total, stage="")

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._progress.advance(self._task, count)

    def update(self, what: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, description=escaped(what))

    def note(self, line: str) -> None:
        self._progress.console.print(
            f"nixery: {escaped(line)}", markup=False, highlight=False, soft_wrap=True
        )


class _Lines:
    def __init__(self, unit: str, pause: float | None) -> None:
        self._unit = unit
        self._pause = pause
        self._what = ""
        self._total: int | None = None
        self._done = 0
        self._last = time.monotonic()

    def begin(self, what: str, total: int | None = None) -> None:
        self._what, self._total, self._done = what, total, 0

    def advance(self, count: int) -> None:
        self._done += count
        if self._pause is not None and time.monotonic() - self._last >= self._pause:
            self._last = time.monotonic()
            self.note(f"{self._what}: {amount(self._done, self._total, self._unit)}")

    def update(self, what: str) -> None:
        self._what = what

    def note(self, line: str) -> None:
        print_line(line)


class _Mark(SpinnerColumn):
    """A spinner that ends as a check mark or a cross."""

    def __init__(self) -> None:
        super().__init__(finished_text="[green]✓[/]")

    def render(self, task: Task) -> RenderableType:
        return Text("✗", style="bold red") if task.fields.get("failed") else super().render(task)


class _Stage(ProgressColumn):
    """What a task does, for how long (``since``), and the last line that it wrote."""

    max_refresh = None

    def render(self, task: Task) -> Text:
        stage, since, line = (task.fields.get(name) for name in ("stage", "since", "line"))
        age = 0.0 if since is None else time.monotonic() - since
        shown = f"{stage} for {_clock(age)}" if age >= _SOON else f"{stage}"
        return Text(f"{shown}: {line}" if line else shown)


def _fetching(event: Fetching, *, wide: bool) -> str:
    if event.done >= event.expected and event.paths >= event.expected_paths:
        return ""
    done, unit = decimal(event.done).split(" ")
    expected, unit_of_all = decimal(event.expected).split(" ")
    if not wide:
        # Without a decimal place that says nothing.
        done, expected = (number.removesuffix(".0") for number in (done, expected))
    amount = f"{done}{'' if unit == unit_of_all else f' {unit}'}"
    of = " of " if wide else "/"
    sizes = f"{amount}{of}{expected} {unit_of_all}" if event.expected else ""
    paths = f"{event.paths}{of}{event.expected_paths} paths" if event.expected_paths else ""
    return "fetching " * wide + ", ".join(part for part in (paths, sizes) if part)


def _building(event: Building, shown: str, *, wide: bool) -> str:
    of = " of " if wide else "/"
    count = f"{event.done}{f'{of}{event.expected}' if event.expected else ''} built"
    if not event.derivations:
        return count if event.done else ""
    name = escaped(derivation_name(shown))
    others = f" and {_number(len(event.derivations) - 1, 'other')}" if len(event.derivations) > 1 else ""
    running = f"building {name}{others}" if wide else name
    return f"{count}, {running}" if event.expected else running


def _minutes(seconds: float) -> str:
    """Format an estimated duration."""
    return f"{max(10, round(seconds / 10) * 10)} s" if seconds < 55 else f"{round(seconds / 60)} min"  # noqa: PLR2004 -- a minute


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _event_name(event: BuildEvent) -> str:
    name = type(event).__name__
    return "".join(f"-{c.lower()}" if c.isupper() and at else c.lower() for at, c in enumerate(name))


def _fields(event: BuildEvent) -> dict[str, Any]:  # noqa: C901, PLR0911 -- a case each
    match event:
        case Fetching(done, expected, paths, expected_paths):
            return {"done": done, "expected": expected, "paths": paths, "expected_paths": expected_paths}
        case Building(derivations, done, expected):
            return {"derivations": list(derivations), "done": done, "expected": expected}
        case LogLines(lines, dropped):
            written = [{"derivation": derivation, "text": text} for derivation, text in lines]
            return {"lines": written, "dropped": dropped}
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
