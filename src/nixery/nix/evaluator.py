"""Evaluation by ``nix-instantiate``, and finding out whose fault it is when that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from nixery.errors import (
    AnswerTooLarge,
    EvaluationFailed,
    NixStoreFull,
    NixUnusable,
    PathsCollected,
    Reason,
    UnavailablePackage,
)
from nixery.image.platform import Platform
from nixery.nix.answers import Flaw, Item, parse_answer, request_argument
from nixery.nix.error_message import (
    collected_path,
    explanation,
    is_about_a_full_disk,
    is_trouble_of_the_machine,
    without_paths,
)
from nixery.nix.options import NixOptions
from nixery.nix.packages import Details, Flake, NixExpression, NixFiles, PackageSet
from nixery.nix.processes import Completed, run_command

_INDEX = TypeAdapter(dict[str, Details])

# Bytes of Nix's answer to one evaluation. `packages.nix` bounds the answer for one package or definition, so
# this is some 10,000 of them. Parsing JSON holds the interpreter's lock, about a tenth of a second for this
# much.
_ANSWER = 8 * 1024 * 1024

# The same for the list of a whole package set; that of nixpkgs has 7 MB.
_INDEX_ANSWER = 24 * 1024 * 1024

# Processes that one client request may start. Usually it starts one; if an error cannot be caught, finding
# one package among sixty takes fourteen.
MOST_PROCESSES = 16

_NOT_LOOKED_INTO = "too much of this request does not evaluate, so this was not evaluated by itself"


def _listed(stdout: bytes) -> Mapping[str, Details]:
    # Nix's strings are bytes, and older versions print them unescaped.
    return _INDEX.validate_json(stdout.decode(errors="replace"))


class Evaluation:
    """Evaluate in a package set: usually in one process, and never in more than a fixed number.

    Args:
        platform: that the packages are built for.
        package_set: where it looks them up.
        timeout: seconds for each process.
        options: of the operator.
        expression: added to the package set.
        processes: the most that it starts.
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
        """Evaluate some names.

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
            # If not even the empty request evaluates, the set is broken, and this raises.
            await self.of((), ())
            return await self._find_culprits(packages, optional, found)
        # Clients must not learn the set's path on this machine.
        lines = tuple(self._without_place(line) for line in found)
        raise EvaluationFailed(lines, explanation(lines))

    async def _evaluate(
        self, packages: Sequence[str], optional: Sequence[str]
    ) -> tuple[Item, ...] | list[str]:
        """Evaluate some names; if the set makes that fail, return the end of stderr as a list."""
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
        if completed.exit_code < 0 or is_trouble_of_the_machine(stderr):
            if is_about_a_full_disk(explanation(stderr)):
                raise NixStoreFull
            # Nobody's package is to blame, and a client that asks again may well be served.
            reason = explanation(stderr) or f"it was ended by signal {-completed.exit_code}"
            raise NixUnusable(f"Nix could not evaluate: {without_paths(reason)}")
        return list(stderr)

    async def index(self, *, details: bool) -> Mapping[str, Details]:
        """List the package set.

        Raises:
            EvaluationFailed: the set, or something that the listing evaluated, is broken.
            AnswerTooLarge: the answer exceeds its limit.
            NixTimedOut: it timed out.
            NixUnusable: Nix cannot be run.
        """
        try:
            completed, stderr = await self._instantiate(
                json.dumps({"details": details}), "index.nix", _INDEX_ANSWER
            )
        except AnswerTooLarge as error:
            raise AnswerTooLarge("the list of the package set", error.limit) from None
        if completed.exit_code != 0:
            if not details:
                await self.of((), ())  # it says what is wrong
            raise EvaluationFailed((), without_paths(explanation(stderr)))
        try:
            return await asyncio.to_thread(_listed, completed.stdout)
        except ValidationError as error:
            raise NixUnusable("Nix's list of a package set is not understood") from error

    async def names(self) -> list[str]:
        """Return the names of all attributes of the set, sorted by bytes; not all of them need to be packages.

        Raises:
            BuildError: as above.
        """
        return sorted(await self.index(details=False))

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
                items += [Flaw(UnavailablePackage(name, Reason.THROWS, _NOT_LOOKED_INTO)) for name in half]
                continue
            of_half = [n for n in half if n in packages], [n for n in half if n in optional]
            found = await self._evaluate(*of_half)
            items += found if isinstance(found, tuple) else await self._find_culprits(*of_half, found)
        return tuple(items)

    async def explain(self, flaw: Flaw) -> UnavailablePackage:
        """Add Nix's own words on why a package cannot be had, if it has any."""
        package = flaw.package
        if package.explanation or package.reason is Reason.MISSING or self._left <= 0:
            return package
        # tryEval tells that something was thrown, not what. Without it, Nix says so.
        try:
            _, stderr = await self._instantiate(request_argument(diagnose=flaw))
        except AnswerTooLarge:
            return package
        return UnavailablePackage(package.name, package.reason, explanation(stderr))

    async def _instantiate(
        self, argument: str, program: str = "packages.nix", answer: int = _ANSWER
    ) -> tuple[Completed, Sequence[str]]:
        self._left -= 1
        with as_file(files("nixery.nix") / "expressions") as expressions:
            return await run_command(
                self._timeout,
                "nix-instantiate",
                *self._program(expressions / program),
                "--eval",
                "--strict",
                "--json",
                "--read-write-mode",  # or no derivation is written, and there is nothing to realise
                *self._package_set_arguments(),
                *("--argstr", "system", self._platform.nix_system),
                *("--argstr", "request", argument),
                *self._expression_arguments(),
                *self._options.for_evaluation(self._readable_package_set(), str(expressions)),
                context=self._options.context(self._readable_package_set(), answer),
            )

    def _without_place(self, line: str) -> str:
        return (
            line.replace(f"{self._package_set.path}/", "")
            if isinstance(self._package_set, NixFiles)
            else line
        )

    def _program(self, file: Path) -> Sequence[str]:
        match self._readable_package_set():
            case Flake(pure=True):
                # A pure evaluation reads no file of this machine, ours included.
                return ("--expr", file.read_text())
            case _:
                return (str(file),)

    def _readable_package_set(self) -> PackageSet:
        # Who is at the command line may refer to his own files.
        if self._expression is None:
            return self._package_set
        match self._package_set:
            case NixFiles():
                return replace(self._package_set, self_contained=False)
            case Flake():
                return replace(self._package_set, pure=False)

    def _package_set_arguments(self) -> Sequence[str]:
        match self._package_set:
            case NixFiles(path):
                return ("--argstr", "packageSet", str(path))
            case Flake(reference):
                return ("--argstr", "flake", reference)

    def _expression_arguments(self) -> Sequence[str]:
        if self._expression is None:
            return ()
        return ("--argstr", "name", self._expression.attribute, "--arg", "expression", self._expression.text)
