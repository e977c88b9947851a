"""Attributes whose names cannot be image names: Nix and Python agree on their spellings, and clients pull them."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib.resources import as_file, files
from typing import Any

import pytest

from nixery.image.name import COMPONENT
from nixery.image.spelling import AttributeNames
from nixery.nix.evaluation import request_argument
from tests.support.client import RegistryClient
from tests.support.nix import PACKAGE_SETS
from tests.support.server import running_server
from tests.validator.image_validator import validate

PACKAGE_SET = PACKAGE_SETS / "spelling"

# The sets within that set, with the text that their programs begin with.
SETS = {(): "top", ("nested",): "nested", ("nested", "deeper"): "deeper", ("Nested+",): "escaped"}

# Names made of these lead near the attributes of the set.
PIECES = (
    *(
        "__2b",
        "__40",
        "__5f",
        "__2e",
        "__2d",
        "__45",
        "__61",
        "__78",
        "__2f",
        "__7e",
        "__2",
        "exact",
        "foo",
        "1password",
    ),
    *("x", "a", "b", "g", "r", "c", "7", "_", "__", "-", ".", "nested", "python3", "11"),
)


def instantiate(environment: Mapping[str, str], *arguments: str) -> Any:  # noqa: ANN401 -- JSON is anything
    done = subprocess.run(
        ["nix-instantiate", "--eval", "--strict", "--json", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def attributes(settings: Mapping[str, str]) -> Mapping[tuple[str, ...], list[str]]:
    """The attribute names of the package set, and of each set within."""
    listing = "let set = import %s { system = null; }; in map builtins.attrNames [ set set.nested set.nested.deeper set.%s ]"
    found = instantiate(settings, "--expr", listing % (PACKAGE_SET, '"Nested+"'))
    return dict(zip(SETS, found, strict=True))


@pytest.fixture(scope="module")
def names(attributes: Mapping[tuple[str, ...], list[str]]) -> AttributeNames:
    return AttributeNames(attributes)


@pytest.fixture(scope="module")
def spelling_server(
    tmp_path_factory: pytest.TempPathFactory, settings: Mapping[str, str]
) -> Iterator[RegistryClient]:
    chosen = {**settings, "NIXERY_PKGS_PATH": str(PACKAGE_SET)}
    with running_server(tmp_path_factory.mktemp("spelling"), chosen) as server:
        yield server.client


def near_misses() -> Iterator[str]:
    """Valid components, of which many select an attribute."""
    source = random.Random(1)  # noqa: S311 -- the same in each run
    for _ in range(3000):
        component = "".join(source.choice(PIECES) for _ in range(source.randint(1, 5)))
        if re.fullmatch(COMPONENT, component):
            yield component


def test_nix_and_python_select_the_same_attributes(
    settings: Mapping[str, str], attributes: Mapping[tuple[str, ...], list[str]], names: AttributeNames
) -> None:
    paths = [(*within, name) for within, known in attributes.items() for name in known]
    spelled = {component for path in paths if (component := names.spell(path)) is not None}
    components = sorted({*spelled, *near_misses()})
    with as_file(files("nixery.nix") / "expressions") as expressions:
        answer = instantiate(
            settings,
            str(expressions / "packages.nix"),
            *("--argstr", "packageSet", str(PACKAGE_SET)),
            *("--argstr", "system", "x86_64-linux"),
            *("--argstr", "request", request_argument(components)),
        )
    by_nix = {item["name"]: item.get("attribute") for item in answer["packages"]}
    by_python = {name: path and ".".join(path) for name in components for path in [names.resolve(name)]}
    assert by_nix == by_python
    # Each attribute has one spelling.
    assert {component for component, attribute in by_nix.items() if attribute} == spelled


@pytest.mark.parametrize(
    "path",
    [
        ("libstdc++6",),
        ("@angular/cli",),
        ("Exact",),
        ("exact",),
        ("a+",),
        ("shell",),
        ("nested", "libX11"),
        ("nested", "ShellCheck"),
        ("nested", "python3.11"),
        ("nested", "deeper", "R+"),
        ("Nested+", "g++"),
        ("Nested+", "\\"),
    ],
)
def test_a_spelling_is_pulled(
    spelling_server: RegistryClient, names: AttributeNames, path: tuple[str, ...]
) -> None:
    component = names.spell(path)
    assert component is not None
    image = validate(spelling_server.pull(component))
    text = f"{SETS[path[:-1]]}-{sha256(path[-1].encode()).hexdigest()}"
    assert text.encode() in image.filesystem.read("bin/selected")


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("libstdc", "libstdc__2b__2b6"),
        ("libstdc__2b__2b", "libstdc__2b__2b6"),
        ("shell__43heck", "shellcheck"),
        ("nested.shellchek", "nested.shellcheck"),
        ("nested__2b.libstdc", "nested__2b.libstdc__2b__2b6"),
    ],
)
def test_near_names_can_be_pulled(spelling_server: RegistryClient, wanted: str, near: str) -> None:
    response = spelling_server.manifest(wanted)
    (package,) = response.error["detail"]["packages"]
    assert (response.status, package["reason"]) == (404, "missing")
    assert package["did_you_mean"][0] == near
    assert near in response.error["message"]
    assert spelling_server.manifest(near).status == 200


def test_a_package_has_one_name(spelling_server: RegistryClient) -> None:
    """A package with endless names would have endless images."""
    for name in ("h__65llo", "x__68__65__6c__6c__6f", "nested.g__2b__2b__2d12", "shell__43heck"):
        response = spelling_server.manifest(name)
        assert (response.status, response.error["detail"]["packages"][0]["reason"]) == (404, "missing")
