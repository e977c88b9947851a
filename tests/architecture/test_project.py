"""pyproject.toml and the documentation name the same pure packages and the same dependencies."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]
_PROJECT: dict[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text())


def _page(name: str) -> str:
    (page,) = (_ROOT / "docs").rglob(name)
    return page.read_text()


def _contract(words: str) -> dict[str, Any]:
    (contract,) = (
        contract for contract in _PROJECT["tool"]["importlinter"]["contracts"] if words in contract["name"]
    )
    return dict(contract)


def _pure_packages(architecture: str) -> set[str]:
    """Return the packages that the sentence beginning with ``*Pure* packages (`` lists, or marked ``[pure]``."""
    sentence = re.search(r"^\*Pure\* packages \(([^)]*)\)", architecture, re.MULTILINE)
    listed = set(re.findall(r"`(\w+)`", sentence[1])) if sentence else set()
    marked = re.findall(r"^ +([\w| ]+?) *\[pure\]", architecture, re.MULTILINE)
    return listed | {name for line in marked for name in re.split(r"[ |]+", line) if name}


def test_every_pure_package_is_in_the_purity_contract() -> None:
    pure = _pure_packages(_page("architecture.md"))
    assert {"image", "layering", "oci"} <= pure
    assert {f"nixery.{name}" for name in pure} <= set(_contract("Pure packages")["source_modules"])


@pytest.mark.parametrize(
    "module", ["os", "asyncio", "subprocess", "socket", "logging", "structlog", "granian"]
)
def test_the_purity_contract_forbids_input_output_and_concurrency(module: str) -> None:
    assert module in _contract("Pure packages")["forbidden_modules"]


def test_both_ways_to_name_pure_packages_are_read() -> None:
    assert _pure_packages("    one | two   [pure] x\n    three  files\n") == {"one", "two"}
    assert _pure_packages("*Pure* packages (`one`,\n`two`) do no input.\n") == {"one", "two"}


def _dependencies() -> Iterator[str]:
    """Yield the names of all dependencies but stubs, which belong to the package that they describe."""
    project = _PROJECT["project"]
    groups = [
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *_PROJECT["dependency-groups"].values(),
    ]
    for requirement in (requirement for group in groups for requirement in group):
        name = re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]
        if not name.startswith("types-"):
            yield name


@pytest.mark.parametrize("name", sorted(_dependencies()))
def test_every_dependency_is_documented(name: str) -> None:
    rows = re.findall(r"^\| ([^|]+) \|", _page("dependencies.md"), re.MULTILINE)
    assert name in {entry.strip() for row in rows for entry in row.split(",")}
