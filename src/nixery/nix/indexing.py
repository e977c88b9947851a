"""Evaluate a whole package set, attribute by attribute, for the package index.

``expressions/packages.nix`` reports each attribute on a line of its own as soon as it has evaluated it
(``builtins.trace``). So one attribute that ends the evaluation, however it does that (``abort``, a missing
argument, infinite recursion, no memory, a signal), costs this attribute alone: the next process continues
after it. The lines begin with a mark that the package set cannot know, since it could print lines itself.

For a large package set nothing is written to the Nix store (``--readonly-mode``): the derivations of all of nixpkgs
take a gigabyte for each state.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from nixery.errors import AnswerTooLarge, EvaluationFailed, NixUnusable, Reason, UnavailablePackage
from nixery.image.platform import Platform
from nixery.nix.build_log import LOG_TAIL
from nixery.nix.error_message import NixMessage, explanation, reports_machine_error, without_paths
from nixery.nix.evaluation import (
    AnswerItem,
    Flaw,
    explanation_of_flaw,
    instantiation,
    interpret,
    meta_packages_argument,
    root_of,
)
from nixery.nix.options import NixOptions
from nixery.nix.packages import Attribute, PackageSet
from nixery.nix.processes import Deadline, ProcessContext, readable, run, run_command
from nixery.plain_text import shortened

# Names of attributes, from the top of the package set.
AttributePath = tuple[str, ...]

# Bytes of all names of some sets; those of nixpkgs' top level have 150 kB, and of rPackages 400 kB.
_LARGEST_NAMES = 8 * 1024 * 1024

# Bytes of one attribute's line. Lists and definitions may be longer; they are evaluated when a client asks. So are
# attributes after others whose lines are longer on average than the second number; those of Debian's set have 900.
_LONGEST_ENTRY, _AVERAGE_ENTRY = 64 * 1024, 8 * 1024

# Bytes of the attribute paths for one process, as one argument of a command: Linux allows 128 KiB.
_ARGUMENT = 100_000

# Bytes of a line on stderr that are kept for an error message.
_LONGEST_LINE = 16 * 1024

# Seconds for one attribute, by default, and for all of one call.
_ATTRIBUTE_TIMEOUT, _TIMEOUT = 30.0, 1800.0

# The scheduler's lowest priority but one (nice(1)): requests come first.
_NICENESS = 18

# Errors that what was evaluated before may have caused: the attribute gets another attempt, with a process of its own.
_EXHAUSTED = re.compile(r"out of memory|stack overflow|cannot allocate", re.IGNORECASE)

# Characters of the reason why a package is not available.
_LONGEST_REASON = 500

_NAMES = TypeAdapter(list[list[str] | None])


@dataclass(frozen=True, slots=True)
class Reported:
    """An attribute as the evaluation reported it.

    Attributes:
        path: of the attribute.
        entry: one line of JSON, untrusted; ``None`` if the evaluation failed.
        error: Nix's message on one line, if it failed.
    """

    path: AttributePath
    entry: bytes | None
    error: str = ""


class IndexEvaluation:
    """Evaluates the attributes of one package set.

    Args:
        platform: that packages are built for.
        package_set: to evaluate.
        options: of the operator.
        timeout: seconds for a list of names.
        attribute_timeout: seconds for one attribute.
        explaining: a context that improves the error of a package set that does not evaluate at all.
    """

    def __init__(
        self,
        platform: Platform,
        package_set: PackageSet,
        options: NixOptions,
        timeout: float,
        explaining: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
        attribute_timeout: float = _ATTRIBUTE_TIMEOUT,
    ) -> None:
        self._explaining = explaining
        self._platform = platform
        self._package_set = package_set
        self._options = options
        self._timeout = timeout
        self._attribute_timeout = attribute_timeout

    async def names(self, sets: Sequence[AttributePath]) -> list[list[str] | None]:
        """Return the names of the attributes in each set; ``None`` for an attribute that is missing or no set.

        Raises:
            EvaluationFailed: the package set, or one of the sets, is broken.
            AnswerTooLarge: the names exceed their limit.
            NixTimedOut: it timed out.
            NixUnusable: Nix cannot be run.
        """
        left, found = deque(sets), list[list[str] | None]()
        while left:
            # All of them may exceed one argument of a command.
            batch = _first(left, _ARGUMENT)
            found += await self._names(batch)
            for _ in batch:
                left.popleft()
        return found

    async def _names(self, sets: Sequence[AttributePath]) -> list[list[str] | None]:
        with self._instantiation({"sets": sets}) as (arguments, context):
            try:
                completed, stderr = await run_command(self._timeout, *arguments, context=context)
            except AnswerTooLarge as error:
                raise AnswerTooLarge("the list of the package set", error.limit) from None
        async with self._explaining():
            if completed.exit_code > 0 and _reports_machine_error(explanation(stderr)):
                raise NixUnusable(f"Nix could not evaluate: {without_paths(explanation(stderr))}")
            if completed.exit_code != 0:
                raise EvaluationFailed((), self._said(stderr))
        try:
            found = _NAMES.validate_json(completed.stdout.decode(errors="replace"))
        except ValidationError as error:
            raise NixUnusable("cannot parse Nix's list of a package set") from error
        if len(found) != len(sets):
            raise NixUnusable("Nix's list of a package set has another length than the question")
        return found

    async def describe(
        self, paths: Sequence[AttributePath], report: Callable[[Reported], None], failures: int
    ) -> int:
        """Report every attribute, in the order of the paths; return how many failed.

        Args:
            paths: of attributes.
            report: called for each.
            failures: after this many, the others are reported as failed without an evaluation.

        Raises:
            EvaluationFailed: the package set itself is broken.
            NixUnusable: Nix cannot be run, or this machine is the cause of an error.
        """
        left, failed, is_usable = deque(paths), 0, False
        bounds = _Bounds(len(paths))
        while left:
            if failed >= failures or bounds.is_over:
                what = "take too long" if bounds.is_over else "fail"
                for path in left:
                    report(Reported(path, None, f"not evaluated: too many attributes {what} before it"))
                return failed + len(left)
            begun = len(left)
            error = await self._describe(_first(left, _ARGUMENT), left, report, bounds)
            if error is None:
                continue
            is_machine_error = _reports_machine_error(error)
            if len(left) < begun:
                is_usable = True
                if is_machine_error or _EXHAUSTED.search(error):
                    continue  # to be the first one of the next process
            elif is_machine_error or not is_usable:
                # Raises if this machine is the cause, or the package set itself is broken. Otherwise the words are
                # those of the attribute: `abort "Permission denied"`.
                await self.names([()])
                is_usable = True
            report(Reported(left.popleft(), None, shortened(error, _LONGEST_REASON)))
            failed += 1
        return failed

    async def _describe(
        self,
        paths: Sequence[AttributePath],
        left: deque[AttributePath],
        report: Callable[[Reported], None],
        bounds: _Bounds,
    ) -> str | None:
        """Evaluate paths in one process, and remove those that it reported; return the error of the next one."""
        mark = secrets.token_hex(16)
        prefix = f"trace: {mark} ".encode()
        end = len(left) - len(paths)
        lines: deque[bytes] = deque(maxlen=LOG_TAIL)
        deadline = Deadline(self._attribute_timeout)

        def read_line(line: bytes) -> None:
            if line.startswith(prefix) and len(left) > end:
                if not bounds.is_over:
                    deadline.extend()
                lines.clear()
                report(Reported(left.popleft(), bounds.entry(line[len(prefix) :])))
            else:
                lines.append(line[:_LONGEST_LINE])

        with self._instantiation({"index": paths, "mark": mark}) as (arguments, context):
            try:
                completed = await run(arguments, read_line, deadline, context)
            except TimeoutError:
                return f"evaluation timed out after {self._attribute_timeout:g} s"
        stderr, exit_code = readable(lines), completed.exit_code
        if len(left) == end:
            return None
        if exit_code < 0:
            return self._said(stderr) or f"out of memory: the evaluation was ended by signal {-exit_code}"
        return self._said(stderr) or "the evaluation ended without an error message"

    def _said(self, stderr: Sequence[str]) -> str:
        """Describe Nix's error to clients, who must not learn a path of this machine."""
        return NixMessage.parse(stderr).relative_to(root_of(self._package_set))

    @contextmanager
    def _instantiation(self, request: Mapping[str, object]) -> Iterator[tuple[Sequence[str], ProcessContext]]:
        argument = json.dumps({**request, "metaPackages": meta_packages_argument()})
        with instantiation(self._platform, self._package_set, self._options, argument) as (
            arguments,
            context,
        ):
            yield arguments, replace(context, answer=_LARGEST_NAMES, niceness=_NICENESS)


def _reports_machine_error(message: str) -> bool:
    return _EXHAUSTED.search(message) is None and reports_machine_error([f"error: {message}"])


class _Bounds:
    """The bounds of all attributes of one call, since a package author can make each as large and slow as one may be."""

    def __init__(self, attributes: int) -> None:
        self._until = time.monotonic() + _TIMEOUT
        self._left = max(_LONGEST_ENTRY, attributes * _AVERAGE_ENTRY)

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._until

    def entry(self, entry: bytes) -> bytes:
        """Return an entry; an empty one in place of one that is too large."""
        if len(entry) > min(_LONGEST_ENTRY, self._left):
            return b""
        self._left -= len(entry)
        return entry


def _first(paths: deque[AttributePath], size: int) -> list[AttributePath]:
    found: list[AttributePath] = []
    for path in paths:
        size -= sum(len(json.dumps(name)) + 2 for name in path) + 4
        if size < 0 and found:
            break
        found.append(path)
    return found


# The bounds of ``packages.nix``: another program may have written the entry.
_Name = Annotated[str, Field(max_length=256)]


class _Output(BaseModel):
    name: _Name
    path: _Name


class _About(BaseModel):
    pname: _Name
    version: _Name
    description: Annotated[str, Field(max_length=4096)]
    homepage: Annotated[str, Field(max_length=1024)]
    licences: list[str]
    mainProgram: _Name  # noqa: N815 -- nixpkgs' name
    programs: list[_Name]
    platforms: list[_Name]
    outputs: list[_Output]


class _Entry(BaseModel):
    path: list[str]
    kind: Literal["package", "list", "definition", "meta-package", "facts", "set"]
    recurse: bool
    items: list[AnswerItem]
    about: _About | None


def parse_entry(path: AttributePath, entry: bytes) -> Attribute:
    """Parse the entry of an attribute; one that is not about this path is an attribute of which nothing is known."""
    try:
        # Nix's strings are bytes, and older versions print them unescaped.
        found = _Entry.model_validate_json(entry.decode(errors="replace"))
    except ValidationError:
        return Attribute(path, "package" if not entry else "other")
    if tuple(found.path) != path:
        return Attribute(path, "other")
    items = [interpret(item) for item in found.items]
    flaws = [explanation_of_flaw(item) for item in items if isinstance(item, Flaw)]
    usable = tuple(item for item in items if not isinstance(item, Flaw))
    about = found.about
    is_package = (
        found.kind != "package" or any(flaw.reason is not Reason.NOT_A_PACKAGE for flaw in flaws) or usable
    )
    return Attribute(
        path=path,
        kind=found.kind if is_package else "other",
        items=None if flaws or found.kind == "set" else usable,
        recurse=found.recurse,
        reason=_reason(flaws[0]) if flaws and is_package else "",
        **({} if about is None else _described(about)),
    )


def _reason(package: UnavailablePackage) -> str:
    reason = f"{package.reason}: {package.explanation}" if package.explanation else str(package.reason)
    return shortened(reason, _LONGEST_REASON)


def _described(about: _About) -> dict[str, Any]:
    return {
        "name": about.pname,
        "version": about.version,
        "description": about.description,
        "homepage": about.homepage,
        "licences": tuple(about.licences),
        "main_program": about.mainProgram,
        "programs": tuple(about.programs),
        "platforms": tuple(about.platforms),
        "outputs": {output.name: output.path for output in about.outputs},
    }
