"""Find things in the output that is being built and in those of its direct dependencies."""

import os
import re
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from building.layout import output_path

# A file of an output: one line with the path of each output that it uses without naming it.
DEPENDENCIES = "nix-support/dependencies"
# Another: the output's packages, for dpkg's database of an image.
DPKG_STATUS = "nix-support/dpkg-status"

# Directories that the packages of one product fill.
_PRIVATE = re.compile(r"(?:lib|share)/(?![^/]+-linux-gnu[a-z0-9]*/)[^/]+/")


def dependencies_of(output: str) -> list[str]:
    """What `output` wrote down as its dependencies."""
    record = Path(output, DEPENDENCIES)
    return record.read_text().split() if record.is_file() else []


class Outputs:
    """The output under construction and, in order, the outputs it may refer to.

    Only direct dependencies are searched, and after them the Essential packages, which Debian's packages use without
    declaring it; `find_indirect` has the others. Closures stay small: an Essential package is in them only if something
    refers to it.
    """

    def __init__(self, own: str, declared: Sequence[str], essential: Sequence[str] = ()) -> None:
        self.own = own
        self.declared = tuple(declared)
        self.essential = tuple(output for output in essential if output not in declared)
        self.dependencies = (*self.declared, *self.essential)

    def find(self, path: str) -> str | None:
        """The absolute place of Debian's `path` (`/usr/bin/env`) in the first output that has it."""
        return self.find_relative(output_path(path))

    def find_relative(self, relative: str) -> str | None:
        """The absolute place of an output's `relative` path in the first output that has it."""
        for output in (self.own, *self.dependencies):
            if os.path.lexists(candidate := f"{output}/{relative}"):
                return candidate
        return None

    def find_directories(self, relative: str) -> list[str]:
        """The directories at a `relative` path of all outputs: Debian's packages share directories of private libraries."""
        candidates = [f"{output}/{relative}" for output in (self.own, *self.dependencies)]
        return [path for path in candidates if Path(path).is_dir()]

    def find_indirect(self, relative: str) -> str | None:
        """The absolute place of a `relative` path in the first indirect dependency that has it, nearest ones first."""
        for output in self._indirect:
            if os.path.lexists(candidate := f"{output}/{relative}"):
                return candidate
        return None

    @cached_property
    def _indirect(self) -> tuple[str, ...]:
        found = dict.fromkeys(self.dependencies)
        waiting = deque(self.dependencies)
        while waiting:
            for output in dependencies_of(waiting.popleft()):
                if output not in found:
                    found[output] = None
                    waiting.append(output)
        return tuple(found)[len(self.dependencies) :]

    def find_for_text(self, path: str) -> str | None:
        """The absolute place of Debian's `path`, unless several outputs are needed for it.

        No store path is all of a directory that several outputs have. A program of another package in such a directory looks
        for files of all of them beside itself, so it is called by Debian's path.
        """
        relative = output_path(path)
        found = [
            place
            for output in (self.own, *self.dependencies)
            if os.path.lexists(place := f"{output}/{relative}")
        ]
        if not found or (len(found) > 1 and Path(found[0]).is_dir()):
            return None
        return None if self._has_parts_elsewhere(relative, found[0]) else found[0]

    def _has_parts_elsewhere(self, relative: str, place: str) -> bool:
        """Whether a file is a program of another package, in a private directory that several outputs have."""
        directory, _, _ = relative.rpartition("/")
        if not _PRIVATE.match(f"{directory}/") or place == f"{self.own}/{relative}":
            return False
        return os.access(place, os.X_OK) and len(self.find_directories(directory)) > 1

    def find_program(self, name: str) -> str | None:
        """The place of the program `name`."""
        return self.find_relative(f"bin/{name}")

    @cached_property
    def loader(self) -> str | None:
        """The ELF interpreter: libc is a direct dependency of every package that has programs."""
        for output in (self.own, *self.dependencies):
            found = sorted(Path(output, "lib").glob("ld-linux*.so.*")) or sorted(
                Path(output, "lib").glob("*/ld-linux*.so.*")
            )
            if found:
                return str(found[0])
        return None

    @cached_property
    def library_directories(self) -> tuple[str, ...]:
        """`lib` and `lib/<triplet>` of every output, where libraries are found by name."""
        directories = []
        for output in (self.own, *self.dependencies):
            directories += [
                str(path) for path in sorted(Path(output, "lib").glob("*-linux-gnu*")) if path.is_dir()
            ]
            directories.append(f"{output}/lib")
        return tuple(directories)

    def find_library_directory(self, name: str) -> str | None:
        """The directory to put into a RUNPATH for the library `name`."""
        for directory in self.library_directories:
            if Path(directory, name).exists():
                return directory
        return None

    def search_path(self, kind: str) -> list[str]:
        """The module directories that the direct dependencies recorded for `kind`, theirs included."""
        directories: list[str] = []
        for output in (self.own, *self.dependencies):
            record = Path(output, "nix-support", kind)
            if record.is_file():
                directories += record.read_text().split()
        return list(dict.fromkeys(directories))
