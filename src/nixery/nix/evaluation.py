"""What the evaluation of ``packages.nix`` answers, and what it means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from nixery.closure.store_path import StorePath
from nixery.errors import NixUnusable, Reason, UnavailablePackage
from nixery.image.near_names import NearNames
from nixery.image.request import ImageRequest
from nixery.nix.builder import DEFAULT_PRIORITY, Package


class _Available(BaseModel):
    status: Literal["available"]
    name: str
    attribute: str
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
    type: str


class _Flawed(BaseModel):
    status: Literal["broken", "unfree", "insecure", "wrong platform", "throws"]
    name: str


class _Answer(BaseModel):
    packages: list[Annotated[_Available | _Missing | _NotAPackage | _Flawed, Field(discriminator="status")]]
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

Evaluated = Package | UnavailablePackage


def request_argument(
    packages: Sequence[str] = (), optional: Sequence[str] = (), diagnose: str | None = None
) -> str:
    """Write the ``request`` argument of ``packages.nix``."""
    return json.dumps({"packages": list(packages), "optional": list(optional), "diagnose": diagnose})


def parse_answer(stdout: bytes, request: ImageRequest) -> tuple[Evaluated, ...]:
    """Read the answer to a request, in the order of its packages, optional ones last.

    Raises:
        NixUnusable: it is not what ``packages.nix`` gives.
    """
    try:
        answer = _ANSWER.validate_json(stdout)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise NixUnusable(
            f"Nix's answer to an evaluation is not understood: {where}: {problem['msg']}"
        ) from error
    near_names = _near_names(answer)
    return tuple(
        _interpret(package, near_names.get(package.name, ()), request) for package in answer.packages
    )


def _near_names(answer: _Answer) -> Mapping[str, tuple[str, ...]]:
    # For a few of them: searching a large set takes a while, and whoever gets many names wrong knows no one of them.
    missing = [package for package in answer.packages if isinstance(package, _Missing)][
        :_MOST_WITH_NEAR_NAMES
    ]
    sets = {within: NearNames(within, answer.names.get(within, ())) for within in {p.within for p in missing}}
    return {package.name: sets[package.within].of(package.name) for package in missing}


def _interpret(
    package: _Available | _Missing | _NotAPackage | _Flawed,
    near: tuple[str, ...],
    request: ImageRequest,
) -> Evaluated:
    match package:
        case _Available():
            try:
                derivation = StorePath.parse(package.derivation)
                outputs = {name: StorePath.parse(path) for name, path in sorted(package.outputs.items())}
            except ValueError as error:
                return UnavailablePackage(package.name, Reason.NOT_A_PACKAGE, str(error))
            return Package(
                requested_name=package.name,
                attribute=package.attribute,
                derivation=derivation,
                outputs=outputs,
                name=package.pname,
                version=package.version,
                description=package.description,
                licences=tuple(package.licences),
                main_program=package.mainProgram,
                priority=DEFAULT_PRIORITY if package.priority is None else package.priority,
            )
        case _Missing():
            by_meta_package = package.name not in request.requested
            return UnavailablePackage(
                package.name,
                Reason.MISSING,
                "part of every image with a shell" if by_meta_package else "",
                near,
            )
        case _NotAPackage():
            found = _NIX_TYPES.get(package.type, package.type)
            return UnavailablePackage(
                package.name, Reason.NOT_A_PACKAGE, f"{package.attribute} is a {found}, not a derivation"
            )
        case _Flawed():
            return UnavailablePackage(package.name, _REASONS[package.status])
