"""Renders the reference of the command line from its definition."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
import typer.main

from nixery.cli import app


def render() -> str:
    """Return docs/reference/commands.md."""
    lines = [
        "# Commands",
        "",
        "For everyone who uses `nixery` on the command line: each command with its arguments and options.",
        "[Command output](command-output.md) has what commands print and their exit status.",
        "Generated from the code by `make docs`.",
    ]
    for name, command in _commands("nixery", typer.main.get_command(app)):
        lines += ["", f"## {name}", "", *_section(name, command)]
    return "\n".join(lines)


# Typer has its own classes for click's commands, without public types.
def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    if children := getattr(command, "commands", None):
        for child, of in children.items():
            yield from _commands(f"{name} {child}", of)
    else:
        yield name, command


def _section(name: str, command: Any) -> Iterator[str]:  # noqa: ANN401
    context = typer.Context(command, info_name=name)
    yield f"    {name} {' '.join(command.collect_usage_pieces(context))}"
    yield ""
    # Command lines in a help text are code.
    yield re.sub(r"^(nixery .*)$", r"    \1", (command.help or "").strip(), flags=re.MULTILINE)
    records = [parameter.get_help_record(context) for parameter in command.params]
    if rows := [
        f"| {_cell(f'`{_spelling(name)}`')} | {_cell(meaning)} |" for name, meaning in filter(None, records)
    ]:
        yield from ("", "| argument or option | meaning |", "|---|---|", *rows)


def _spelling(name: str) -> str:
    """Leave out the type of an argument, whose metavariable says what it is."""
    return name if name.startswith("-") else name.partition(" <")[0]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
