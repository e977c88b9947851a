"""The committed list of packages, in parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = Path(__file__).with_name("packages.txt")

BEST_KNOWN = 40
"""Packages at the beginning of the list that continuous integration tries."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package of the list.

    Attributes:
        name: Debian's.
        program: the main program, which an image of the package is tried with.
    """

    name: str
    program: str


class ListError(Exception):
    """The list, or the number of a part, is malformed."""


def read_packages(file: Path = PACKAGES) -> list[Package]:
    """Read the list in its order: lines of a package and its program, and comments.

    Raises:
        ListError: a line has another form, or a package is on two lines.
    """
    packages: dict[str, Package] = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        fields = line.split()
        if len(fields) != 2:  # noqa: PLR2004 -- the two fields of a package
            raise ListError(f"{file.name}:{number}: not a package and its program: {line}")
        package = Package(*fields)
        if package.name in packages:
            raise ListError(f"{file.name}:{number}: {package.name} is on two lines")
        packages[package.name] = package
    return list(packages.values())


def part(packages: Sequence[Package], which: str) -> Sequence[Package]:
    """Return a part of a list: ``2/10`` is the second tenth.

    Raises:
        ListError: there is no such part.
    """
    number, _, count = which.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ListError(f"no part of a list: {which} (write for example 2/10)")
    begin, end = (len(packages) * n // int(count) for n in (int(number) - 1, int(number)))
    return packages[begin:end]
