"""Evaluate names in a package set with ``nix-instantiate``, and find the packages that make an evaluation fail.

The program is ``expressions/packages.nix``. A request goes in as JSON in an argument, and the answer comes
back as JSON; no client text becomes part of an expression.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from typing import Annotated, Literal

import structlog
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from nixery.closure import STORE_DIRECTORY, StorePath
from nixery.errors import (
    EVALUATION_TIMEOUT,
    AnswerTooLarge,
    EvaluationFailed,
    NixStoreFull,
    NixTimedOut,
    NixUnusable,
    PathsCollected,
    Reason,
    UnavailablePackage,
)
from nixery.image.definition import parse_definition
from nixery.image.meta_packages import META_PACKAGES
from nixery.image.os_release import InvalidFacts, os_release_file
from nixery.image.platform import Platform
from nixery.image.spelling import NearNames, missing_package
from nixery.nix.build_log import LOG_TAIL
from nixery.nix.error_message import (
    NixMessage,
    collected_path,
    explanation,
    relative,
    reports_full_disk,
    reports_machine_error,
    without_paths,
)
from nixery.nix.options import NixOptions
from nixery.nix.packages import (
    DEFAULT_PRIORITY,
    Definition,
    Facts,
    Flake,
    MetaPackageFound,
    NixExpression,
    NixFiles,
    Package,
    PackageSet,
)
from nixery.nix.processes import Completed, ProcessContext, run_command
from nixery.nix.refusals import Refusal
from nixery.plain_text import shortened

# Limit in bytes for Nix's answer to one evaluation. `packages.nix` bounds the answer for each package, so
# this is some 10,000 of them. Parsing this much JSON holds the interpreter lock for about a tenth of a
# second.
_LARGEST_ANSWER = 8 * 1024 * 1024

# Processes that one client request may start. Usually it starts one; if an error cannot be caught, finding
# one package among sixty takes fourteen.
MOST_PROCESSES = 16

# Signals that end a process because of its own work. An administrator, or the kernel without memory, sends
# others.
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})

# Missing packages for which similar names are searched: in a large set, each search takes a while.
_MOST_WITH_NEAR_NAMES = 5

# Lines of stderr: a trace may have thousands, and the message is at its beginning or at its end.
_FIRST_LINES = _LAST_LINES = 100

# Characters of a message in the log.
_LONGEST_LOGGED = 4000

# The bounds of `packages.nix` for the command of a meta-package: words, and characters of each.
_LONGEST_COMMAND, _LONGEST_WORD = 16, 256

_NOT_ISOLATED = "too many packages of this request do not evaluate; this one was not evaluated separately"


@dataclass(frozen=True, slots=True)
class Flaw:
    """A requested name that is not available.

    Attributes:
        position: its place in nested lists; ``None`` for the config of a definition.
        refusal: the meta-data of a package that the package set may refuse; its reason is a guess, since it may
            fail for another one.
    """

    package: UnavailablePackage
    position: tuple[int, ...] | None = ()
    refusal: Refusal | None = None


Item = Package | Definition | MetaPackageFound | Facts | Flaw


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
        lines = tuple(relative(line, self._root) for line in found[-LOG_TAIL:])
        raise EvaluationFailed(lines, self._said(found))

    async def explain(self, flaw: Flaw) -> UnavailablePackage:
        """Explain why a package is not available: by its meta-data, and by Nix's error message if there is one."""
        package = flaw.package
        if package.explanation or package.reason is Reason.MISSING:
            return package
        if self._left <= 0:
            return explanation_of_flaw(flaw)
        # tryEval reports that something was thrown, but not what. Without it, Nix prints the message.
        try:
            _, stderr = await self._instantiate(request_argument(diagnose=flaw), trace=True)
        except AnswerTooLarge:
            return explanation_of_flaw(flaw)
        message = NixMessage.parse(stderr)
        found = Refusal.parse(message)
        _log.info(
            "package does not evaluate",
            package=package.name,
            reason=str(found.reason if found else package.reason),
            message=shortened(message.text, _LONGEST_LOGGED),
            position=str(message.positions[0]) if message.positions else None,
        )
        if found is None:
            return replace(package, explanation=message.relative_to(self._root))
        return explanation_of_flaw(flaw, found)

    async def arguments(self) -> frozenset[str]:
        """Return the names of the arguments that the package set declares; a flake declares none.

        Raises:
            EvaluationFailed: the package set does not evaluate.
            NixTimedOut: it timed out.
            NixUnusable: Nix cannot be run.
        """
        if isinstance(self._package_set, Flake):
            return frozenset()
        completed, stderr = await self._instantiate("", "arguments.nix")
        if completed.exit_code != 0:
            raise EvaluationFailed((), self._said(stderr))
        try:
            return _ARGUMENTS.validate_json(completed.stdout)
        except ValidationError as error:
            raise NixUnusable("cannot parse Nix's list of arguments") from error

    async def _evaluate(
        self, packages: Sequence[str], optional: Sequence[str]
    ) -> tuple[Item, ...] | list[str]:
        """Evaluate names; if the set makes that fail, return the end of stderr as a list."""
        try:
            # A client may request any name, and reading a trace takes a while: only for a single name.
            single = len(packages) + len(optional) == 1
            completed, stderr = await self._instantiate(request_argument(packages, optional), trace=single)
        except AnswerTooLarge as error:
            what = ", ".join((*packages, *optional)) or "the package set"
            raise AnswerTooLarge(f"what the package set says about {what}", error.limit) from None
        if completed.exit_code == 0:
            # With a large package set, looking for near names is work for a while.
            return await asyncio.to_thread(parse_answer, completed.stdout)
        gone = collected_path([explanation(stderr)])
        if gone is not None:
            raise PathsCollected(gone)
        if -completed.exit_code in _CRASHES and (packages or optional):
            # A package can make Nix crash, for example by a recursion in a library. The others go on without it.
            return [f"error: Nix crashed ({signal.Signals(-completed.exit_code).name})"]
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
            return (Flaw(UnavailablePackage(names[0], Reason.THROWS, self._said(stderr))),)
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

    async def _instantiate(
        self, argument: str, program: str = "packages.nix", *, trace: bool = False
    ) -> tuple[Completed, Sequence[str]]:
        self._left -= 1
        package_set = self._readable_package_set()
        with instantiation(self._platform, package_set, self._options, argument, program=program) as (
            arguments,
            context,
        ):
            try:
                return await run_command(
                    self._timeout,
                    *arguments,
                    *(("--show-trace",) if trace else ()),
                    *self._expression_arguments(),
                    context=context,
                    first=_FIRST_LINES,
                    last=_LAST_LINES,
                )
            except NixTimedOut as error:
                # A package may have written the path of its set (`builtins.trace`).
                lines = tuple(relative(line, self._root) for line in error.log_tail)
                raise NixTimedOut(
                    error.derivation, error.seconds, lines, setting=EVALUATION_TIMEOUT
                ) from None

    def _said(self, stderr: Sequence[str]) -> str:
        """Describe Nix's error to clients, who must not learn a path of this machine."""
        return NixMessage.parse(stderr).relative_to(self._root)

    @property
    def _root(self) -> str | None:
        return root_of(self._package_set)

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


def root_of(package_set: PackageSet) -> str | None:
    """Return the directory of a package set, to which positions are relative; ``None`` for a flake."""
    match package_set:
        case NixFiles(path):
            # A set in one file may read its neighbours.
            return str(path.parent if path.is_file() else path)
        case Flake():
            return None


@contextmanager
def instantiation(
    platform: Platform,
    package_set: PackageSet,
    options: NixOptions,
    request: str,
    *,
    program: str = "packages.nix",
) -> Iterator[tuple[Sequence[str], ProcessContext]]:
    """Make the command that runs one of ``expressions/``, while the context lasts.

    Args:
        platform: that packages are built for.
        package_set: to evaluate.
        options: of the operator.
        request: JSON.
        program: its file.
    """
    # An evaluation that builds has to write.
    mode = (
        "--readonly-mode" if options.read_only and not options.import_from_derivation else "--read-write-mode"
    )
    with as_file(files("nixery.nix") / "expressions") as expressions:
        file = expressions / program
        # A pure evaluation reads no file of this machine, including this one.
        is_pure = isinstance(package_set, Flake) and package_set.pure
        arguments = ["--expr", file.read_text()] if is_pure else [str(file)]
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
            options.context(package_set, _LARGEST_ANSWER),
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
    fhs: bool
    entry: str = ""  # of a meta-package: the attribute path


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
    entry: str = ""


class _Grounds(BaseModel):
    fullName: str  # noqa: N815 -- the names of `packages.nix`
    pname: str
    licences: list[str]
    vulnerabilities: list[str]
    platforms: list[str]
    configurable: bool


class _Flawed(BaseModel):
    status: Literal["broken", "unfree", "insecure", "wrong platform", "throws"]
    name: str
    attribute: str
    position: list[int] | None
    grounds: _Grounds | None = None


class _TooLarge(BaseModel):
    status: Literal["too large"]
    name: str
    attribute: str
    field: str
    size: int
    limit: int


class _MetaPackage(BaseModel):
    status: Literal["meta-package"]
    name: str
    # Another program may have written an index, with other bounds.
    command: Annotated[
        list[Annotated[str, Field(max_length=_LONGEST_WORD)]], Field(max_length=_LONGEST_COMMAND)
    ]


class _Incomplete(BaseModel):
    status: Literal["incomplete"]
    name: str
    lacking: list[str]


class _InvalidMetaPackage(BaseModel):
    status: Literal["invalid meta-package"]
    name: str
    attribute: str
    field: str


class _Facts(BaseModel):
    status: Literal["facts"]
    name: str
    osRelease: dict[str, str]  # noqa: N815 -- the name of `packages.nix`


class _Definition(BaseModel):
    status: Literal["definition"]
    name: str
    attribute: str
    definition: str
    installables: list[str]


AnswerItem = Annotated[
    _Available
    | _Missing
    | _NotAPackage
    | _Flawed
    | _TooLarge
    | _MetaPackage
    | _Incomplete
    | _InvalidMetaPackage
    | _Facts
    | _Definition,
    Field(discriminator="status"),
]


class _Answer(BaseModel):
    packages: list[AnswerItem]
    names: dict[str, list[str]]


_ANSWER = TypeAdapter(_Answer)
_ARGUMENTS = TypeAdapter(frozenset[str])

_REASONS = {
    "broken": Reason.BROKEN,
    "unfree": Reason.UNFREE,
    "insecure": Reason.INSECURE,
    "wrong platform": Reason.WRONG_PLATFORM,
    "throws": Reason.THROWS,
}

_NIX_TYPES = {"lambda": "function", "set": "set of packages"}

_log = structlog.get_logger("nixery.nix")

_OUTPUT = re.compile(r"[0-9a-zA-Z+\-._?=]{1,256}", re.ASCII)
# Store paths within longer texts.
_STORE_PATH = re.compile(rf"{STORE_DIRECTORY}/[0-9a-z]{{32}}-[0-9a-zA-Z+\-._?=]+")


def request_argument(
    packages: Sequence[str] = (), optional: Sequence[str] = (), diagnose: Flaw | None = None
) -> str:
    """Return the ``request`` argument of ``packages.nix``."""
    place = {"name": diagnose.package.name, "position": diagnose.position} if diagnose else None
    return json.dumps(
        {
            "packages": list(packages),
            "optional": list(optional),
            "diagnose": place,
            "metaPackages": meta_packages_argument(),
        }
    )


def meta_packages_argument() -> Mapping[str, object]:
    """Return the table of meta-packages as ``packages.nix`` reads it."""
    return {name: found.as_json() for name, found in META_PACKAGES.items()}


def parse_answer(stdout: bytes) -> tuple[Item, ...]:
    """Parse the answer of ``packages.nix``; items are in the order of the request, optional ones last.

    A list of packages gives an item for each; a definition and a meta-package give themselves, then their contents.

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
    """Check an item of an answer, and make it what it describes, or the reason why that is not available."""
    match item:
        case _Available():
            return _package(item)
        case _Definition():
            return _definition(item)
        case _MetaPackage(name=name, command=command):
            return MetaPackageFound(name, tuple(command))
        case _Facts():
            return _facts(item)
        case _Flawed(name=name, position=place):
            reason = UnavailablePackage(name, _REASONS[item.status])
            return Flaw(reason, None if place is None else tuple(place), _refusal(item))
        case _:
            return Flaw(_unavailable(item, near))


def _unavailable(
    item: _Missing | _NotAPackage | _TooLarge | _Incomplete | _InvalidMetaPackage, near: tuple[str, ...]
) -> UnavailablePackage:
    match item:
        case _Missing(name=name):
            return missing_package(name, near)
        case _NotAPackage(name=name, attribute=attribute, position=position):
            found = _NIX_TYPES.get(item.type, item.type)
            explanation = f"{item.entry or _place(attribute, position)} is a {found}, not a derivation"
            return UnavailablePackage(name, Reason.NOT_A_PACKAGE, explanation)
        case _TooLarge(name=name, attribute=attribute, field=field, size=size, limit=limit):
            explanation = f"{attribute}: {field} is {size}, and {limit} is the limit"
            return UnavailablePackage(name, Reason.TOO_LARGE, explanation)
        case _Incomplete(name=name, lacking=lacking):
            explanation = f"it stands for {_listed(lacking)}, which the package set does not have"
            return UnavailablePackage(name, Reason.INCOMPLETE, explanation)
        case _InvalidMetaPackage(name=name, attribute=attribute, field=where):
            place = f"nixery.metaPackages.{attribute}" + (f".{where}" if where else "")
            explanation = (
                f"{place} is not valid; a meta-package is a list of attribute paths, or a set of packages, "
                "optional, command (lists of strings) and description (a string)"
            )
            return UnavailablePackage(name, Reason.INVALID_META_PACKAGE, explanation)


def require_valid(item: Package | Definition | MetaPackageFound | Facts) -> None:
    """Check that an evaluation can have returned an item that another program may have written.

    Raises:
        ValueError: it has another path, name of an output, config, number of layers, command or fact than
            ``interpret`` returns.
    """
    match item:
        case MetaPackageFound(command=command):
            _require_command(command)
        case Facts(os_release=given):
            os_release_file(given)
        case Package():
            for path in (item.derivation, *item.outputs.values()):
                StorePath.parse(str(path))
            for name in item.outputs:
                _output_name(name)
        case Definition():
            for installable in item.installables:
                _store_name(installable)
            for path in item.store_paths:
                StorePath.parse(str(path))
            parse_definition(json.dumps({"config": item.execution.as_json(), "layers": item.layers}))


def _refusal(item: _Flawed) -> Refusal | None:
    if item.grounds is None:
        return None
    found = item.grounds
    return Refusal(
        _REASONS[item.status],
        found.fullName,
        found.pname,
        found.licences,
        found.vulnerabilities,
        found.platforms,
        configurable=found.configurable,
    )


def explanation_of_flaw(flaw: Flaw, found: Refusal | None = None) -> UnavailablePackage:
    """Explain why the package set refuses a package.

    Args:
        flaw: a name with its meta-data.
        found: the refusal that nixpkgs reports; ``None`` if only the meta-data is known.
    """
    package, known = flaw.package, flaw.refusal
    if found is not None and known is not None:
        found = found.found_in(known)
    refusal = found or known
    if refusal is None or refusal.reason is Reason.THROWS:
        return package
    of = (known.name if known is not None else "") or refusal.name
    return UnavailablePackage(package.name, refusal.reason, refusal.explanation(of))


def _place(attribute: str, position: Sequence[int]) -> str:
    return attribute + "".join(f"[{index}]" for index in position)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _require_command(command: Sequence[str]) -> None:
    if len(command) > _LONGEST_COMMAND or any(len(word) > _LONGEST_WORD or "\0" in word for word in command):
        raise ValueError("a command that no meta-package has")


def _facts(item: _Facts) -> Facts | Flaw:
    try:
        os_release_file(item.osRelease)
    except InvalidFacts as error:
        explanation = f"nixery.osRelease: {error}"
        return Flaw(UnavailablePackage(item.name, Reason.INVALID_FACTS, explanation))
    return Facts(item.osRelease)


def _package(item: _Available) -> Package | Flaw:
    try:
        derivation = StorePath.parse(item.derivation)
        outputs = {_output_name(name): StorePath.parse(path) for name, path in sorted(item.outputs.items())}
    except ValueError as error:
        return Flaw(UnavailablePackage(item.name, Reason.NOT_A_PACKAGE, str(error)))
    return Package(
        requested_name=item.name,
        attribute=item.entry or _place(item.attribute, item.position),
        derivation=derivation,
        outputs=outputs,
        name=item.pname,
        version=item.version,
        description=item.description,
        licences=tuple(item.licences),
        main_program=item.mainProgram,
        priority=DEFAULT_PRIORITY if item.priority is None else item.priority,
        fhs=item.fhs,
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
