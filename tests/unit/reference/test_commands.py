"""The reference of commands, and the command line itself."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from nixery.cli import app
from scripts.reference.commands import render

COMMANDS = (
    "serve",
    "check",
    "popularity",
    "build",
    "inspect",
    "gc",
    "scrub",
    "storage copy",
    "tls self-signed",
    "token create",
    "token list",
    "token revoke",
    "password",
)


def section(command: str) -> str:
    return render().partition(f"\n## nixery {command}\n")[2].partition("\n## ")[0]


def test_every_command_has_a_section() -> None:
    assert sorted(re.findall(r"^## nixery (.*)$", render(), re.MULTILINE)) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_section_has_every_option_and_argument_of_the_help(command: str) -> None:
    shown = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    options = set(re.findall(r"^│ +\*? *(--[a-z-]+)", shown.stdout, re.MULTILINE)) - {"--help"}
    assert shown.exit_code == 0
    text = section(command)
    assert not [option for option in options if f"{option} " not in text and f"{option}`" not in text]
    assert "Usage" not in text


def test_the_reference_says_what_an_option_means() -> None:
    assert "| Print only the digest. |" in section("build")
    assert "TIME" in section("gc")
