"""Every sentence of the specification has a test in tests/conformance, and every test there names its sentences."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conformance.specification import Sentence

SUITE = Path(__file__).parent.parent / "conformance"
MODULES = sorted(SUITE.glob("test_*.py"))


def _named_by_tests(module: Path) -> dict[str, list[str]]:
    """Map each test of a module to the sentences that its decorators name."""
    tests = {}
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            names = [n for decorator in node.decorator_list for n in ast.walk(decorator)]
            tests[node.name] = [
                n.attr
                for n in names
                if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "Sentence"
            ]
    return tests


def test_every_sentence_has_a_test() -> None:
    named = {name for module in MODULES for names in _named_by_tests(module).values() for name in names}
    assert {sentence.name for sentence in Sentence} == named


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_every_test_names_a_sentence_or_is_a_promise(module: Path) -> None:
    is_promise = "pytestmark = pytest.mark.promise" in module.read_text()
    nameless = [test for test, names in _named_by_tests(module).items() if not names]
    assert is_promise or not nameless
