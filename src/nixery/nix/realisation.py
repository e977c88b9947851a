"""Nix: evaluate names, realise the results, and read their closure.

Runs ``nix-instantiate`` and ``nix-store`` as subprocesses, with commands and formats that Nix 2.8 and current
versions share.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nixery.closure import STORE_DIRECTORY, Closure, PathInfo, StorePath
from nixery.errors import (
    AnswerTooLarge,
    BuildFailed,
    EvaluationFailed,
    NixStoreFull,
    NixTimedOut,
    NixUnusable,
    PathsCollected,
    storage_error,
)
from nixery.files import read_beginning
from nixery.image.platform import Platform
from nixery.nix.build_log import BuildLog, ProgressCallback, ProgressFeed, ignore_progress
from nixery.nix.error_message import collected_path, explanation, reports_full_disk, without_paths
from nixery.nix.evaluation import MOST_PROCESSES, Evaluation, Flaw, explanation_of_flaw
from nixery.nix.garbage_collection import NixGarbageCollector
from nixery.nix.indexing import IndexEvaluation
from nixery.nix.minimum_version import MinimumVersions
from nixery.nix.options import NixOptions
from nixery.nix.packages import EvaluatedItem, NixExpression, PackageSet
from nixery.nix.plan import Plan, PlanReader
from nixery.nix.processes import ARGUMENTS, Deadline, in_batches, run, run_command
from nixery.nix.sandbox import BuilderGate
from nixery.nix.store_database import StoreDatabase

# Nix's exit codes for failed builds are 100 plus flags; this is the flag for "timed out" (worker.cc).
_TIMED_OUT = 0x01
_BUILD_FAILURE = 100

# Nix itself stops a builder after its timeout and names it. The server's own deadline is this many seconds
# later.
_GRACE = 10

# Processes of one evaluation in a batch, which holds thousands of names of which many may not evaluate.
BATCH_PROCESSES = 100_000

# Unavailable packages that are evaluated again for their error message, one process for each.
_MOST_EXPLAINED = 5

# Limit in bytes for Nix's description of one closure: some 30,000 typical store paths, or 80,000 of the
# shortest. Counting the dependencies of each takes half a gigabyte (``layering/grouping.py``); the largest
# NixOS systems have 10,000.
_LARGEST_CLOSURE = 16 * 1024 * 1024

# The same for other queries of the store.
_LARGEST_ANSWER = 64 * 1024 * 1024

_DERIVATION = ".drv"

# A derivation begins with its outputs: name, path, and, if the content is known beforehand, its hash.
_FIXED_OUTPUT = re.compile(rb'Derive\(\[\("out","[^"]*","[^"]+"')
_HEAD = 1024


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Time limits in seconds.

    Attributes:
        builder: for one builder, and for a query of the store.
        evaluation: for one evaluation.
    """

    builder: float
    evaluation: float


class Nix:
    """Nix on this machine.

    Args:
        limits: of builders and evaluations.
        collector: of the Nix store.
        options: of the operator.
        expression: added to every package set.
        gate: holds builds back until their confinement is known; ``None`` for a caller that runs no untrusted
            builders.
        processes: the most processes for one evaluation.
        database: of the store, which answers without a process what it can; ``None`` to ask Nix always.
    """

    def __init__(  # noqa: PLR0913 -- each of them is one part of Nix
        self,
        limits: TimeLimits,
        collector: NixGarbageCollector,
        options: NixOptions,
        expression: NixExpression | None = None,
        *,
        gate: BuilderGate | None = None,
        processes: int = MOST_PROCESSES,
        database: StoreDatabase | None = None,
    ) -> None:
        self._gate = gate
        self._database = database
        self._collector = collector
        self._versions = MinimumVersions(options.environment)
        self._options = options
        self._expression = expression
        self._processes = processes
        self._timeout = limits.builder
        self._evaluation_timeout = limits.evaluation

    async def evaluate(
        self, wanted: Sequence[str], optional: Sequence[str], platform: Platform, package_set: PackageSet
    ) -> Mapping[str, Sequence[EvaluatedItem]]:
        """Look names up in a package set, all in one evaluation.

        Returns:
            For each name: one package; all packages of a list; a definition and its contents; or why it is
            not available. Empty for an optional name that the set does not have.

        Raises:
            EvaluationFailed: the set itself is broken.
            AnswerTooLarge: the answer exceeds its limit.
            PathsCollected: a store path that it refers to was collected meanwhile.
            NixTimedOut: evaluation timed out.
            NixUnusable: Nix cannot be run.
        """
        await self._before_evaluation()
        evaluation = Evaluation(
            platform, package_set, self._evaluation_timeout, self._options, self._expression, self._processes
        )
        async with self._explaining_old_nix(package_set):
            items = await evaluation.of(wanted, optional)
        explained = 0
        found: dict[str, list[EvaluatedItem]] = {name: [] for name in (*wanted, *optional)}
        for item in items:
            if not isinstance(item, Flaw):
                found[item.requested_name].append(item)
            elif explained < _MOST_EXPLAINED:
                explained += 1
                found[item.package.name].append(await evaluation.explain(item))
            else:
                found[item.package.name].append(explanation_of_flaw(item))
        return found

    async def arguments(self, platform: Platform, package_set: PackageSet) -> frozenset[str]:
        """Return the names of the arguments that a package set declares; a flake declares none.

        Raises:
            EvaluationFailed: the package set does not evaluate.
            NixTimedOut: it timed out.
            NixUnusable: Nix cannot be run.
        """
        evaluation = Evaluation(platform, package_set, self._evaluation_timeout, self._options)
        return await evaluation.arguments()

    async def indexing(
        self, platform: Platform, package_set: PackageSet, *, write_derivations: bool = False
    ) -> IndexEvaluation:
        """Evaluate a whole package set.

        Args:
            platform: that packages are built for.
            package_set: to evaluate.
            write_derivations: whether derivations are written to the Nix store. Evaluations that build always
                write.

        Raises:
            NixUnusable: evaluations build, and builders are not confined.
        """
        await self._before_evaluation()
        options = replace(
            self._options, read_only=not write_derivations, on_start=self._options.on_index_start
        )
        explaining = partial(self._explaining_old_nix, package_set)
        return IndexEvaluation(platform, package_set, options, self._evaluation_timeout, explaining)

    async def names(self, platform: Platform, package_set: PackageSet) -> list[str]:
        """Return the names of all attributes at the top of a package set, sorted; some may be no packages.

        Raises:
            EvaluationFailed: the set is broken.
            AnswerTooLarge: the list exceeds its limit.
            NixTimedOut: evaluation timed out.
            NixUnusable: Nix cannot be run.
        """
        evaluation = await self.indexing(platform, package_set)
        (names,) = await evaluation.names([()])
        return sorted(names or ())

    async def check_version(self, package_set: PackageSet) -> None:
        """Log a warning if a package set needs a newer Nix."""
        await self._versions.outdated(package_set)

    def collector_paused(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        """Keep Nix's garbage collector waiting, if possible, from an evaluation until its results are realised.

        Yields:
            A function that lets the collector continue early; pass it to ``realise``.
        """
        return self._collector.paused()

    @asynccontextmanager
    async def realise(
        self,
        installables: Sequence[str],
        report: ProgressCallback = ignore_progress,
        on_started: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[frozenset[StorePath]]:
        """Build or substitute the given outputs, and no others.

        Args:
            installables: in Nix's syntax.
            report: receives the progress, some ten times a second.
            on_started: called when Nix itself protects its inputs; possibly several times, or never.

        Yields:
            The store paths that Nix provided, protected from Nix's garbage collector while the context lasts.
            An evaluation may claim others, which do not belong to the package set.

        Raises:
            PathsCollected: a derivation no longer exists; a new evaluation writes it.
            BuildFailed: with the failing derivation and the end of its log.
            AnswerTooLarge: the list of installables exceeds its limit.
            NixTimedOut: with the derivation, if one caused it.
            NixStoreFull: no space left in the Nix store.
            NixUnusable: Nix cannot be run, or builders are not confined.
        """
        with self._collector.root() as root:
            provided = await asyncio.to_thread(self._protected, installables, root)
            if provided is None:
                if self._gate is not None:
                    await self._gate.enter()
                provided = await self._realise(installables, root, report, on_started)
            yield provided

    async def has(self, installables: Sequence[str]) -> bool:
        """Whether all outputs are valid in the store at the moment, as far as its database can be read."""
        database = self._database
        return database is not None and await asyncio.to_thread(database.provided, installables) is not None

    async def outputs(self, installables: Sequence[str]) -> Mapping[str, StorePath]:
        """Return the path of each output that a valid derivation names, by installable, as far as that can be read."""
        database = self._database
        return {} if database is None else await asyncio.to_thread(database.outputs, installables)

    def _protected(self, installables: Sequence[str], root: Path) -> frozenset[StorePath] | None:
        """The outputs, protected, if all of them are valid; ``None`` if only Nix can tell, or provide them."""
        database = self._database
        if not installables:
            return frozenset()
        if database is None:
            return None
        found = self._collector.protect(root, lambda: database.provided(installables))
        return None if found is None else frozenset(found)

    async def closure(self, paths: Sequence[StorePath]) -> Closure:
        """Return the runtime closure of valid store paths, from Nix's database.

        Raises:
            AnswerTooLarge: the closure exceeds its limit.
            PathsCollected: a path was collected meanwhile.
            NixUnusable: Nix cannot be run, or a path is not valid.
        """
        if self._database is not None:
            known = await asyncio.to_thread(self._database.closure, paths, _LARGEST_CLOSURE)
            if known is not None:
                return known
        left = _LARGEST_CLOSURE

        async def query(question: Sequence[str], about: Sequence[str]) -> list[str]:
            nonlocal left
            answers = []
            for batch in in_batches(about):
                answers.append(await self._query(*question, *batch, limit=left))
                left -= len(answers[-1])
            return answers

        try:
            listed = await query(("--query", "--requisites"), [str(path) for path in paths])
            # In Nix's order: sorting a hundred thousand would stop the whole server.
            requisites = await asyncio.to_thread(
                lambda: list(dict.fromkeys(path for text in listed for path in text.split()))
            )
            registrations = await query(("--dump-db",), requisites)
        except AnswerTooLarge:
            raise AnswerTooLarge(
                "the list of all store paths that the image needs", _LARGEST_CLOSURE
            ) from None
        try:
            return await asyncio.to_thread(_closure, registrations)
        except ValueError as error:
            raise NixUnusable(f"cannot parse the output of nix-store --dump-db: {error}") from error

    async def plan(self, installables: Sequence[str]) -> Plan:
        """Return what Nix would do to provide some outputs, without doing it. It asks binary caches.

        Args:
            installables: in Nix's syntax.

        Raises:
            AnswerTooLarge: the list of installables exceeds its limit.
            NixTimedOut: it timed out.
            NixUnusable: Nix cannot be run.
        """
        if not installables:
            return Plan()
        _require_short(installables)
        reader = PlanReader()
        last = ""

        def read_line(line: bytes) -> None:
            nonlocal last
            last = line.decode(errors="replace")
            reader.read_line(last)

        arguments = ("nix-store", "--realise", "--dry-run", *installables, *self._options.for_building)
        try:
            completed = await run(arguments, read_line, Deadline(self._timeout), self._options.store())
        except TimeoutError:
            raise NixTimedOut(None, self._timeout) from None
        if completed.exit_code != 0:
            raise NixUnusable(f"nix-store --realise --dry-run failed: {without_paths(last)}")
        return await asyncio.to_thread(_with_sources, reader.plan)

    async def needs(self, derivation: StorePath, other: str) -> bool:
        """Whether a derivation needs another one, directly or not.

        Args:
            derivation: store path of a ``.drv``.
            other: ``<hash>-<name>.drv``.

        Raises:
            PathsCollected: the derivation was collected meanwhile.
            NixTimedOut: the query timed out.
            NixUnusable: Nix cannot be run.
        """
        requisites = await self._query("--query", "--requisites", str(derivation))
        return any(path.endswith(f"/{other}") for path in requisites.split())

    async def inputs(self, derivations: Iterable[str]) -> AsyncIterator[tuple[str, list[str]]]:
        """Yield every derivation that some derivations need, as ``<hash>-<name>``, and the names of its inputs.

        Leaves out sources, and derivations that only fetch something.

        Raises:
            PathsCollected: a derivation was collected meanwhile.
            NixTimedOut: a query timed out.
            NixUnusable: Nix cannot be run.
        """
        requisites: set[str] = set()
        for batch in in_batches(sorted(derivations)):
            requisites.update((await self._query("--query", "--requisites", *batch)).split())
        fixed: dict[str, bool] = {}
        for batch in in_batches(sorted(path for path in requisites if path.endswith(_DERIVATION))):
            text = await self._query("--dump-db", *batch)
            for found in await asyncio.to_thread(_inputs, text, fixed):
                yield found

    async def _before_evaluation(self) -> None:
        if self._gate is not None and self._options.import_from_derivation:
            await self._gate.enter()

    @asynccontextmanager
    async def _explaining_old_nix(self, package_set: PackageSet) -> AsyncIterator[None]:
        """Replace the error of an evaluation that failed because this Nix is too old."""
        outdated = await self._versions.outdated(package_set)
        try:
            yield
        except EvaluationFailed as error:
            if outdated is None:
                raise
            raise EvaluationFailed(error.log_tail, str(outdated)) from error

    async def _realise(
        self, wanted: Sequence[str], root: Path, report: ProgressCallback, on_started: Callable[[], None]
    ) -> frozenset[StorePath]:
        _require_short(wanted)
        deadline = Deadline(self._timeout + _GRACE)
        feed = ProgressFeed(report)

        def on_progress() -> None:
            # Nix limits the time of each builder; its other work (evaluation, downloads) reports progress.
            deadline.extend()
            if log.has_started:
                on_started()

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
            if log.reports_full_disk:
                raise NixStoreFull
            gone = await asyncio.to_thread(_first_missing, wanted)
            if log.failed_derivation not in log.built:
                gone = gone or collected_path(log.errors)
            if gone is not None:
                raise PathsCollected(gone)
            tail = log.log_tail(log.failed_derivation)
            raise BuildFailed(
                log.failed_derivation, tail, log.summary, disturbed=self._collector.is_running()
            )

        return await asyncio.to_thread(_provided, wanted, completed.stdout)

    def _timed_out(self, log: BuildLog) -> NixTimedOut:
        derivation = log.failed_derivation or log.slowest_derivation
        return NixTimedOut(derivation, self._timeout, log.log_tail(derivation))

    async def _query(self, *arguments: str, limit: int = _LARGEST_ANSWER) -> str:
        completed, stderr = await run_command(
            self._timeout, "nix-store", *arguments, context=self._options.store(limit)
        )
        if completed.exit_code != 0:
            if reports_full_disk(explanation(stderr)):
                raise NixStoreFull
            gone = collected_path(stderr)
            if gone is not None:
                raise PathsCollected(gone)
            raise NixUnusable(f"nix-store {arguments[0]} failed: {without_paths(explanation(stderr))}")
        return completed.stdout.decode()


def _require_short(installables: Sequence[str]) -> None:
    """Reject installables that do not fit into the arguments of a command."""
    if sum(map(len, installables)) > ARGUMENTS:
        raise AnswerTooLarge("the list of what Nix has to provide for the image", ARGUMENTS)


def parse_registrations(text: str) -> Iterator[PathInfo]:
    """Parse the output of ``nix-store --dump-db``, the one way to query paths that every Nix since 2.0 answers alike.

    ``nix path-info --json`` is experimental and has changed its shape three times. The format has lines with
    the path, its NAR hash, NAR size, deriver, the number of references, and each reference
    (``makeValidityRegistration`` in Nix's ``store-api.cc``).

    Raises:
        ValueError: it is not in that format.
    """
    lines = iter(text.splitlines())
    for line in lines:
        path = StorePath.parse(line)
        try:
            nar_hash, nar_size, deriver, count = next(lines), int(next(lines)), next(lines), int(next(lines))
            references = {StorePath.parse(next(lines)) for _ in range(count)}
        except StopIteration:
            raise ValueError(f"the registration of {path} is cut off") from None
        others = tuple(sorted(references - {path}))
        yield PathInfo(path, nar_hash, nar_size, others, deriver, path in references)


def _closure(registrations: Sequence[str]) -> Closure:
    return Closure(info for text in registrations for info in parse_registrations(text))


def _provided(installables: Sequence[str], roots: bytes) -> frozenset[StorePath]:
    """The outputs of the roots that Nix has printed, and those requested by their own path."""
    requested = [path for path in installables if "!" not in path]
    try:
        outputs = [_output(Path(os.fsdecode(root))) for root in roots.splitlines()]
    except OSError as error:
        raise storage_error("cannot keep Nix's garbage collector from an image's packages", error) from error
    return frozenset(map(StorePath.parse, (*outputs, *requested)))


def _output(root: Path) -> str:
    # A remote store has no roots here; Nix then prints the path itself.
    return str(root if root.parent == Path(STORE_DIRECTORY) else root.readlink())


def _first_missing(installables: Sequence[str]) -> str | None:
    derivations = (installable.partition("!")[0] for installable in installables)
    return next((path for path in derivations if not os.path.lexists(path)), None)


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


def _with_sources(plan: Plan) -> Plan:
    return replace(plan, sources=tuple(path for path in plan.builds if _is_fixed_output(str(path))))


def _is_fixed_output(derivation: str) -> bool:
    """Whether a derivation only fetches something; hardly any closure contains archives of sources."""
    # A source can have a derivation's name, and be a symlink to any file.
    try:
        return _FIXED_OUTPUT.match(read_beginning(derivation, _HEAD)) is not None
    except OSError:
        return False
