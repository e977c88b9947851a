"""Measure first requests whose packages are in a binary cache: ``python -m scripts.bench_remote``, run by ``make bench-remote``.

A cache on this machine, made by Nix (zstd), answers after a delay. Two ways to an image are compared, each with an
empty Nix store in its own mount namespace: ``nix`` realises into the store and packs from there, ``direct`` packs what
the cache sends. The time begins when the packages are evaluated, which an index makes free. Needs root.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench.goals import Goal
from scripts.bench.output import processor

_SET = Path("packagesets/debian").absolute()
_DIRECTORY = Path("var/bench/remote")
_RESULT = _DIRECTORY / "result.json"
_WIDTH = 130
_ROUNDS = 3

# Everything that the images need.
_ATTRIBUTES = (
    *("hello", "git", "python3", "gcc", "papirus-icon-theme", "nano"),
    *("bash", "coreutils", "moreutils", "ca-certificates", "netbase"),
)

# Seconds before each answer, and bytes a second.
_LINES = {"0 ms": (0.0, 0.0), "10 ms": (0.01, 0.0), "50 ms": (0.05, 0.0), "100 MB/s": (0.0, 1e8)}

_IMAGES = ("hello", "shell/git", "shell/git/python3/gcc", "papirus-icon-theme")

# An image with one more package, which is small; and one whose packages are all in layers that are stored.
_ONE_MORE, _KNOWN = "shell/git/hello", "git"

# The goals: of realising and packing; of fetching a package alone; seconds.
_OF_NIX, _OF_FETCHING, _NOTHING_NEW = 0.5, 1.3, 0.05

_CONFIGURATION = "build-users-group =\nsandbox = false\n"


def main() -> int:
    """Measure, print and save the results; returns the exit status."""
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _WIDTH)
    if os.geteuid() != 0:
        console.print("the benchmark mounts empty Nix stores: run it as root", style="red")
        return 1
    _DIRECTORY.mkdir(parents=True, exist_ok=True)
    with console.status("building the packages"):
        cache, key = _make_cache()
    rows: dict[str, dict[str, Any]] = {}
    for line, (delay, rate) in _LINES.items():
        for name in _IMAGES:
            with console.status(f"{name}, {line}"):
                rows[f"{name}, {line}"] = _compare(cache, key, name, delay, rate)
        with console.status(f"known layers, {line}"):
            rows[f"known layers, {line}"] = _known_layers(cache, key, delay, rate)
    goals = list(_goals(rows))
    _show(console, rows, goals)
    about = {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    _RESULT.write_text(json.dumps({**about, "rows": rows}, indent=2))
    console.print(f"{processor()}, load {os.getloadavg()[0]:.1f}; {_RESULT}")
    return 0


def _make_cache() -> tuple[Path, str]:
    files, secret, public = (_DIRECTORY / name for name in ("cache", "secret", "public"))
    if not public.exists():
        _run("nix-store", "--generate-binary-cache-key", "bench-1", str(secret), str(public))
    selected = [word for name in _ATTRIBUTES for word in ("-A", name)]
    paths = _run("nix-build", "--no-out-link", str(_SET), *selected).split()
    new = ("nix", "--extra-experimental-features", "nix-command")
    _run(*new, "store", "sign", "--key-file", str(secret), "--recursive", *paths)
    _run(*new, "copy", "--to", f"file://{files.absolute()}?compression=zstd", *paths)
    return files, public.read_text().strip()


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def _serving(cache: Path, delay: float, rate: float) -> Iterator[str]:
    command = (sys.executable, "-m", "scripts.bench_remote.cache", str(cache))
    with subprocess.Popen(
        [*command, "--delay", str(delay), "--rate", str(rate)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None  # noqa: S101 -- for mypy
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:  # noqa: S310 -- on this machine
        content: bytes = answer.read()
        return content


def _request(name: str, mode: str, url: str, key: str, directory: Path) -> dict[str, Any]:
    """Request an image in a new process, whose Nix store and storage are in a directory."""
    store = directory / "nix"
    (store / "store").mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "NIX_CONF_DIR": str(directory.absolute()),
        "NIX_CONFIG": f"{_CONFIGURATION}substituters = {url}\ntrusted-public-keys = {key}",
        "NIXERY_HOST": "127.0.0.1",
        "PORT": "1",  # unused
        "NIXERY_PKGS_PATH": str(_SET),
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(directory.absolute() / "storage"),
        "NIXERY_COMPRESSION": "zstd",
        "NIXERY_SUBSTITUTE": mode,
        "NIXERY_INDEX": "0",
        "NIX_TIMEOUT": "600",
    }
    mount = 'mount --bind "$1" /nix && shift && exec "$@"'
    worker = (sys.executable, "-m", "scripts.bench_remote.worker", name)
    command = ("unshare", "--mount", "sh", "-c", mount, "sh", str(store.absolute()), *worker)
    before = int(_get(f"{url}/bytes"))
    completed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(completed.stdout)
    found["fetched"] = int(_get(f"{url}/bytes")) - before
    found["written"] = _size(store) + _size(directory / "storage")
    return found


def _size(directory: Path) -> int:
    return sum(
        file.lstat().st_size for file in directory.rglob("*") if not file.is_symlink() and file.is_file()
    )


def _compare(cache: Path, key: str, name: str, delay: float, rate: float) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {"nix": [], "direct": []}
    with _serving(cache, delay, rate) as url:
        for _ in range(_ROUNDS):
            for mode, rounds in found.items():
                with tempfile.TemporaryDirectory(prefix="round-", dir=_DIRECTORY) as directory:
                    rounds.append(_request(name, mode, url, key, Path(directory)))
    digests = {each["digest"] for rounds in found.values() for each in rounds}
    if len(digests) != 1:
        raise AssertionError(f"{name} has several digests: {', '.join(sorted(digests))}")
    return {mode: _median(rounds) for mode, rounds in found.items()}


def _known_layers(cache: Path, key: str, delay: float, rate: float) -> dict[str, Any]:
    more, known, alone = [], [], []
    with _serving(cache, delay, rate) as url:
        for _ in range(_ROUNDS):
            with tempfile.TemporaryDirectory(prefix="round-", dir=_DIRECTORY) as name:
                directory = Path(name)
                _request("shell/git", "direct", url, key, directory)
                more.append(_request(_ONE_MORE, "direct", url, key, directory))
                known.append(_request(_KNOWN, "direct", url, key, directory))
            alone.append(_fetch_alone(cache, url, "-hello-"))
    return {"one more": _median(more), "known": _median(known), "alone": statistics.median(alone)}


def _fetch_alone(cache: Path, url: str, name: str) -> float:
    """Seconds to fetch a narinfo and its NAR."""
    narinfo = next(file for file in cache.glob("*.narinfo") if name in file.read_text().partition("\n")[0])
    began = time.perf_counter()
    text = _get(f"{url}/{narinfo.name}").decode()
    file = next(line.removeprefix("URL: ") for line in text.splitlines() if line.startswith("URL: "))
    _get(f"{url}/{file}")
    return time.perf_counter() - began


def _median(rounds: list[dict[str, Any]]) -> dict[str, float]:
    numbers = ("seconds", "memory", "children", "fetched", "written")
    return {key: statistics.median(each[key] for each in rounds) for key in numbers}


def _goals(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[Goal]:
    for name, row in rows.items():
        if "nix" in row:
            ratio = row["direct"]["seconds"] / row["nix"]["seconds"]
            yield Goal(f"{name}, of realising and packing", f"≤ {_OF_NIX}", f"{ratio:.2f}", ratio <= _OF_NIX)
        else:
            ratio = row["one more"]["seconds"] / row["alone"]
            yield Goal(
                f"{name}, one small package more, of fetching it alone",
                f"≤ {_OF_FETCHING}",
                f"{ratio:.2f}",
                ratio <= _OF_FETCHING,
            )
            seconds = row["known"]["seconds"]
            yield Goal(
                f"{name}, nothing new to pack",
                f"< {_NOTHING_NEW * 1e3:g} ms",
                f"{seconds * 1e3:.0f} ms",
                seconds < _NOTHING_NEW,
            )


def _show(console: Console, rows: Mapping[str, Mapping[str, Any]], goals: list[Goal]) -> None:
    table = Table(title=f"the first request after its evaluation; medians of {_ROUNDS}")
    for column in ("", "", "ms", "fetched, MB", "written, MB", "memory, MB", "of Nix, MB"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        for way, figures in row.items():
            if isinstance(figures, float):
                table.add_row(name, way, f"{figures * 1e3:,.0f}", "", "", "", "")
                continue
            sizes = (figures[key] / 1e6 for key in ("fetched", "written", "memory", "children"))
            table.add_row(name, way, f"{figures['seconds'] * 1e3:,.0f}", *(f"{size:,.1f}" for size in sizes))
    console.print(table)
    for goal in goals:
        mark = "[green]met   [/green]" if goal.is_met else "[yellow]missed[/yellow]"
        console.print(f"{mark}  {goal.name}: {goal.reached} ({goal.wanted})")


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        for left in _DIRECTORY.glob("round-*"):
            shutil.rmtree(left, ignore_errors=True)
