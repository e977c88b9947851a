"""The reference of the HTTP API: ``openapi.json``, prepared for its page.

``make docs`` writes the file from docs/reference/openapi.yaml.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from markupsafe import Markup

_TITLES = {
    "api": "API",
    "pull": "Pull",
    "discovery": "Discovery",
    "pages": "Pages",
    "health": "Health",
    "nix-cache": "Binary cache of Nix",
    "operations": "Operations",
    "access": "Log in",
    "refused": "Refused",
}


@dataclass(frozen=True, slots=True)
class ShownParameter:
    """A parameter of an operation; ``place`` is the part of the request that has it."""

    name: str
    place: str
    required: bool
    description: str
    type: str


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer of an operation, with its media types."""

    status: str
    description: str
    types: str


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path."""

    id: str
    method: str
    path: str
    summary: str
    description: str
    parameters: Sequence[ShownParameter]
    answers: Sequence[ShownAnswer]


@dataclass(frozen=True, slots=True)
class Group:
    """The operations with one tag."""

    name: str
    title: str
    operations: Sequence[Operation]


@dataclass(frozen=True, slots=True)
class ApiReference:
    """Everything that the page shows, and the document for programs."""

    introduction: Sequence[str]
    groups: Sequence[Group]
    content: bytes


def api_reference() -> ApiReference:
    """Read the description of the API."""
    content = (files("nixery.server.pages") / "openapi.json").read_bytes()
    document = json.loads(content)
    operations: dict[str, list[Operation]] = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            # HEAD answers like GET.
            if method in ("get", "post", "put", "patch", "delete"):
                shown = _operation(document, method, path, item, operation)
                operations.setdefault(operation["tags"][0], []).append(shown)
    groups = [Group(name, title, operations[name]) for name, title in _TITLES.items() if name in operations]
    # A list in Markdown, after a sentence about its tests.
    _, _, points = document["info"]["description"].partition("\n- ")
    return ApiReference(points.split("\n- "), groups, content)


def prose(text: str) -> Markup:
    """Show the code in a description as code; everything else is escaped."""
    pieces = text.strip().split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if number % 2 else piece
        for number, piece in enumerate(pieces)
    )


def _operation(
    document: Mapping[str, Any], method: str, path: str, item: Mapping[str, Any], operation: Mapping[str, Any]
) -> Operation:
    parameters = [
        _resolved(document, one) for one in (*item.get("parameters", ()), *operation.get("parameters", ()))
    ]
    return Operation(
        operation["operationId"],
        method.upper(),
        path,
        operation["summary"],
        operation.get("description", ""),
        [
            ShownParameter(
                one["name"],
                one["in"],
                bool(one.get("required")),
                one.get("description", ""),
                _type(_resolved(document, one["schema"])),
            )
            for one in parameters
        ],
        [
            ShownAnswer(str(status), answer["description"], ", ".join(answer.get("content", ())))
            for status, found in operation["responses"].items()
            for answer in (_resolved(document, found),)
        ],
    )


def _resolved(document: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in node:
        found: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def _type(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    kind = schema.get("type", "")
    limits = [
        f"{name} {schema[key]}"
        for key, name in (("minimum", "from"), ("maximum", "to"), ("maxLength", "at most"))
        if key in schema
    ]
    return " ".join([str(kind), *limits]).strip()
