"""Reads docs/how-to/image-recipes.md: the files and commands that it shows, recipe by recipe.

The form of the page:

- a recipe is a section of the third level below ``## Recipes``;
- a file is a fenced block below a line with nothing but the file's name, as code, and a colon;
- commands are in fenced blocks of the language ``console``, after ``$``, with as many lines as bash needs to
  complete them. The lines below are the output, in which ``...`` stands for anything. Without such lines, any
  output is accepted.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "image-recipes.md"

_FENCE = re.compile(
    r"(?:^`(?P<name>[^`\n]+)`:\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_HEADING = re.compile(r"^(#{2,3}) (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A command and its output on the page, which may be empty."""

    command: str
    output: str


@dataclass
class Section:
    """A section of the page.

    Attributes:
        files: contents by name.
        steps: in order.
        other: languages of all other blocks.
    """

    title: str
    files: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    other: list[str] = field(default_factory=list)


def read_page(text: str) -> tuple[Mapping[str, str], Sequence[Section]]:
    """Return all files of a page, and its recipes."""
    files: dict[str, str] = {}
    recipes = []
    for chapter, section in _sections(text):
        files.update(section.files)
        if chapter == "Recipes" and section.title:
            recipes.append(section)
    return files, recipes


def _sections(text: str) -> Iterator[tuple[str, Section]]:
    parts = _HEADING.split(_without_headings_in_fences(text))
    chapter = ""
    for level, title, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if level == "##":
            chapter = title
        section = Section(title if level == "###" else "")
        for fence in _FENCE.finditer(body):
            content = fence["text"].replace("\0", "#")
            if fence["name"]:
                section.files[fence["name"]] = content
            elif fence["language"] == "console":
                section.steps += _steps(content)
            else:
                section.other.append(fence["language"])
        yield chapter, section


def _without_headings_in_fences(text: str) -> str:
    return _FENCE.sub(lambda fence: fence[0].replace("#", "\0"), text)


def _steps(console: str) -> Iterator[Step]:
    lines = console.splitlines()
    while lines:
        first = lines.pop(0)
        assert first.startswith("$ "), f"not a command: {first}"
        command = first.removeprefix("$ ")
        while lines and not _is_complete(command):
            command += "\n" + lines.pop(0)
        output = []
        while lines and not lines[0].startswith("$ "):
            output.append(lines.pop(0))
        yield Step(command, "".join(f"{line}\n" for line in output))


def _is_complete(command: str) -> bool:
    checked = subprocess.run(
        ["bash", "-n", "-c", command], check=False, stderr=subprocess.PIPE, timeout=10, text=True
    )
    return not command.endswith("\\") and "unexpected EOF" not in checked.stderr
