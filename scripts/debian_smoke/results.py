"""What was seen of each package, one JSON file a package."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Start:
    """The try of one user to start a program.

    Attributes:
        command: the last one that was tried.
        fault: why the program did not start; empty if it did.
        output: the beginning of the last command's.
    """

    command: str
    fault: str
    output: str


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen of a package.

    Attributes:
        package: its name.
        program: its main program.
        version: Debian's, or empty if the release does not have the package.
        derivation: of the package set; a later run tries a package again when it is another one.
        build_fault: why there is no image; empty if there is one.
        starts: by user: ``root`` and ``plain``.
        layers_size: bytes of the compressed layers.
        seconds: of building and packing, and of unpacking and running.
    """

    package: str
    program: str
    version: str
    derivation: str
    build_fault: str = ""
    starts: dict[str, Start] = field(default_factory=dict)
    layers_size: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)

    def started(self, user: str) -> bool:
        """Tell whether the program started for a user."""
        return user in self.starts and not self.starts[user].fault

    @property
    def is_success(self) -> bool:
        """Whether the program started for both users."""
        return self.started("root") and self.started("plain")


class Results:
    """A directory of results."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def read(self, package: str) -> Result | None:
        """Return the last result of a package."""
        try:
            document: dict[str, Any] = json.loads(self._file(package).read_text())
        except FileNotFoundError:
            return None
        starts = {user: Start(**start) for user, start in document.pop("starts").items()}
        return Result(**document | {"starts": starts, "seconds": tuple(document["seconds"])})

    def write(self, result: Result) -> None:
        """Replace the result of a package."""
        new = self._file(result.package).with_suffix(".new")
        new.write_text(json.dumps(asdict(result), indent=2) + "\n")
        new.rename(self._file(result.package))

    def of(self, packages: Iterable[str]) -> list[Result]:
        """Return the results that there are, in the order of the packages."""
        return [result for name in packages if (result := self.read(name)) is not None]

    def _file(self, package: str) -> Path:
        return self._directory / f"{package}.json"
