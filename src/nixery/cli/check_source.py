"""The checks of ``nixery check`` that evaluate: the package source, and the package index of its default tag."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from nixery.cli.check import Finding
from nixery.errors import NixeryError, PackagesUnavailable
from nixery.plain_text import escaped_document

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nixery.builds.index_records import Progress
    from nixery.builds.package_index import PackageIndex
    from nixery.builds.pins import Pinned, Pins
    from nixery.cli.output import Activity
    from nixery.nix.configuration import PackageConfiguration, Summary
    from nixery.sources.source import Pin

# Seconds for a list of all names; a first evaluation may have to read the whole package set.
_TIMEOUT = 60

# Seconds between two looks at the progress of an index.
_LOOK_EVERY = 0.2

_SOURCES = "docs/reference/sources.md describes package sources"

_UNREACHABLE = "make it reachable; a private repository needs valid credentials"

# Failed attributes that are printed; --json has those that the index keeps.
_SHOWN_FAILURES = 10


def check_source(
    shown: Activity,
    configured: tuple[PackageConfiguration, Summary] | None,
    *,
    indexed: bool,
    make_index: bool,
) -> list[Finding]:
    """Check that the package source of the settings evaluates, and describe its index.

    Args:
        shown: shows what is being done.
        configured: the operator's package configuration, if there is one.
        indexed: whether servers with these settings evaluate the whole package set for the index.
        make_index: whether to evaluate it here.
    """
    from nixery.cli.session import open_session, run
    from nixery.image.name import requests_for
    from nixery.source_location import redacted

    async def command() -> list[Finding]:
        async with open_session() as (components, resources):
            try:
                pinned = await components.pins.pin("latest")
            except NixeryError as error:
                return [Finding("source", False, str(error), _SOURCES)]
            found = [f"{redacted(pinned.pin.source)} is pinned to {redacted(pinned.pin.revision)}"]
            (request,) = requests_for("shell", resources.platforms[:1])
            findings = []
            try:
                if configured is not None:
                    takes = await components.evaluator.arguments(resources.platforms[0], pinned.pin)
                    findings.append(_configuration(*configured, takes))
                await components.evaluator.contents(request, pinned.pin)
            except PackagesUnavailable as error:
                found.append(f"it evaluates, but cannot make shell images: {error}")
            except NixeryError as error:
                return [Finding("source", False, "; ".join([*found, str(error)]), _SOURCES)]
            else:
                found.append("it evaluates")
            reachable, said = await _asked(components.pins, pinned)
            source = Finding(
                "source", reachable, "; ".join([*found, *said]), "" if reachable else _UNREACHABLE
            )
            shown.begin("listing the package set")
            maker = partial(_evaluate, components.index, pinned.pin, shown) if make_index else None
            return [source, *findings, await _index(components.index, maker, indexed=indexed)]

    return run(command, quiet=True)


async def _asked(pins: Pins, pinned: Pinned) -> tuple[bool, list[str]]:
    """Ask the source itself: while a pin holds, images are served without it, and its failure shows only later."""
    from nixery.source_location import redacted

    if pinned.warning:
        return False, [pinned.warning]
    try:
        now = await pins.ask("latest")
    except NixeryError as error:
        return False, [f"what is pinned is served, but no newer state can be found: {error}"]
    is_newer = now.identity != pinned.pin.identity
    return True, [f"a newer state is {redacted(now.revision)}"] if is_newer else []


def _configuration(configuration: PackageConfiguration, summary: Summary, takes: frozenset[str]) -> Finding:
    from nixery.nix.configuration import VARIABLE

    found = f"{VARIABLE} sets {summary} (sha256:{configuration.identity[:12]})"
    used = {"config": summary.keys, "overlays": summary.overlays}
    ignored = [name for name, content in used.items() if content and name not in takes]
    advice = f"the package set declares no argument {' or '.join(ignored)}" if ignored else ""
    if ignored:
        advice += f"; {VARIABLE} has no effect there"
    return Finding("config", right=True, found=found, advice=advice)


async def _index(
    index: PackageIndex, make: Callable[[], Awaitable[None]] | None, *, indexed: bool
) -> Finding:
    """Describe the index. If nothing is stored, list the names for completion; that some sets cannot be listed is no error."""
    from nixery.source_location import redacted

    try:
        await asyncio.wait_for(index.names("latest"), _TIMEOUT)
    except (NixeryError, TimeoutError) as error:
        reason = str(error) or f"listing the package set took more than {_TIMEOUT} seconds"
        return Finding("index", make is None, f"there is none, and completion has no package names: {reason}")
    if make is not None:
        try:
            await make()
        except NixeryError as error:
            return Finding("index", False, f"cannot evaluate the whole package set: {error}")
    # The evaluation finds sets with more names.
    names, progress = await index.names("latest"), await index.state_progress("latest")
    state = "all" if progress.is_complete else f"{progress.evaluated:,}"
    counts = f"{progress.attributes:,} attributes at {redacted(progress.revision)}: {state} evaluated, {progress.failed:,} failed"
    return Finding(
        "index",
        right=True,
        found="; ".join(
            (f"{len(names):,} names can be completed", counts, *_remedy(progress, indexed=indexed))
        ),
        facts=_facts(progress),
        lines=tuple(_failures(progress)),
    )


def _remedy(progress: Progress, *, indexed: bool) -> list[str]:
    if progress.is_complete:
        return []
    server = (
        "a server evaluates the rest in the background"
        if indexed
        else "with NIXERY_INDEX=false, no server evaluates the rest"
    )
    return [f"{server}; `nixery check --index` evaluates it here"]


async def _evaluate(index: PackageIndex, pin: Pin, shown: Activity) -> None:
    """Evaluate a state, and show the progress: sets within the package set add attributes."""
    shown.begin("evaluating the package set")
    evaluation = asyncio.ensure_future(index.evaluate(pin))
    total = done = 0
    try:
        while not evaluation.done():
            progress = index.progress
            if progress is not None:
                if progress.attributes != total:
                    total, done = progress.attributes, 0
                    shown.begin("evaluating the package set", total)
                shown.advance(progress.evaluated - done)
                done = progress.evaluated
            await asyncio.wait([evaluation], timeout=_LOOK_EVERY)
    finally:
        evaluation.cancel()
        with suppress(asyncio.CancelledError):
            await evaluation


def _facts(progress: Progress) -> dict[str, object]:
    from nixery.source_location import redacted

    failures = [{"attribute": attribute, "reason": reason} for attribute, reason in progress.failures]
    return {
        "revision": redacted(progress.revision),
        "attributes": progress.attributes,
        "evaluated": progress.evaluated,
        "failed": progress.failed,
        "is_complete": progress.is_complete,
        "failures": escaped_document(failures),
    }


def _failures(progress: Progress) -> list[str]:
    shown = progress.failures[:_SHOWN_FAILURES]
    width = max((len(attribute) for attribute, _ in shown), default=0)
    lines = [f"{attribute:<{width}}  {reason}" for attribute, reason in shown]
    if progress.failed > len(shown):
        lines.append(
            f"and {progress.failed - len(shown):,} more; --json has the first {len(progress.failures):,}"
        )
    return lines
