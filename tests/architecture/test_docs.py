"""The documentation is complete: navigation, generated reference, and the names of tests, packages and commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from nixery.cli import app
from nixery.settings import Settings
from nixery.telemetry.metrics import Metrics
from scripts.reference import openapi
from scripts.reference.__main__ import DIRECTORY, main, outdated

_ROOT = Path(__file__).parents[2]
_DOCS = _ROOT / "docs"
_PAGES = sorted(_DOCS.rglob("*.md"))
_KINDS = ("tutorials", "how-to", "reference", "explanation")


def _reference(name: str) -> str:
    return (DIRECTORY / f"{name}.md").read_text()


def _leaves(node: Any) -> Iterator[str]:  # noqa: ANN401 -- YAML is anything
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for child in node.values():
            yield from _leaves(child)
    else:
        for child in node:
            yield from _leaves(child)


def test_the_navigation_has_every_page_once() -> None:
    nav = list(_leaves(yaml.safe_load((_ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(nav) == [str(page.relative_to(_DOCS)) for page in _PAGES]


def test_every_page_is_of_one_kind() -> None:
    assert {page.relative_to(_DOCS).parts[0] for page in _PAGES} == {*_KINDS, "README.md"}


@pytest.mark.parametrize(
    "page", [page for page in _PAGES if page.parent != _DOCS], ids=lambda page: page.stem
)
def test_every_page_begins_with_its_readers(page: Path) -> None:
    title, _, text = page.read_text().partition("\n\n")
    assert title.startswith("# ")
    assert re.match(r"For |This page is for ", text)


def test_every_screenshot_is_shown() -> None:
    texts = "".join(page.read_text() for page in [_ROOT / "README.md", *_PAGES])
    shown = set(re.findall(r"screenshots/([\w-]+\.png)", texts))
    assert shown == {picture.name for picture in (_DOCS / "screenshots").iterdir()}


def test_generated_pages_are_current() -> None:
    assert not list(outdated(DIRECTORY)), "run make docs, and commit the pages"
    assert openapi.PATH.read_text() == openapi.render(), "run make docs, and commit openapi.json"


def test_outdated_pages_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.reference.__main__.DIRECTORY", tmp_path)
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0
    (tmp_path / "metrics.md").write_text("old")
    assert list(outdated(tmp_path)) == ["metrics"]


def test_every_setting_is_listed() -> None:
    variables = {field.alias for field in Settings.model_fields.values() if field.alias}
    assert len(variables) > 40
    assert variables == set(re.findall(r"^\| `([A-Z][A-Z0-9_]+)`", _reference("settings"), re.MULTILINE))


def test_every_metric_is_listed() -> None:
    names = set(re.findall(r"^# TYPE (nixery_\S+)", Metrics().text().decode(), re.MULTILINE))
    assert len(names) > 8
    assert names <= set(re.findall(r"^\| `(nixery_\w+)", _reference("metrics"), re.MULTILINE))


def test_every_route_is_listed() -> None:
    paths = set(yaml.safe_load((DIRECTORY / "openapi.yaml").read_text())["paths"])
    # The server refuses all upload routes of the distribution API.
    wanted = {path for path in paths if "/uploads/" not in path}
    page = _reference("routes")
    assert not [path for path in wanted if f"{path}`" not in page]


def test_every_command_is_listed() -> None:
    names = set(_commands("nixery", typer.main.get_command(app)))
    assert len(names) > 5
    assert {f"## {name}" for name in names} <= set(_reference("commands").splitlines())


def _commands(name: str, command: Any) -> Iterator[str]:  # noqa: ANN401 -- Typer has no public type for commands
    if children := getattr(command, "commands", None):
        for child, of in children.items():
            yield from _commands(f"{name} {child}", of)
    else:
        yield name


def test_the_layers_of_the_architecture_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    text = (_DOCS / "explanation" / "architecture.md").read_text()
    block = text.split("## Packages and the direction of imports")[1].split("\n\n")[2]
    drawn = [re.split(r" {2,}", line.strip())[0] for line in block.splitlines()]
    assert drawn == contracts[0]["layers"]
    (pure,) = re.findall(r"^\*Pure\* packages \(([^)]*)\)", text, re.MULTILINE)
    sources = {name.removeprefix("nixery.") for name in contracts[1]["source_modules"]}
    assert set(re.findall(r"`(\w+)`", pure)) == sources


def test_the_tests_that_the_documentation_names_exist() -> None:
    named = {path for page in _PAGES for path in re.findall(r"`(tests/[\w/]+(?:\.py)?)", page.read_text())}
    assert len(named) > 30
    assert not [path for path in named if not (_ROOT / path).exists()]


def test_the_pages_that_the_code_names_exist() -> None:
    files = [path for folder in ("src", "scripts", "tests") for path in (_ROOT / folder).rglob("*.py")]
    named = {
        page
        for path in files
        for page in re.findall(r"(?<!its )\bdocs/[\w/-]+\.(?:md|yaml|yml|json|svg)\b", path.read_text())
    }
    assert len(named) > 10
    assert not [page for page in named if not (_ROOT / page).exists()]


def test_the_modules_that_the_explanation_names_exist() -> None:
    packages = {path.name for path in (_ROOT / "src" / "nixery").iterdir() if path.is_dir()}
    named = {
        path
        for page in (_DOCS / "explanation").glob("*.md")
        for path in re.findall(r"`(\w+/[\w/]+\.(?:py|nix))`", page.read_text())
        if path.partition("/")[0] in packages
    }
    assert len(named) > 15
    assert not [path for path in named if not (_ROOT / "src" / "nixery" / path).exists()]


def test_the_readme_has_the_commands_of_continuous_integration() -> None:
    commands = re.findall(r"make [\w-]+", (_ROOT / ".ci" / "run").read_text())
    readme = (_ROOT / "README.md").read_text()
    assert len(commands) > 5
    assert not [command for command in commands if f"    {command} " not in readme]


def test_the_site_builds_strictly_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path))
    built = subprocess.run(
        command,
        cwd=_ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(_PAGES)
    loaded = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"https?:[^\"]*")
    assert not [found for page in pages for found in loaded.findall(page.read_text())]
