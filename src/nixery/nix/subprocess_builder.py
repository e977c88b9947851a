"""Nix as a subprocess: only commands and formats that 2.8 and current versions share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import as_file, files
from pathlib import Path

from nixery.closure.graph import Closure
from nixery.closure.store_path import StorePath
from nixery.errors import (
    BuildFailed,
    BuildTimedOut,
    EvaluationFailed,
    NixUnusable,
    PackagesUnavailable,
    Reason,
    UnavailablePackage,
)
from nixery.image.request import ImageRequest
from nixery.nix.build_log import LOG_TAIL, BuildLog, plain
from nixery.nix.builder import Package
from nixery.nix.error_message import explanation, is_trouble_of_the_machine, without_paths
from nixery.nix.evaluation import Evaluated, parse_answer, request_argument
from nixery.nix.garbage_collector_roots import GarbageCollectorRoots
from nixery.nix.process import Completed, Deadline, run
from nixery.nix.registration import parse_registrations

# Nix's exit codes for failed builds are 100 plus flags; this is the flag for "timed out" (worker.cc).
_TIMED_OUT = 0x01
_BUILD_FAILURE = 100

# Nix stops a builder after NIX_TIMEOUT itself, and says which it was. We wait this much longer, in seconds.
_GRACE = 10

# Arguments of one command, well under Linux's limit of 2 MiB for all of them together.
_PATHS_PER_COMMAND = 5000

# Packages that are evaluated once more for what they throw; each is a process.
_MOST_EXPLAINED = 5


class SubprocessNixBuilder:
    """The ``NixBuilder`` for a package set in a directory.

    Args:
        package_set: absolute path of a Nix file, or of a directory with a ``default.nix``.
        timeout: seconds a builder may run, and an evaluation.
        roots: where realised paths are protected from garbage collection.
    """

    def __init__(self, package_set: Path, timeout: float, roots: GarbageCollectorRoots) -> None:
        self._package_set = package_set
        self._timeout = timeout
        self._roots = roots

    async def evaluate(self, request: ImageRequest) -> tuple[Package, ...]:
        """See ``NixBuilder.evaluate``."""
        evaluated = await self._evaluate(request, request.packages, request.optional_packages)
        flawed = [package for package in evaluated if isinstance(package, UnavailablePackage)]
        explained = [await self._explain(package, request) for package in flawed[:_MOST_EXPLAINED]]
        unavailable = tuple(explained + flawed[_MOST_EXPLAINED:])
        if unavailable:
            raise PackagesUnavailable(unavailable)
        return tuple(p for p in evaluated if isinstance(p, Package))

    async def _evaluate(
        self, request: ImageRequest, packages: Sequence[str], optional: Sequence[str]
    ) -> tuple[Evaluated, ...]:
        completed, stderr = await self._instantiate(request, request_argument(packages, optional))
        if completed.exit_code == 0:
            # With a large package set, looking for near names is work for a while.
            return await asyncio.to_thread(parse_answer, completed.stdout, request)
        if completed.exit_code < 0 or is_trouble_of_the_machine(stderr):
            # Nobody's package is to blame, and a client that asks again may well be served.
            reason = explanation(stderr) or f"it was ended by signal {-completed.exit_code}"
            raise NixUnusable(f"Nix could not evaluate: {without_paths(reason)}")
        if not packages and not optional:
            # Where the set is on this machine is no business of a client's.
            raise EvaluationFailed(tuple(line.replace(f"{self._package_set}/", "") for line in stderr))
        return await self._find_culprits(request, packages, optional, stderr)

    async def _find_culprits(
        self, request: ImageRequest, packages: Sequence[str], optional: Sequence[str], stderr: Sequence[str]
    ) -> tuple[Evaluated, ...]:
        # Some errors (a type error, an abort) cannot be caught in Nix and end the whole evaluation. Halving what is
        # asked for finds whose fault they are; if not even the empty request evaluates, it is the set's.
        names = [*packages, *optional]
        if len(names) == 1:
            await self._evaluate(request, (), ())
            return (UnavailablePackage(names[0], Reason.THROWS, explanation(stderr)),)
        middle = len(names) // 2
        found: list[Evaluated] = []
        for half in (names[:middle], names[middle:]):
            found += await self._evaluate(
                request, [n for n in half if n in packages], [n for n in half if n in optional]
            )
        return tuple(found)

    async def _explain(self, package: UnavailablePackage, request: ImageRequest) -> UnavailablePackage:
        if package.explanation or package.reason in (Reason.MISSING, Reason.NOT_A_PACKAGE):
            return package
        # tryEval tells that something was thrown, not what. Without it, Nix says so.
        _, stderr = await self._instantiate(request, request_argument(diagnose=package.name))
        return UnavailablePackage(package.name, package.reason, explanation(stderr))

    async def _instantiate(self, request: ImageRequest, argument: str) -> tuple[Completed, Sequence[str]]:
        with as_file(files("nixery.nix") / "expressions" / "packages.nix") as expression:
            return await self._run(
                "nix-instantiate",
                str(expression),
                "--eval",
                "--strict",
                "--json",
                "--read-write-mode",  # or no derivation is written, and there is nothing to realise
                *("--argstr", "packageSet", str(self._package_set)),
                *("--argstr", "system", request.platform.nix_system),
                *("--argstr", "request", argument),
            )

    @asynccontextmanager
    async def realise(self, packages: Sequence[Package]) -> AsyncIterator[None]:
        """See ``NixBuilder.realise``."""
        wanted = sorted({f"{p.derivation}!{output}" for p in packages for output in p.outputs})
        with self._roots.hold() as root:
            if wanted:
                await self._realise(wanted, root)
            yield

    async def _realise(self, wanted: Sequence[str], root: Path) -> None:
        # Whatever Nix is busy with apart from builders (evaluating what to build, downloading) reports progress.
        deadline = Deadline(self._timeout + _GRACE)
        log = BuildLog(on_progress=deadline.extend)
        arguments = (
            "nix-store",
            "--realise",
            *wanted,
            *("--add-root", str(root), "--indirect"),
            *("--timeout", str(int(self._timeout))),
            *("--log-format", "internal-json"),
        )
        try:
            completed = await run(arguments, log.read_line, deadline)
        except TimeoutError:
            raise self._timed_out(log) from None
        if completed.exit_code > _BUILD_FAILURE and (completed.exit_code - _BUILD_FAILURE) & _TIMED_OUT:
            raise self._timed_out(log)
        if completed.exit_code != 0:
            raise BuildFailed(log.failed_derivation, log.log_tail(log.failed_derivation), log.summary)

    def _timed_out(self, log: BuildLog) -> BuildTimedOut:
        derivation = log.failed_derivation or log.slowest_derivation
        return BuildTimedOut(derivation, self._timeout, log.log_tail(derivation))

    async def closure(self, paths: Sequence[StorePath]) -> Closure:
        """See ``NixBuilder.closure``."""
        requisites: set[str] = set()
        for batch in _batches([str(path) for path in paths]):
            requisites.update((await self._query("--query", "--requisites", *batch)).split())
        registrations = [await self._query("--dump-db", *batch) for batch in _batches(sorted(requisites))]
        try:
            return Closure(info for text in registrations for info in parse_registrations(text))
        except ValueError as error:
            raise NixUnusable(f"Nix's answer to nix-store --dump-db is not understood: {error}") from error

    async def _query(self, *arguments: str) -> str:
        completed, stderr = await self._run("nix-store", *arguments)
        if completed.exit_code != 0:
            raise NixUnusable(f"nix-store {arguments[0]} failed: {without_paths(explanation(stderr))}")
        return completed.stdout.decode()

    async def _run(self, *arguments: str) -> tuple[Completed, Sequence[str]]:
        stderr: deque[str] = deque(maxlen=LOG_TAIL)
        try:
            completed = await run(
                arguments,
                lambda line: stderr.append(plain(line.decode(errors="replace"))),
                Deadline(self._timeout),
            )
        except TimeoutError:
            raise BuildTimedOut(None, self._timeout, tuple(stderr)) from None
        return completed, tuple(stderr)


def _batches(paths: Sequence[str]) -> list[Sequence[str]]:
    return [paths[start : start + _PATHS_PER_COMMAND] for start in range(0, len(paths), _PATHS_PER_COMMAND)]
