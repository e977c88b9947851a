"""Evaluate names in a package set with ``nix-instantiate``, and find the packages that make an evaluation fail.

The program is ``expressions/packages.nix``. A request goes in as JSON in an argument, and the answer comes
back as JSON; no client text becomes part of an expression.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from nixery.closure import STORE_DIRECTORY, StorePath
from nixery.errors import (
    AnswerTooLarge,
    EvaluationFailed,
    NixStoreFull,
    NixUnusable,
    PathsCollected,
    Reason,
    UnavailablePackage,
)
from nixery.image.definition import parse_definition
from nixery.image.platform import Platform
from nixery.image.spelling import NearNames
from nixery.nix.error_message import (
    collected_path,
    explanation,
    reports_full_disk,
    reports_machine_error,
    without_paths,
)
from nixery.nix.options import NixOptions
from nixery.nix.packages import (
    DEFAULT_PRIORITY,
    Definition,
    Flake,
    NixExpression,
    NixFiles,
    Package,
    PackageSet,
)
from nixery.nix.processes import Completed, ProcessContext, run_command

# Limit in bytes for Nix's answer to one evaluation. `packages.nix` bounds the answer for each package, so
# this is some 10,000 of them. Parsing this much JSON holds the interpreter lock for about a tenth of a
# second.
_LARGEST_ANSWER = 8 * 1024 * 1024

# Processes that one client request may start. Usually it starts one; if an error cannot be caught, finding
# one package among sixty takes fourteen.
MOST_PROCESSES = 16

# Missing packages for which similar names are searched: in a large set, each search takes a while.
_MOST_WITH_NEAR_NAMES = 5

_NOT_ISOLATED = "too many packages of this request do not evaluate; this one was not evaluated separately"


@dataclass(frozen=True, slots=True)
class Flaw:
    """A requested name that is not available.

    Attributes:
        position: its place in nested lists; ``None`` for the config of a definition.
    """

    package: UnavailablePackage
    position: tuple[int, ...] | None = ()


Item = Package | Definition | Flaw


class Evaluation:
    """Evaluates names in a package set: usually in one process, and never in more than a fixed number.

    Args:
        platform: that the packages are built for.
        package_set: where names are looked up.
        timeout: seconds for each process.
        options: of the operator.
        expression: added to the package set.
        processes: the most processes to start.
    """

    def __init__(
        self,
        platform: Platform,
        package_set: PackageSet,
        timeout: float,
        options: NixOptions,
        expression: NixExpression | None = None,
        processes: int = MOST_PROCESSES,
    ) -> None:
        self._left = processes
        self._expression = expression
        self._platform = platform
        self._package_set = package_set
        self._timeout = timeout
        self._options = options

    async def of(self, packages: Sequence[str], optional: Sequence[str]) -> tuple[Item, ...]:
        """Evaluate names.

        Raises:
            EvaluationFailed: the set itself is broken.
            AnswerTooLarge: the answer exceeds its limit.
            PathsCollected: a store path that it refers to is missing.
            NixTimedOut: it timed out.
            NixStoreFull: no space left for derivations.
            NixUnusable: Nix cannot be run.
        """
        found = await self._evaluate(packages, optional)
        if isinstance(found, tuple):
            return found
        if packages or optional:
            # If even the empty request fails, the set itself is broken, and this raises.
            await self.of((), ())
            return await self._find_culprits(packages, optional, found)
        # Clients must not learn the set's path on this machine.
        lines = tuple(self._without_location(line) for line in found)
        raise EvaluationFailed(lines, explanation(lines))

    async def explain(self, flaw: Flaw) -> UnavailablePackage:
        """Add Nix's error message, if there is one, to the reason why a package is not available."""
        package = flaw.package
        if package.explanation or package.reason is Reason.MISSING or self._left <= 0:
            return package
        # tryEval reports that something was thrown, but not what. Without it, Nix prints the message.
        try:
            _, stderr = await self._instantiate(request_argument(diagnose=flaw))
        except AnswerTooLarge:
            return package
        return UnavailablePackage(package.name, package.reason, explanation(stderr))

    async def _evaluate(
        self, packages: Sequence[str], optional: Sequence[str]
    ) -> tuple[Item, ...] | list[str]:
        """Evaluate names; if the set makes that fail, return the end of stderr as a list."""
        try:
            completed, stderr = await self._instantiate(request_argument(packages, optional))
        except AnswerTooLarge as error:
            what = ", ".join((*packages, *optional)) or "the package set"
            raise AnswerTooLarge(f"what the package set says about {what}", error.limit) from None
        if completed.exit_code == 0:
            # With a large package set, looking for near names is work for a while.
            return await asyncio.to_thread(parse_answer, completed.stdout)
        gone = collected_path([explanation(stderr)])
        if gone is not None:
            raise PathsCollected(gone)
        if completed.exit_code < 0 or reports_machine_error(stderr):
            if reports_full_disk(explanation(stderr)):
                raise NixStoreFull
            # No package caused this, and a retry may succeed.
            reason = explanation(stderr) or f"it was ended by signal {-completed.exit_code}"
            raise NixUnusable(f"Nix could not evaluate: {without_paths(reason)}")
        return list(stderr)

    async def _find_culprits(
        self, packages: Sequence[str], optional: Sequence[str], stderr: Sequence[str]
    ) -> tuple[Item, ...]:
        # Nix cannot catch some errors (a type error, an abort), and they end the whole evaluation. Halving
        # the request finds the packages that cause them.
        names = [*packages, *optional]
        if len(names) == 1:
            return (Flaw(UnavailablePackage(names[0], Reason.THROWS, explanation(stderr))),)
        middle = len(names) // 2
        items: list[Item] = []
        for half in (names[:middle], names[middle:]):
            if self._left <= 0:
                items += [Flaw(UnavailablePackage(name, Reason.THROWS, _NOT_ISOLATED)) for name in half]
                continue
            of_half = [n for n in half if n in packages], [n for n in half if n in optional]
            found = await self._evaluate(*of_half)
            items += found if isinstance(found, tuple) else await self._find_culprits(*of_half, found)
        return tuple(items)

    async def _instantiate(self, argument: str) -> tuple[Completed, Sequence[str]]:
        self._left -= 1
        package_set = self._readable_package_set()
        with instantiation(self._platform, package_set, self._options, argument, _LARGEST_ANSWER) as (
            arguments,
            context,
        ):
            return await run_command(
                self._timeout, *arguments, *self._expression_arguments(), context=context
            )

    def _without_location(self, line: str) -> str:
        if isinstance(self._package_set, NixFiles):
            return line.replace(f"{self._package_set.path}/", "")
        return line

    def _readable_package_set(self) -> PackageSet:
        # An expression from the command line may refer to files of its author.
        if self._expression is None:
            return self._package_set
        match self._package_set:
            case NixFiles():
                return replace(self._package_set, self_contained=False)
            case Flake():
                return replace(self._package_set, pure=False)

    def _expression_arguments(self) -> Sequence[str]:
        if self._expression is None:
            return ()
        return ("--argstr", "name", self._expression.attribute, "--arg", "expression", self._expression.text)


@contextmanager
def instantiation(
    platform: Platform,
    package_set: PackageSet,
    options: NixOptions,
    request: str,
    limit: int,
    *,
    read_only: bool = False,
) -> Iterator[tuple[Sequence[str], ProcessContext]]:
    """Make the command that runs ``expressions/packages.nix``, while the context lasts.

    Args:
        platform: that packages are built for.
        package_set: to evaluate.
        options: of the operator.
        request: JSON.
        limit: of the answer, in bytes.
        read_only: whether no derivation is written. They cannot be realised then.
    """
    # An evaluation that builds has to write.
    mode = "--readonly-mode" if read_only and not options.import_from_derivation else "--read-write-mode"
    with as_file(files("nixery.nix") / "expressions") as expressions:
        program = expressions / "packages.nix"
        # A pure evaluation reads no file of this machine, including this one.
        is_pure = isinstance(package_set, Flake) and package_set.pure
        arguments = ["--expr", program.read_text()] if is_pure else [str(program)]
        match package_set:
            case Flake(reference):
                arguments += ["--argstr", "flake", reference]
            case NixFiles(path):
                arguments += ["--argstr", "packageSet", str(path)]
        yield (
            (
                "nix-instantiate",
                *arguments,
                *("--eval", "--strict", "--json", mode),
                *("--argstr", "system", platform.nix_system),
                *("--argstr", "request", request),
                *options.for_evaluation(package_set, str(expressions)),
            ),
            options.context(package_set, limit),
        )


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
    within: str  # key of the set in `names`
    depth: int  # components of the name that led into the set


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


AnswerItem = Annotated[
    _Available | _Missing | _NotAPackage | _Flawed | _TooLarge | _Definition, Field(discriminator="status")
]


class _Answer(BaseModel):
    packages: list[AnswerItem]
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

_OUTPUT = re.compile(r"[0-9a-zA-Z+\-._?=]+", re.ASCII)
# Store paths within longer texts.
_STORE_PATH = re.compile(rf"{STORE_DIRECTORY}/[0-9a-z]{{32}}-[0-9a-zA-Z+\-._?=]+")


def request_argument(
    packages: Sequence[str] = (), optional: Sequence[str] = (), diagnose: Flaw | None = None
) -> str:
    """Return the ``request`` argument of ``packages.nix``."""
    place = {"name": diagnose.package.name, "position": diagnose.position} if diagnose else None
    return json.dumps({"packages": list(packages), "optional": list(optional), "diagnose": place})


def parse_answer(stdout: bytes) -> tuple[Item, ...]:
    """Parse the answer of ``packages.nix``; items are in the order of the request, optional ones last.

    A list of packages gives an item for each; a definition gives itself, then its contents.

    Raises:
        NixUnusable: it is not an answer of ``packages.nix``.
    """
    try:
        # Nix's strings are bytes, and older versions print them unescaped.
        answer = _ANSWER.validate_json(stdout.decode(errors="replace"))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        reason = f"{where}: {problem['msg']}" if where else problem["msg"]
        raise NixUnusable(f"cannot parse Nix's answer to an evaluation: {reason}") from error
    near_names = _near_names(answer)
    return tuple(interpret(package, near_names.get(package.name, ())) for package in answer.packages)


def _near_names(answer: _Answer) -> Mapping[str, tuple[str, ...]]:
    missing = [package for package in answer.packages if isinstance(package, _Missing)][
        :_MOST_WITH_NEAR_NAMES
    ]
    # Clients get their own spelling of the set back.
    places = {p.name: (".".join(p.name.split(".")[: p.depth]), p.within) for p in missing}
    sets = {place: NearNames(place[0], answer.names.get(place[1], ())) for place in set(places.values())}
    return {name: sets[place].of(name) for name, place in places.items()}


def interpret(item: AnswerItem, near: tuple[str, ...] = ()) -> Item:
    """Check an item of an answer, and make it a package, a definition, or the reason for neither."""
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
        paths = _referenced_paths(item.definition, item.installables)
    except ValueError as error:
        explanation = f"{item.attribute}: {error}"
        return Flaw(UnavailablePackage(item.name, Reason.INVALID_DEFINITION, explanation))
    return Definition(item.name, item.attribute, execution, layers, tuple(item.installables), paths)


def _referenced_paths(text: str, installables: Sequence[str]) -> tuple[StorePath, ...]:
    """Find the store paths in a text that Nix will provide; the character after a path may look like part of its name."""
    names = {_store_name(installable) for installable in installables}
    found = set()
    for match in set(_STORE_PATH.findall(text)):
        path = StorePath.parse(match)
        # One look-up for each prefix of a name: a text may hold thousands of paths, and refer to thousands of
        # packages.
        lengths = range(len(path.name), 0, -1)
        ours = next((path.name[:length] for length in lengths if path.name[:length] in names), None)
        if ours is not None:
            found.add(StorePath.parse(match.removesuffix(path.name) + ours))
    return tuple(sorted(found))


def _output_name(name: str) -> str:
    # It becomes part of an argument, `<derivation>!<output>`; allow what Nix allows in store paths.
    if _OUTPUT.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not the name of an output")
    return name


def _store_name(installable: str) -> str:
    derivation, _, output = installable.partition("!")
    name = StorePath.parse(derivation).name
    if not output:
        return name
    name = name.removesuffix(".drv")
    return name if _output_name(output) == "out" else f"{name}-{output}"
