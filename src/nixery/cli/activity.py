"""How commands show what they are doing, all of them alike: bars on a terminal, lines elsewhere, nothing where a machine reads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

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

from nixery.cli.logs import print_line
from nixery.plain_text import escaped

# The one unit that is not counted.
BYTES = "bytes"

# Seconds between two lines about the same thing.
_PAUSE = 10.0


class Activity(Protocol):
    """Shows one thing after the other."""

    def begin(self, what: str, total: int | None = None) -> None:
        """Something begins; ``total`` is in the activity's unit, ``None`` where nobody knows."""
        ...

    def advance(self, count: int) -> None:
        """So much more is done."""
        ...

    def tell(self, what: str) -> None:
        """Say anew what is being done."""
        ...

    def note(self, line: str) -> None:
        """Say something that is worth keeping."""
        ...


def bars(console: Console, *columns: ProgressColumn, transient: bool = False) -> Progress:
    """Make the display that all commands have; tasks come with a ``stage``, in words.

    Args:
        console: a terminal.
        columns: what is between a bar and the time: an amount, for example.
        transient: whether it goes when the work is done.
    """
    return Progress(
        _Mark(),
        # Of a long name, as much as leaves room for the rest.
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", max_width=max(16, console.width * 2 // 5)),
        ),
        BarColumn(min(20, console.width // 6)),
        *columns,
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        # What a builder writes may be long; it must not move the bars.
        TextColumn(
            "{task.fields[stage]}",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        console=console,
        transient=transient,
        expand=True,
    )


@contextmanager
def activity(unit: str = "", *, pause: float = _PAUSE, quiet: bool = False) -> Iterator[Activity]:
    """Show what a command does until it is done.

    Args:
        unit: of amounts: ``BYTES``, or what is counted; empty where there is nothing to count.
        pause: seconds from one line to the next one, where there is no terminal.
        quiet: show notes and nothing else.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield _Lines(unit, None if quiet else pause)
        return
    with bars(console, *([Amount(unit)] if unit else []), transient=True) as progress:
        yield _OnTerminal(progress)


class Amount(ProgressColumn):
    """How much is done, and of how much where that is known."""

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
    """Write how much is done, for people."""
    if unit == BYTES:
        return decimal(int(done)) + ("" if total is None else f" of {decimal(int(total))}")
    return f"{int(done)}{'' if total is None else f' of {int(total)}'} {unit}"


class _Mark(SpinnerColumn):
    """Turns while something goes on, and tells how it ended."""

    def __init__(self) -> None:
        super().__init__(finished_text="[green]✓[/]")

    def render(self, task: Task) -> RenderableType:
        return Text("✗", style="bold red") if task.fields.get("failed") else super().render(task)


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

    def tell(self, what: str) -> None:
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

    def tell(self, what: str) -> None:
        self._what = what

    def note(self, line: str) -> None:
        print_line(line)
