"""Where ``nixery build`` puts an image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nixery.errors import StorageError
from nixery.push.client import Target


@dataclass(frozen=True, slots=True)
class FileOutput:
    """A new OCI layout.

    Attributes:
        place: does not exist yet, but its directory does.
        archive: whether it is a tar archive, which is one that ``docker load`` takes, too.
    """

    place: Path
    archive: bool


Output = FileOutput | Target


def parse_output(text: str, tag: str) -> Output:
    """Read ``oci:DIRECTORY``, ``oci-archive:FILE``, ``docker-archive:FILE``, ``registry:TARGET``, or a path.

    Args:
        text: of the option.
        tag: of the image.

    Raises:
        ValueError: it is neither.
    """
    kind, colon, rest = text.partition(":")
    if colon and not rest:
        raise ValueError(f"{text!r} says {kind}, but not where")
    match kind if colon else "":
        case "registry":
            return Target.parse(rest, tag)
        case "oci":
            return FileOutput(Path(rest).absolute(), archive=False)
        case "oci-archive" | "docker-archive":
            return FileOutput(Path(rest).absolute(), archive=True)
        case _:
            return FileOutput(Path(text).absolute(), archive=text.endswith(".tar"))


def check_outputs(outputs: Sequence[Output]) -> None:
    """Look at all places: rather now than after minutes of building.

    Raises:
        StorageError: nothing can be written there.
    """
    places = [output.place for output in outputs if isinstance(output, FileOutput)]
    if len(set(places)) < len(places):
        raise StorageError("two outputs have the same place")
    for place in places:
        try:
            exists = place.exists()
        except OSError as error:
            raise StorageError(f"cannot write {place}: {error.strerror}") from error
        if exists:
            raise StorageError(f"{place} exists already")
        if not place.parent.is_dir():
            raise StorageError(f"cannot write {place}: there is no directory {place.parent}")
        if not os.access(place.parent, os.W_OK | os.X_OK):
            raise StorageError(f"cannot write {place}: not allowed to write to {place.parent}")
