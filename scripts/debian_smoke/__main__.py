"""Start the programs of Debian's best-known packages: ``python -m scripts.debian_smoke``, run by ``make debian-smoke``.

Each image is built by nixery, unpacked, and its main program started as root and as a plain user. Results are kept in
``var/debian-smoke``: a later run goes on with the packages that have none, or that the package set builds in another way.
``--document`` puts the results into docs/reference/debian-package-set.md.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from scripts.debian_smoke import document
from scripts.debian_smoke.images import Workshop
from scripts.debian_smoke.packages import ListError, Package, part, read_packages
from scripts.debian_smoke.results import Result, Results
from scripts.debian_smoke.trial import try_package

PACKAGE_SET = Path(__file__).parents[2] / "packagesets" / "debian"

# Bytes of the disk that are left to others; packages stay in the Nix store.
_LEAST_FREE = 3 * 1024**3

# Seconds to evaluate all packages of the list.
_EVALUATION = 600

_EXPRESSION = """
{ set, names }:
let packages = import set { }; in
builtins.listToAttrs (map
  (name: {
    inherit name;
    value = if packages ? ${name} then { inherit (packages.${name}) version drvPath; } else null;
  })
  (builtins.fromJSON names))
"""


@dataclass(frozen=True, slots=True)
class Pinned:
    """What the package set says of a package: its version, and the path of its derivation."""

    version: str
    derivation: str


def main(arguments: list[str]) -> int:
    """Try packages; return 0 if all of them start."""
    parser = argparse.ArgumentParser(prog="python -m scripts.debian_smoke", description=__doc__)
    parser.add_argument("--part", default="1/1", help="a part of the list: 2/10 is the second tenth")
    parser.add_argument("--jobs", type=int, default=1, help="images at once")
    parser.add_argument("--again", choices=("failed", "all"), help="try packages with a result again")
    parser.add_argument("--directory", type=Path, default=Path("var/debian-smoke"))
    parser.add_argument(
        "--document", action="store_true", help="only write the results into the documentation"
    )
    parser.add_argument(
        "packages", nargs="*", metavar="PACKAGE", help="of the list; default: those of the part"
    )
    options = parser.parse_args(arguments)
    results = Results(options.directory / "results")
    try:
        packages = read_packages()
        if options.document:
            document.write(packages, results)
            return 0
        chosen = part(packages, options.part)
    except (ListError, document.DocumentError) as error:
        print(f"debian-smoke: {error}", file=sys.stderr)
        return 2
    if options.packages:
        of_list = {package.name: package for package in packages}
        unknown = [name for name in options.packages if name not in of_list]
        if unknown:
            print(f"debian-smoke: not in the list: {', '.join(unknown)}", file=sys.stderr)
            return 2
        chosen = [of_list[name] for name in options.packages]
    with (options.directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f"debian-smoke: another run uses {options.directory}; wait, or name another --directory",
                file=sys.stderr,
            )
            return 2
        return _run(chosen, results, options)


def _run(chosen: Sequence[Package], results: Results, options: argparse.Namespace) -> int:
    pins = _pin(chosen)
    known = {package.name: results.read(package.name) for package in chosen}
    left = [
        package
        for package in chosen
        if package.name in pins and _is_due(known[package.name], pins[package.name], options.again)
    ]
    print(
        f"{len(chosen)} packages, {len(chosen) - len(pins)} not in this release, {len(left)} to try",
        flush=True,
    )
    _try_all(left, pins, results, options.directory, options.jobs)
    tried = results.of(package.name for package in chosen if package.name in pins)
    for user in ("root", "plain"):
        started = sum(result.started(user) for result in tried)
        print(f"{user}: {started} of {len(tried)} start ({100 * started / max(1, len(tried)):.1f} %)")
    return 0 if all(result.is_success for result in tried) else 1


def _pin(packages: Sequence[Package]) -> dict[str, Pinned]:
    """Evaluate the packages; those that the release does not have are left out."""
    names = json.dumps([package.name for package in packages])
    command = ["nix-instantiate", "--eval", "--strict", "--json", "--expr", _EXPRESSION]
    command += ["--arg", "set", str(PACKAGE_SET), "--argstr", "names", names]
    answer = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, timeout=_EVALUATION
    ).stdout
    return {
        name: Pinned(found["version"], found["drvPath"])
        for name, found in json.loads(answer).items()
        if found is not None
    }


def _is_due(known: Result | None, pinned: Pinned, again: str | None) -> bool:
    if known is None or again == "all" or known.derivation != pinned.derivation:
        return True
    return again == "failed" and not known.is_success


def _try_all(
    packages: Sequence[Package], pins: Mapping[str, Pinned], results: Results, directory: Path, jobs: int
) -> None:
    workshops: SimpleQueue[Workshop] = SimpleQueue()
    for number in range(jobs):
        workshops.put(Workshop(directory.absolute() / f"workshop-{number}", PACKAGE_SET))

    def try_one(package: Package) -> None:
        if shutil.disk_usage(directory).free < _LEAST_FREE:
            print(f"- {package.name}: not tried: less than {_LEAST_FREE >> 30} GiB are free", flush=True)
            return
        workshop = workshops.get()
        try:
            begin = time.monotonic()
            pinned = pins[package.name]
            result = try_package(package, workshop, pinned.version, pinned.derivation)
            results.write(result)
            print(f"{_summary(result)} ({time.monotonic() - begin:.0f} s)", flush=True)
        finally:
            workshops.put(workshop)

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(try_one, packages):
            pass
    while not workshops.empty():
        workshops.get().clear()


def _summary(result: Result) -> str:
    if result.build_fault:
        return f"✗ {result.package}: no image: {result.build_fault.splitlines()[-1]}"
    faults = [
        f"{user}: {start.command}: {start.fault}" for user, start in result.starts.items() if start.fault
    ]
    return f"✗ {result.package}: {'; '.join(faults)}" if faults else f"✓ {result.package}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
