"""Measure the package index: ``python -m scripts.bench_index [DIRECTORY]``, run by ``make bench-index``.

Makes the index of Debian's set, and of the package set in the directory, if one is given, each with an empty storage.
Searches 100,000 generated names as a user types them. Then evaluates an image whose store paths are realised, with
and without the index.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from nixery.app import Components, assemble
from nixery.builds.package_search import FoundPackage, PackageSearch
from nixery.errors import NixeryError
from nixery.image.name import requests_for
from nixery.settings import Settings
from nixery.startup import prepare
from scripts.bench.goals import Goal
from scripts.bench.output import processor

_DEBIAN = "packagesets/debian"
_IMAGE = "hello"
_ROUNDS = 5
_RESULT = Path("var/bench/index.json")
_WIDTH = 130

# Names and texts of the search, and how many results the page asks for.
_NAMES, _TEXTS, _LIMIT = 100_000, 2_000, 20
_SEED = 16

# Seconds between two looks at the memory.
_INTERVAL = 0.05

# The goals: seconds of a search, and of the evaluation of an indexed image.
_SEARCH_GOAL, _EVALUATION_GOAL = 0.02, 0.02

_MIB = 1024 * 1024

# Sets of nixpkgs with thousands of packages, and their share of all names.
_SETS = (
    ("haskellpackages.", 0.2),
    ("python3packages.", 0.1),
    ("perlpackages.", 0.05),
    ("nodepackages.", 0.05),
    ("", 0.6),
)
_SYLLABLES = (
    "py",
    "lib",
    "gtk",
    "net",
    "data",
    "json",
    "http",
    "core",
    "kit",
    "ml",
    "web",
    "sql",
    "io",
    "x11",
    "tools",
    "fs",
    "git",
)
_WORDS = (
    "library", "tools", "for", "the", "command-line", "processor", "JSON", "client", "server", "database", "fast", "simple", "a",
    "bindings", "to", "parser", "network", "audio", "video", "image", "files", "support", "Python", "Haskell", "module", "utility",
    "and", "of", "with", "graph", "testing", "framework", "compiler", "language", "documentation", "development", "headers",
)  # fmt: skip


def main() -> int:
    """Measure, print and save the results; returns the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _WIDTH)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    sets = {"Debian": _DEBIAN, **{Path(path).name: path for path in sys.argv[1:] if path}}
    made: dict[str, dict[str, float]] = {}
    try:
        with (
            console.status("searching") as status,
            tempfile.TemporaryDirectory(prefix="index-", dir="var") as directory,
        ):
            search = _searches()
            for name, path in sets.items():
                status.update(f"indexing {name}")
                made[name] = asyncio.run(_make(_settings(path, f"{directory}/{len(made)}")))
            status.update(f"evaluating {_IMAGE}")
            evaluation = asyncio.run(_evaluate(_settings(_DEBIAN, f"{directory}/0")))
    except NixeryError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    _show(console, made, search, evaluation)
    about = {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    results = {"index": made, "search, seconds": search, "evaluation, seconds": evaluation}
    _RESULT.write_text(json.dumps({**about, **results}, indent=2))
    console.print(f"{processor()}, load {os.getloadavg()[0]:.1f}; {_RESULT}")
    return 0


# ---- Making an index


async def _make(settings: Settings) -> dict[str, float]:
    resources = prepare(settings)
    async with assemble(settings, resources) as components:
        await components.ahead
        pin = (await components.pins.pin("latest")).pin
        before = _resident("self")
        began = time.perf_counter()
        with _watched_memory() as memory:
            await components.index.names("latest")
            first = time.perf_counter() - began
            await components.index.evaluate(pin)
            took = time.perf_counter() - began
        progress = components.index.progress
        if progress is None:
            raise AssertionError("an evaluated index has progress")
        stored = sum(
            path.stat().st_size for path in (settings.storage_path / "records").rglob("*") if path.is_file()
        )
        found = {
            "attributes": progress.attributes,
            "failed": progress.failed,
            "seconds to the first name": first,
            "seconds to all details": took,
            "attributes a second": progress.attributes / took,
            "MiB, largest process of Nix": memory["largest"] / _MIB,
            "MiB, all processes of Nix": memory["all"] / _MIB,
            "MiB, growth of the server": (memory["server"] - before) / _MIB,
            "MiB in the storage": stored / _MIB,
        }
    # A server that was started again.
    async with assemble(settings, prepare(settings)) as components:
        await components.ahead
        pin = (await components.pins.pin("latest")).pin
        platform = resources.platforms[0]
        found["ms, first look-up after a start"] = 1e3 * await _time_of(
            lambda: components.index.find(pin, platform, _IMAGE, realisable=False)
        )
        found["ms, look-up"] = 1e3 * await _time_of(
            lambda: components.index.find(pin, platform, _IMAGE, realisable=False)
        )
        found["ms, first search after a start"] = 1e3 * await _time_of(
            lambda: components.index.names("latest")
        )
    return found


async def _time_of(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    await act()  # type: ignore[misc]
    return time.perf_counter() - began


@contextmanager
def _watched_memory() -> Iterator[dict[str, int]]:
    """Yield the most resident bytes so far: of a process of Nix, of all of them at once, and of this process."""
    most = {"largest": 0, "all": 0, "server": 0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_INTERVAL):
            sizes = [_resident(number) for number in _children()]
            now = {"largest": max(sizes, default=0), "all": sum(sizes), "server": _resident("self")}
            most.update({key: max(most[key], size) for key, size in now.items()})

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def _children() -> list[str]:
    threads = Path("/proc/self/task").iterdir()
    found: list[str] = []
    for thread in threads:
        try:
            found += (thread / "children").read_text().split()
        except OSError:  # the thread ended
            continue
    return found


def _resident(process: str) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


# ---- Searching


def _searches() -> dict[str, float]:
    chance = random.Random(_SEED)  # noqa: S311 -- no secret
    packages = list(_packages(chance))
    began = time.perf_counter()
    search = PackageSearch(packages)
    making = time.perf_counter() - began
    took, used = [], []
    for text in _texts(chance, packages):
        began, began_using = time.perf_counter(), time.thread_time()
        search.search(text, _LIMIT)
        took.append(time.perf_counter() - began)
        used.append(time.thread_time() - began_using)
    return {
        "p50": statistics.median(took),
        "p99": statistics.quantiles(took, n=100)[-1],
        # What others use of this machine does not count.
        "p50 of processor time": statistics.median(used),
        "p99 of processor time": statistics.quantiles(used, n=100)[-1],
        "making it": making,
    }


def _packages(chance: random.Random) -> Iterator[FoundPackage]:
    names: set[str] = set()
    prefixes, shares = [prefix for prefix, _ in _SETS], [share for _, share in _SETS]
    while len(names) < _NAMES:
        parts = chance.choices(_SYLLABLES, k=chance.randint(1, 4))
        stem = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(1, 7)))
        name = f"{chance.choices(prefixes, shares)[0]}{stem}{'-'.join(parts)}{chance.choice(['', '', '2', '-dev'])}"
        if name in names:
            continue
        names.add(name)
        description = " ".join(chance.choices(_WORDS, k=chance.randint(4, 10)))
        programs = (stem, f"{stem}-{parts[0]}") if chance.random() < 1 / 2 else ()
        yield FoundPackage(
            name, name, f"{chance.randint(0, 20)}.{chance.randint(0, 99)}", description, programs
        )


def _texts(chance: random.Random, packages: list[FoundPackage]) -> Iterator[str]:
    """Yield what users type: the beginnings of names and their last parts, words, programs, and names with a mistake."""
    for number in range(_TEXTS):
        name = chance.choice(packages).name
        last = name.rpartition(".")[2]
        match number % 5:
            case 0:
                yield name[: chance.randint(1, len(name))]
            case 1:
                yield last[: chance.randint(2, max(2, len(last)))]
            case 2:
                words = chance.choices(_WORDS, k=chance.randint(1, 3))
                yield " ".join(words)[: chance.randint(3, 40)]
            case 3:
                yield name.rpartition(".")[2].partition("-")[0]
            case _:
                at = chance.randint(1, max(1, len(name) - 2))
                yield name[:at] + name[at + 1 : at + 2] + name[at : at + 1] + name[at + 2 :] + "q"


# ---- Evaluating an image


async def _evaluate(settings: Settings) -> dict[str, float]:
    resources = prepare(settings)
    (request, *_) = requests_for(_IMAGE, resources.platforms)
    async with assemble(settings, resources) as components:
        await components.images.get((request,), "latest")  # realises its store paths

    async def measure(*, indexed: bool) -> float:
        async def contents(components: Components) -> float:
            pin = (await components.pins.pin("latest")).pin
            await components.evaluator.source.confirm(pin)
            # The cache of evaluations would answer.
            components.evaluator._cache = None  # noqa: SLF001
            await components.index.find(pin, request.platform, "")  # reads the names, as at a server's start
            return await _time_of(lambda: components.evaluator.contents(request, pin, indexed=indexed))

        times = []
        for _ in range(_ROUNDS):
            async with assemble(settings, prepare(settings)) as components:
                await components.ahead
                times.append(await contents(components))
        return statistics.median(times)

    return {"evaluated": await measure(indexed=False), "from the index": await measure(indexed=True)}


def _settings(package_set: str, directory: str) -> Settings:
    environment = {
        **os.environ,
        "NIXERY_HOST": "127.0.0.1",
        "PORT": "1",  # unused
        "NIXERY_PKGS_PATH": package_set,
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": directory,
        "NIX_TIMEOUT": "600",
    }
    return Settings.from_environment(environment)


# ---- Results


def _show(
    console: Console,
    made: Mapping[str, Mapping[str, float]],
    search: Mapping[str, float],
    evaluation: Mapping[str, float],
) -> None:
    table = Table(title="the package index")
    table.add_column("")
    for name in made:
        table.add_column(name, justify="right")
    for row in next(iter(made.values())):
        table.add_row(row, *(_readable(parts[row]) for parts in made.values()))
    console.print(table)
    ratio = evaluation["evaluated"] / evaluation["from the index"]
    console.print(
        f"search of {_NAMES:,} names: "
        + ", ".join(f"{name} {seconds * 1e3:,.1f} ms" for name, seconds in search.items())
    )
    console.print(
        f"evaluation of {_IMAGE}: "
        + ", ".join(f"{name} {seconds * 1e3:,.1f} ms" for name, seconds in evaluation.items())
        + f"; {ratio:,.0f} times"
    )
    p99, indexed = search["p99 of processor time"], evaluation["from the index"]
    goals = [
        Goal(
            "search, processor time, 99th percentile",
            f"< {_SEARCH_GOAL * 1e3:g} ms",
            f"{p99 * 1e3:.1f} ms",
            p99 < _SEARCH_GOAL,
        ),
        Goal(
            "evaluation of an indexed image",
            f"< {_EVALUATION_GOAL * 1e3:g} ms",
            f"{indexed * 1e3:.1f} ms",
            indexed < _EVALUATION_GOAL,
        ),
    ]
    for goal in goals:
        mark = "[green]met   [/green]" if goal.is_met else "[yellow]missed[/yellow]"
        console.print(f"{mark}  {goal.name}: {goal.reached} ({goal.wanted})")


def _readable(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:,.1f}"  # noqa: PLR2004 -- three digits


if __name__ == "__main__":
    sys.exit(main())
