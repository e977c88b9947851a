"""What the evaluation of ``packages.nix`` answers, and what it means."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from nixery.closure import STORE_DIRECTORY, StorePath
from nixery.errors import NixUnusable, Reason, UnavailablePackage
from nixery.image.definition import InvalidDefinition, parse_definition
from nixery.image.name import NearNames
from nixery.nix.packages import DEFAULT_PRIORITY, Definition, Package


class _Available(BaseModel):
    status: Literal["available"]
    name: str
    attribute: str
    position: list[int]
    derivation: str
    outputs: dict[str, str]
    pname: str
    version: str
    description: str
    licences: list[str]
    mainProgram: str | None  # noqa: N815 -- nixpkgs' name
    priority: int | None


class _Missing(BaseModel):
    status: Literal["missing"]
    name: str
    within: str


class _NotAPackage(BaseModel):
    status: Literal["not a package"]
    name: str
    attribute: str
    position: list[int]
    type: str


class _Flawed(BaseModel):
    status: Literal["broken", "unfree", "insecure", "wrong platform", "throws"]
    name: str
    attribute: str
    position: list[int] | None


class _TooLarge(BaseModel):
    status: Literal["too large"]
    name: str
    attribute: str
    field: str
    size: int
    limit: int


class _Definition(BaseModel):
    status: Literal["definition"]
    name: str
    attribute: str
    definition: str
    installables: list[str]


_Item = _Available | _Missing | _NotAPackage | _Flawed | _TooLarge | _Definition


class _Answer(BaseModel):
    packages: list[Annotated[_Item, Field(discriminator="status")]]
    names: dict[str, list[str]]


_ANSWER = TypeAdapter(_Answer)

_REASONS = {
    "broken": Reason.BROKEN,
    "unfree": Reason.UNFREE,
    "insecure": Reason.INSECURE,
    "wrong platform": Reason.WRONG_PLATFORM,
    "throws": Reason.THROWS,
}

_NIX_TYPES = {"lambda": "function", "set": "set of packages"}

_MOST_WITH_NEAR_NAMES = 5

# Store paths within longer texts.
_OUTPUT = re.compile(r"[0-9a-zA-Z+\-._?=]+", re.ASCII)
_STORE_PATH = re.compile(rf"{STORE_DIRECTORY}/[0-9a-z]{{32}}-[0-9a-zA-Z+\-._?=]+")


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that cannot be had.

    Attributes:
        position: the way to it in nested lists; ``None`` for the config of a definition.
    """

    package: UnavailablePackage
    position: tuple[int, ...] | None = ()


Item = Package | Definition | Flaw


def request_argument(
    packages: Sequence[str] = (), optional: Sequence[str] = (), diagnose: Flaw | None = None
) -> str:
    """Write the ``request`` argument of ``packages.nix``."""
    place = {"name": diagnose.package.name, "position": diagnose.position} if diagnose else None
    return json.dumps({"packages": list(packages), "optional": list(optional), "diagnose": place})


def parse_answer(stdout: bytes) -> tuple[Item, ...]:
    """Read the answer to a request, in the order of its packages, optional ones last.

    A list of packages is as many of them; a definition is itself, and then its contents.

    Raises:
        NixUnusable: it is not what ``packages.nix`` gives.
    """
    try:
        # Nix's strings are bytes, and older versions print them unescaped.
        answer = _ANSWER.validate_json(stdout.decode(errors="replace"))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise NixUnusable(
            f"Nix's answer to an evaluation is not understood: {where}: {problem['msg']}"
        ) from error
    near_names = _near_names(answer)
    return tuple(_interpret(package, near_names.get(package.name, ())) for package in answer.packages)


def _near_names(answer: _Answer) -> Mapping[str, tuple[str, ...]]:
    # For a few of them: searching a large set takes a while, and whoever gets many names wrong knows no one of them.
    missing = [package for package in answer.packages if isinstance(package, _Missing)][
        :_MOST_WITH_NEAR_NAMES
    ]
    sets = {within: NearNames(within, answer.names.get(within, ())) for within in {p.within for p in missing}}
    return {package.name: sets[package.within].of(package.name) for package in missing}


def _interpret(item: _Item, near: tuple[str, ...]) -> Item:
    match item:
        case _Available():
            return _package(item)
        case _Definition():
            return _definition(item)
        case _Missing(name=name):
            return Flaw(UnavailablePackage(name, Reason.MISSING, near_names=near))
        case _NotAPackage(name=name, attribute=attribute, position=position):
            found = _NIX_TYPES.get(item.type, item.type)
            explanation = f"{_place(attribute, position)} is a {found}, not a derivation"
            return Flaw(UnavailablePackage(name, Reason.NOT_A_PACKAGE, explanation))
        case _TooLarge(name=name, attribute=attribute, field=field, size=size, limit=limit):
            explanation = f"{attribute}: {field} is {size}, and {limit} is the limit"
            return Flaw(UnavailablePackage(name, Reason.TOO_LARGE, explanation))
        case _Flawed(name=name, position=place):
            reason = UnavailablePackage(name, _REASONS[item.status])
            return Flaw(reason, None if place is None else tuple(place))


def _place(attribute: str, position: Sequence[int]) -> str:
    return attribute + "".join(f"[{index}]" for index in position)


def _package(item: _Available) -> Package | Flaw:
    try:
        derivation = StorePath.parse(item.derivation)
        outputs = {_output_name(name): StorePath.parse(path) for name, path in sorted(item.outputs.items())}
    except ValueError as error:
        return Flaw(UnavailablePackage(item.name, Reason.NOT_A_PACKAGE, str(error)))
    return Package(
        requested_name=item.name,
        attribute=_place(item.attribute, item.position),
        derivation=derivation,
        outputs=outputs,
        name=item.pname,
        version=item.version,
        description=item.description,
        licences=tuple(item.licences),
        main_program=item.mainProgram,
        priority=DEFAULT_PRIORITY if item.priority is None else item.priority,
    )


def _definition(item: _Definition) -> Definition | Flaw:
    try:
        execution, layers = parse_definition(item.definition)
    except InvalidDefinition as error:
        explanation = f"{item.attribute}: {error}"
        return Flaw(UnavailablePackage(item.name, Reason.INVALID_DEFINITION, explanation))
    try:
        paths = _mentioned(item.definition, item.installables)
    except ValueError as error:
        return Flaw(UnavailablePackage(item.name, Reason.INVALID_DEFINITION, f"{item.attribute}: {error}"))
    return Definition(item.name, item.attribute, execution, layers, tuple(item.installables), paths)


def _mentioned(text: str, installables: Sequence[str]) -> tuple[StorePath, ...]:
    """Find the store paths in a text that Nix is going to provide. A path may be followed by what could be a part of its name."""
    names = {_name(installable) for installable in installables}
    found = set()
    for match in set(_STORE_PATH.findall(text)):
        path = StorePath.parse(match)
        # One look-up for each prefix of a name: a text may mention thousands of paths, and refer to thousands
        # of packages.
        lengths = range(len(path.name), 0, -1)
        ours = next((path.name[:length] for length in lengths if path.name[:length] in names), None)
        if ours is not None:
            found.add(StorePath.parse(match.removesuffix(path.name) + ours))
    return tuple(sorted(found))


def _output_name(name: str) -> str:
    # It becomes a part of an argument, `<derivation>!<output>`. Allows what Nix allows in names of store
    # paths.
    if _OUTPUT.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not the name of an output")
    return name


def _name(installable: str) -> str:
    derivation, _, output = installable.partition("!")
    name = StorePath.parse(derivation).name
    if not output:
        return name
    name = name.removesuffix(".drv")
    return name if _output_name(output) == "out" else f"{name}-{output}"
