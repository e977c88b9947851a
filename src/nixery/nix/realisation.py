"""Nix as a subprocess: only commands and formats that 2.8 and current versions share.

Who refers to whom in a package set, by Nix as a subprocess.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from nixery.closure import STORE_DIRECTORY, Closure, StorePath
from nixery.errors import (
    AnswerTooLarge,
    BuildFailed,
    NixStoreFull,
    NixTimedOut,
    NixUnusable,
    PathsCollected,
    storage_error,
)
from nixery.files import read_beginning
from nixery.image.platform import Platform
from nixery.nix.answers import Flaw
from nixery.nix.build_log import BuildLog, ProgressCallback, ProgressFeed, ignore_progress
from nixery.nix.error_message import collected_path, explanation, is_about_a_full_disk, without_paths
from nixery.nix.evaluator import MOST_PROCESSES, Evaluation
from nixery.nix.garbage_collection import CollectorLock, GarbageCollectorRoots, parse_registrations
from nixery.nix.options import NixOptions
from nixery.nix.packages import Details, Evaluated, NixExpression, PackageSet
from nixery.nix.processes import ARGUMENTS, Deadline, in_batches, run, run_command
from nixery.nix.sandbox import BuilderGate

# Nix's exit codes for failed builds are 100 plus flags; this is the flag for "timed out" (worker.cc).
_TIMED_OUT = 0x01
_BUILD_FAILURE = 100

# Nix stops a builder after NIX_TIMEOUT itself, and says which it was. We wait this much longer, in seconds.
_GRACE = 10

# Seconds for listing a package set, at most.
_INDEX_SECONDS = 60.0

# Packages that are evaluated once more for what they throw; each is a process.
_MOST_EXPLAINED = 5

# Limit in bytes of Nix's description of one closure: some 30,000 typical store paths, or 80,000 of the
# shortest. Counting the dependencies of each takes half a gigabyte (``layering/grouping.py``); the largest
# NixOS systems have 10,000.
_CLOSURE = 16 * 1024 * 1024

# The same for each other query of the store.
_STORE_ANSWER = 64 * 1024 * 1024


class SubprocessNixBuilder:
    """The ``NixBuilder`` for package sets in files.

    Args:
        timeout: seconds, for a builder and for an evaluation.
        roots: protect realised paths from garbage collection.
        options: of the operator.
        collector: of the store's garbage.
        expression: added to every package set.
        gate: that builds have to pass first; ``None`` for a caller that runs no untrusted builders.
    """

    # For one evaluation.
    _processes = MOST_PROCESSES

    def __init__(
        self,
        timeout: float,
        roots: GarbageCollectorRoots,
        options: NixOptions,
        collector: CollectorLock,
        expression: NixExpression | None = None,
        *,
        gate: BuilderGate | None = None,
    ) -> None:
        self._gate = gate
        self._collector = collector
        self._options = options
        self._expression = expression
        self._timeout = timeout
        self._roots = roots

    async def evaluate(
        self, wanted: Sequence[str], optional: Sequence[str], platform: Platform, package_set: PackageSet
    ) -> Mapping[str, Sequence[Evaluated]]:
        """See ``NixBuilder.evaluate``."""
        await self._before_evaluation()
        evaluation = Evaluation(
            platform, package_set, self._timeout, self._options, self._expression, self._processes
        )
        items = await evaluation.of(wanted, optional)
        explained = 0
        found: dict[str, list[Evaluated]] = {name: [] for name in (*wanted, *optional)}
        for item in items:
            if not isinstance(item, Flaw):
                found[item.requested_name].append(item)
            elif explained < _MOST_EXPLAINED:
                explained += 1
                found[item.package.name].append(await evaluation.explain(item))
            else:
                found[item.package.name].append(item.package)
        return found

    async def index(
        self, platform: Platform, package_set: PackageSet, *, details: bool
    ) -> Mapping[str, Details]:
        """See ``NixBuilder.index``."""
        await self._before_evaluation()
        seconds = min(self._timeout, _INDEX_SECONDS)
        return await Evaluation(platform, package_set, seconds, self._options).index(details=details)

    async def _before_evaluation(self) -> None:
        if self._gate is not None and self._options.import_from_derivation:
            await self._gate.enter()

    def collector_paused(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        """See ``NixBuilder.undisturbed``."""
        return self._collector.held()

    @asynccontextmanager
    async def realise(
        self,
        installables: Sequence[str],
        tell: ProgressCallback = ignore_progress,
        on_begun: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[frozenset[StorePath]]:
        """See ``NixBuilder.realise``."""
        with self._roots.hold() as root:
            if installables and self._gate is not None:
                await self._gate.enter()
            yield await self._realise(installables, root, tell, on_begun) if installables else frozenset()

    async def _realise(
        self, wanted: Sequence[str], root: Path, tell: ProgressCallback, on_begun: Callable[[], None]
    ) -> frozenset[StorePath]:
        # Whatever Nix is busy with apart from builders (evaluating what to build, downloading) reports progress.
        if sum(map(len, wanted)) > ARGUMENTS:
            raise AnswerTooLarge("the list of what Nix has to provide for the image", ARGUMENTS)
        deadline = Deadline(self._timeout + _GRACE)
        feed = ProgressFeed(tell)

        def on_progress() -> None:
            deadline.extend()
            if log.is_at_work:
                on_begun()

        log = BuildLog(on_progress, feed=feed)
        arguments = (
            "nix-store",
            "--realise",
            *wanted,
            *("--add-root", str(root), "--indirect"),
            *("--timeout", str(int(self._timeout))),
            *("--log-format", "internal-json"),
            *self._options.for_building,
        )
        try:
            completed = await run(arguments, log.read_line, deadline, self._options.store())
        except TimeoutError:
            raise self._timed_out(log) from None
        finally:
            feed.flush()
        if completed.exit_code > _BUILD_FAILURE and (completed.exit_code - _BUILD_FAILURE) & _TIMED_OUT:
            raise self._timed_out(log)
        if completed.exit_code != 0:
            if log.says_that_there_is_no_room:
                raise NixStoreFull
            gone = await asyncio.to_thread(_missing, wanted)
            if log.failed_derivation not in log.built:
                gone = gone or collected_path(log.errors)
            if gone is not None:
                raise PathsCollected(gone)
            tail = log.log_tail(log.failed_derivation)
            raise BuildFailed(
                log.failed_derivation, tail, log.summary, disturbed=self._collector.is_at_work()
            )

        return await asyncio.to_thread(_provided, wanted, completed.stdout)

    def _timed_out(self, log: BuildLog) -> NixTimedOut:
        derivation = log.failed_derivation or log.slowest_derivation
        return NixTimedOut(derivation, self._timeout, log.log_tail(derivation))

    async def closure(self, paths: Sequence[StorePath]) -> Closure:
        """See ``NixBuilder.closure``."""
        left = _CLOSURE

        async def ask(question: Sequence[str], asked: Sequence[str]) -> list[str]:
            nonlocal left
            answers = []
            for batch in in_batches(asked):
                answers.append(await self._query(*question, *batch, answer=left))
                left -= len(answers[-1])
            return answers

        try:
            listed = await ask(("--query", "--requisites"), [str(path) for path in paths])
            requisites = {path for text in listed for path in text.split()}
            registrations = await ask(("--dump-db",), sorted(requisites))
        except AnswerTooLarge:
            raise AnswerTooLarge("the list of all store paths that the image needs", _CLOSURE) from None
        try:
            return await asyncio.to_thread(_closure, registrations)
        except ValueError as error:
            raise NixUnusable(f"Nix's answer to nix-store --dump-db is not understood: {error}") from error

    async def _query(self, *arguments: str, answer: int = _STORE_ANSWER) -> str:
        completed, stderr = await run_command(
            self._timeout, "nix-store", *arguments, context=self._options.store(answer)
        )
        if completed.exit_code != 0:
            if is_about_a_full_disk(explanation(stderr)):
                raise NixStoreFull
            gone = collected_path(stderr)
            if gone is not None:
                raise PathsCollected(gone)
            raise NixUnusable(f"nix-store {arguments[0]} failed: {without_paths(explanation(stderr))}")
        return completed.stdout.decode()


def _closure(registrations: Sequence[str]) -> Closure:
    return Closure(info for text in registrations for info in parse_registrations(text))


def _provided(installables: Sequence[str], roots: bytes) -> frozenset[StorePath]:
    """The outputs of the roots that Nix has printed, and those requested by their own path."""
    asked = [path for path in installables if "!" not in path]
    try:
        outputs = [_output(Path(os.fsdecode(root))) for root in roots.splitlines()]
    except OSError as error:
        raise storage_error("cannot keep Nix's garbage collector from an image's packages", error) from error
    return frozenset(map(StorePath.parse, (*outputs, *asked)))


def _output(root: Path) -> str:
    # A remote store has no roots here; Nix then prints the path itself.
    return str(root if root.parent == Path(STORE_DIRECTORY) else root.readlink())


def _missing(installables: Sequence[str]) -> str | None:
    """The first of some derivations that is not there."""
    derivations = (installable.partition("!")[0] for installable in installables)
    return next((path for path in derivations if not os.path.lexists(path)), None)


_DERIVATION = ".drv"

# A derivation begins with its outputs: name, path, and, where the content is known beforehand, its hash.
_FIXED_OUTPUT = re.compile(rb'Derive\(\[\("out","[^"]*","[^"]+"')
_HEAD = 1024


class SubprocessPackageGraph(SubprocessNixBuilder):
    """The ``PackageGraph``: what building takes, and what is asked about a whole set beyond it."""

    # Queries thousands of names at once, many of which may not evaluate; only the operator starts it.
    _processes = 100_000

    async def names(self, platform: Platform, package_set: PackageSet) -> list[str]:
        """See ``PackageGraph.names``."""
        return await Evaluation(platform, package_set, self._timeout, self._options).names()

    async def to_build(self, installables: Sequence[str]) -> list[str]:
        """See ``PackageGraph.to_build``."""
        found: list[str] = []
        last: list[str] = []

        def read_line(line: bytes) -> None:
            # Below "these 2 derivations will be built:"; what can be fetched are paths of outputs.
            text = line.decode(errors="replace")
            last[:] = [text]
            if text.startswith(f"  {STORE_DIRECTORY}/") and text.endswith(_DERIVATION):
                found.append(text.strip())

        arguments = ("nix-store", "--realise", "--dry-run", *installables, *self._options.for_building)
        try:
            completed = await run(arguments, read_line, Deadline(self._timeout), self._options.store())
        except TimeoutError:
            raise NixTimedOut(None, self._timeout) from None
        if completed.exit_code != 0:
            raise NixUnusable(f"nix-store --realise --dry-run failed: {without_paths(''.join(last))}")
        return sorted(found)

    async def inputs(self, derivations: Iterable[str]) -> AsyncIterator[tuple[str, list[str]]]:
        """See ``PackageGraph.inputs``."""
        requisites: set[str] = set()
        for batch in in_batches(sorted(derivations)):
            requisites.update((await self._query("--query", "--requisites", *batch)).split())
        fixed: dict[str, bool] = {}
        for batch in in_batches(sorted(path for path in requisites if path.endswith(_DERIVATION))):
            text = await self._query("--dump-db", *batch)
            for found in await asyncio.to_thread(_inputs, text, fixed):
                yield found


def _inputs(text: str, fixed: dict[str, bool]) -> list[tuple[str, list[str]]]:
    def is_package(path: StorePath) -> bool:
        if not path.base_name.endswith(_DERIVATION):
            return False  # a source, or a builder's script
        if path.base_name not in fixed:
            fixed[path.base_name] = _is_fixed_output(str(path))
        return not fixed[path.base_name]

    return [
        (
            info.path.base_name.removesuffix(_DERIVATION),
            [path.name.removesuffix(_DERIVATION) for path in info.references if is_package(path)],
        )
        for info in parse_registrations(text)
        if is_package(info.path)
    ]


def _is_fixed_output(derivation: str) -> bool:
    """Whether it fetches something: archives of sources are in hardly any closure."""
    # A source can have a derivation's name, and be a symlink to any file.
    try:
        return _FIXED_OUTPUT.match(read_beginning(derivation, _HEAD)) is not None
    except OSError:
        return False
