"""Docstrings name modules, attributes and arguments that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import nixery

_PACKAGE = Path(nixery.__file__).parent
_REFERENCE = re.compile(r"``(nixery(?:\.\w+)+)(?:\(\))?``")

Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def test_references_lead_to_modules_and_their_names() -> None:
    found = 0
    for path in _PACKAGE.rglob("*.py"):
        for reference in _REFERENCE.findall(path.read_text()):
            found += 1
            assert _exists(reference), f"{path}: {reference}"
    assert found > 10


def test_documented_attributes_and_arguments_exist() -> None:
    found = 0
    for path, node in _documented():
        docstring = ast.get_docstring(node) or ""
        for section in ("Args", "Attributes"):
            for name in _entries(docstring, section):
                found += 1
                assert name in _names(node), f"{path}: {node.name} has no {name}"
    assert found > 500


def _exists(reference: str) -> bool:
    parts = reference.split(".")
    for end in range(len(parts), 1, -1):
        module = ".".join(parts[:end])
        try:
            spec = find_spec(module)
        except ModuleNotFoundError:
            continue
        if spec is not None:
            found: object = import_module(module)
            for name in parts[end:]:
                found = getattr(found, name, None)
            return found is not None
    return False


def _documented() -> Iterator[tuple[Path, Documented]]:
    for path in _PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Documented):
                yield path, node


def _entries(docstring: str, section: str) -> list[str]:
    match = re.search(rf"^{section}:\n((?:(?:    .*)?\n?)*)", docstring, re.MULTILINE)
    return re.findall(r"^    \*{0,2}(\w+): ", match[1], re.MULTILINE) if match else []


def _names(node: Documented) -> set[str]:
    """The arguments of a function; those, attributes, properties and base classes' unknown ones of a class."""
    names = {
        argument.arg
        for child in ast.walk(node)
        if isinstance(child, ast.arguments)
        for argument in (*child.posonlyargs, *child.args, *child.kwonlyargs, child.vararg, child.kwarg)
        if argument
    }
    for child in ast.walk(node):
        match child:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.FunctionDef(name=name):
                names.add(name)
    return names
