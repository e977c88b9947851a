"""Choose the packages: ``python -m scripts.debian_smoke.selection`` writes ``packages.txt``.

The rule: first the packages of ``well_known.txt``, in its order; then, up to 400 in all, the packages with programs that
most packages of the release name in Depends, Pre-Depends or Recommends. The second half leaves out sections whose
programs are an addition to a library, packages that only have helpers of debhelper, and packages that the first half has.
A main program is the one that ``well_known.txt`` names; else the one that the package set names, if the package has it;
else the package's program whose name begins with the package's or, at last, its first one.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.acceptance.report import release
from scripts.debian_smoke.packages import PACKAGES, Package

COUNT = 400
WELL_KNOWN = Path(__file__).with_name("well_known.txt")
PACKAGE_SET = Path(__file__).parents[2] / "packagesets" / "debian"

_LIBRARY_SECTIONS = frozenset(
    {"libs", "libdevel", "oldlibs", "introspection", "localization", "kernel", "doc"}
)
_DEPENDENCIES = ("Depends", "Pre-Depends", "Recommends")
# A directory of x11-common that Contents lists like a program.
_NO_PROGRAMS = frozenset({"X11"})
# Seconds for apt to print its index.
_TIMEOUT = 120


@dataclass(frozen=True)
class Offer:
    """The packages of a release.

    Attributes:
        programs: sorted names of programs, by package.
        main: the package set's main program, by package.
        group_programs: the programs of all packages of a package's derivation, by package.
        sections: by package.
        dependents: numbers of packages that name a package as a dependency or a recommendation.
    """

    programs: Mapping[str, list[str]]
    main: Mapping[str, str]
    group_programs: Mapping[str, frozenset[str]]
    sections: Mapping[str, str]
    dependents: Mapping[str, int]


def choose(offer: Offer, well_known: Mapping[str, str | None], count: int = COUNT) -> list[Package]:
    """Apply the rule."""
    chosen = {
        name: Package(name, program or main_program(name, offer) or name)
        for name, program in well_known.items()
    }
    for name in sorted(offer.programs, key=lambda name: (-offer.dependents.get(name, 0), name)):
        if len(chosen) >= count:
            break
        if name in chosen or offer.sections.get(name) in _LIBRARY_SECTIONS:
            continue
        program = main_program(name, offer)
        if program is not None and name in offer.main:
            chosen[name] = Package(name, program)
    return list(chosen.values())[:count]


def main_program(name: str, offer: Offer) -> str | None:
    """Return the program that a package is for, or None if it only has helpers of debhelper."""
    main = offer.main.get(name)
    if main is not None and main in offer.group_programs.get(name, ()):
        return main
    programs = [
        program
        for program in offer.programs.get(name, ())
        if not program.startswith("dh_") and program not in _NO_PROGRAMS
    ]
    stem = re.sub(r"^(python3|ruby|php|node)-|[-0-9.]+$", "", name)
    similar = [program for program in programs if program.startswith(stem)]
    return (
        min(similar, key=lambda program: (len(program), program)) if similar else next(iter(programs), None)
    )


def read_well_known() -> dict[str, str | None]:
    """Read the names of the first half, with the programs that the file names."""
    lines = [
        line.split() for line in WELL_KNOWN.read_text().splitlines() if line and not line.startswith("#")
    ]
    return {fields[0]: fields[1] if len(fields) > 1 else None for fields in lines}


def read_offer(package_set: Path, system: str) -> Offer:
    """Read the lock of the package set and apt's index.

    Raises:
        OSError: there is no lock, or no apt.
        subprocess.SubprocessError: apt failed.
    """
    records: dict[str, dict[str, Any]] = {}
    lock = package_set / "lock"
    generation = json.loads((lock / f"{system}.json").read_text())["generation"]
    for shard in sorted((lock / generation).glob("*.json")):
        records |= json.loads(shard.read_text())["packages"]
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for record in records.values():
        groups[record["group"]].update(record.get("programs", ()))
    dependents: Counter[str] = Counter()
    sections = {}
    for fields in _stanzas():
        sections[fields["Package"]] = fields.get("Section", "").rpartition("/")[2]
        named = ",".join(fields[field] for field in _DEPENDENCIES if field in fields)
        dependents.update({re.split(r"[ :(]", clause.strip())[0] for clause in re.split(r"[,|]", named)})
    return Offer(
        programs={name: record["programs"] for name, record in records.items() if record.get("programs")},
        main={name: record["mainProgram"] for name, record in records.items() if "mainProgram" in record},
        group_programs={name: frozenset(groups[record["group"]]) for name, record in records.items()},
        sections=sections,
        dependents=dependents,
    )


def _stanzas() -> Iterator[dict[str, str]]:
    # Without the status file, apt knows nothing of the packages that this machine has.
    command = ["apt-cache", "-o", "Dir::State::status=/dev/null", "dumpavail"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT).stdout
    for stanza in listing.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in stanza.split("\n"))
        if "Filename" in fields:
            yield fields


def main() -> int:
    """Write the list; return the exit status."""
    well_known = read_well_known()
    packages = choose(read_offer(PACKAGE_SET, f"{platform.machine()}-linux"), well_known)
    lines = [
        f"# Written by python -m {__spec__.name} for {release()}, which explains the rule.",
        "# A package and its main program. Continuous integration tries the first 40.",
        *(f"{package.name} {package.program}" for package in packages[: len(well_known)]),
        "# The most depended-upon packages.",
        *(f"{package.name} {package.program}" for package in packages[len(well_known) :]),
    ]
    PACKAGES.write_text("\n".join(lines) + "\n")
    print(
        f"wrote {PACKAGES}: {len(well_known)} well-known packages, {len(packages) - len(well_known)} others"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
