"""Parsing answers to an evaluation, of which any package set may be the author."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nixery.errors import NixUnusable, Reason
from nixery.nix.evaluation import Flaw, Item, parse_answer, require_valid
from nixery.nix.packages import Facts, MetaPackageFound, Package

HASH = "a" * 32
DERIVATION = f"/nix/store/{HASH}-hello-1.0.drv"

AVAILABLE: dict[str, Any] = {
    "status": "available",
    "name": "hello",
    "attribute": "hello",
    "position": [],
    "derivation": DERIVATION,
    "outputs": {"out": f"/nix/store/{HASH}-hello-1.0"},
    "pname": "hello",
    "version": "1.0",
    "description": "",
    "licences": [],
    "mainProgram": None,
    "priority": None,
    "fhs": False,
}
DEFINITION: dict[str, Any] = {
    "status": "definition",
    "name": "web",
    "attribute": "web",
    "definition": "{}",
    "installables": [f"{DERIVATION}!out"],
}


def parsed(item: dict[str, Any]) -> Item:
    (found,) = parse_answer(json.dumps({"packages": [item], "names": {}}).encode())
    return found


def flaw(item: dict[str, Any]) -> tuple[Reason, str]:
    found = parsed(item)
    assert isinstance(found, Flaw), found
    return found.package.reason, found.package.explanation


@pytest.mark.parametrize("name", ["", "out dev", "out!dev", "out\n", "\x1b[31m", "-/"])
def test_an_output_name_that_is_not_valid_in_arguments_is_refused(name: str) -> None:
    reason, explanation = flaw(AVAILABLE | {"outputs": {name: f"/nix/store/{HASH}-hello-1.0"}})
    assert (reason, explanation) == (Reason.NOT_A_PACKAGE, f"{name!r} is not the name of an output")


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", f"/nix/store/{HASH}-a/../../b", f"/nix/store/{HASH}-a\n"]
)
def test_paths_are_paths_in_the_store(path: str) -> None:
    assert flaw(AVAILABLE | {"derivation": path})[0] is Reason.NOT_A_PACKAGE
    assert flaw(AVAILABLE | {"outputs": {"out": path}})[0] is Reason.NOT_A_PACKAGE


@pytest.mark.parametrize(
    "installable", [f"{DERIVATION}!out dev", "hello", "/etc/passwd!out", f"{DERIVATION}!a!b"]
)
def test_a_definition_refers_to_outputs_of_derivations(installable: str) -> None:
    assert (
        flaw(
            DEFINITION
            | {
                "installables": [installable],
                "definition": f'{{"config": {{"Cmd": ["/nix/store/{HASH}-x"]}}}}',
            }
        )[0]
        is Reason.INVALID_DEFINITION
    )


def test_invalid_utf_8_is_not_an_error_of_the_machine() -> None:
    answer = json.dumps({"packages": [AVAILABLE | {"description": "X"}], "names": {}}).encode()
    (found,) = parse_answer(answer.replace(b'"X"', b'"caf\xe9"'))
    assert isinstance(found, Package)
    assert found.description == "caf\ufffd"


def test_an_answer_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(NixUnusable, match="to an evaluation: Invalid JSON"):
        parse_answer(b'{"packages":' + b"[" * 100_000)


def test_a_meta_package_is_followed_by_its_packages() -> None:
    meta = {"status": "meta-package", "name": "ci", "command": ["bash"]}
    package = AVAILABLE | {"name": "ci", "attribute": "ci", "position": [0], "entry": "pkgs.hello"}
    answer = json.dumps({"packages": [meta, package], "names": {}}).encode()
    found, hello = parse_answer(answer)
    assert found == MetaPackageFound("ci", ("bash",))
    assert isinstance(hello, Package)
    # The attribute path that the table has.
    assert (hello.requested_name, hello.attribute) == ("ci", "pkgs.hello")


@pytest.mark.security
@pytest.mark.parametrize("command", [["a"] * 17, ["a" * 257], "bash"], ids=["words", "long", "text"])
def test_a_command_that_no_meta_package_has_is_no_answer(command: object) -> None:
    with pytest.raises(NixUnusable, match="command"):
        parsed({"status": "meta-package", "name": "ci", "command": command})


@pytest.mark.parametrize(
    ("facts", "explanation"),
    [
        ({"ID": "x"}, "NAME is required"),
        ({"ID": "x", "NAME": "a\nb"}, "NAME should be printable"),
        ({"ID": "x", "NAME": "x", "PATH": "/"}, "'PATH' is not a field of os-release"),
        ({"ID": "X", "NAME": "x"}, "ID should have lower-case letters"),
        ({"ID": "x", "NAME": ""}, "NAME should have 1 to 1000 characters, not 0"),
        ({"ID": "x", "NAME": "x" * 1001}, "NAME should have 1 to 1000 characters, not 1001"),
    ],
)
def test_facts_that_os_release_cannot_have_are_explained(facts: dict[str, str], explanation: str) -> None:
    reason, found = flaw({"status": "facts", "name": ".facts", "osRelease": facts})
    assert reason is Reason.INVALID_FACTS
    assert found.startswith(f"nixery.osRelease: {explanation}")


@pytest.mark.security
@pytest.mark.parametrize(
    "item",
    [
        Facts({"ID": "x", "NAME": "a\nPATH=/"}),
        Facts({"PATH": "/"}),
        MetaPackageFound("ci", ("a" * 257,)),
        MetaPackageFound("ci", ("a",) * 17),
        MetaPackageFound("ci", ("a\0",)),
    ],
)
def test_planted_items_that_no_evaluation_returns_are_refused(item: Facts | MetaPackageFound) -> None:
    with pytest.raises(ValueError, match=r"NAME|PATH|command"):
        require_valid(item)
