"""Prints the steps of the demonstration with their times, and runs their commands."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class DemoError(Exception):
    """A step failed.

    Attributes:
        output: what the failing command printed.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class Narrator:
    """Prints steps to a terminal or to a log, and runs their commands."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._started = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Time what happens inside; a step that raises is marked as failed."""
        started = time.monotonic()
        mark = "[red]✗[/red]"
        try:
            with self.console.status(escape(title)):
                yield
            mark = "[green]✓[/green]"
        finally:
            self.console.print(f"{mark} {time.monotonic() - started:5.1f} s  {escape(title)}")

    def note(self, text: str) -> None:
        """Print a detail of the step above or below."""
        for line in text.splitlines():
            self.console.print(f"           {escape(line)}", style="dim")

    def table(self, table: Table) -> None:
        """Print a table."""
        self.console.print(table)

    def run(
        self, *command: str, timeout: float, environment: Mapping[str, str] | None = None, tell: bool = True
    ) -> str:
        """Run a command to its end.

        Args:
            command: the program and its arguments.
            timeout: seconds it may take.
            environment: its complete environment; that of this process by default.
            tell: whether to print the command.

        Returns:
            Its standard output.

        Raises:
            DemoError: it failed, timed out, or cannot be run; with its output.
        """
        if tell:
            self.note(f"$ {shlex.join(_short(command))}")
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            raise DemoError(
                f"{command[0]} took longer than {timeout:g} s", _text(expired.stdout) + _text(expired.stderr)
            ) from None
        except OSError as error:
            raise DemoError(f"cannot run {command[0]}: {error.strerror}") from None
        if done.returncode != 0:
            raise DemoError(f"{command[0]} failed with status {done.returncode}", done.stdout + done.stderr)
        return done.stdout

    def fail(self, error: Exception) -> None:
        """Print an error, with the output of the failed command."""
        if isinstance(error, DemoError) and error.output.strip():
            self.note(error.output.rstrip())
        self.console.print(f"[red]The demo failed:[/red] {escape(str(error))}")

    def finish(self) -> None:
        """Print the total time."""
        self.console.print(f"[green]Done[/green] in {time.monotonic() - self._started:.1f} s.")


def _short(command: Sequence[str]) -> list[str]:
    """Make paths relative to the current directory."""
    here = f"{Path.cwd()}/"
    return [argument.replace(here, "") for argument in command]


def _text(output: str | bytes | None) -> str:
    # The output of a command that timed out is bytes even where text was requested.
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
