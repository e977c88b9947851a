"""How the values of settings are read and checked."""

from __future__ import annotations

import shlex
from pathlib import Path

from pydantic import BeforeValidator, ValidationInfo

from nixery.image.platform import Platform
from nixery.settings.quantities import size

# Seconds.
DAY = 24 * 3600


def existing_package_set(path: Path | None) -> Path | None:
    """Make the path of a package set absolute.

    Raises:
        ValueError: there is none.
    """
    if path is None:
        return None
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.is_dir() and not (path / "default.nix").is_file():
        raise ValueError(f"{path} has no default.nix; expected a Nix package set")
    # Not resolved: a symlink may be moved to the next version while the server runs.
    return path.absolute()


def _refuse_empty(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise ValueError("it is set, but empty")
    return value


NotEmpty = BeforeValidator(_refuse_empty)

Size = BeforeValidator(lambda value: size(value) if isinstance(value, str) else value)


def _platforms(value: object) -> object:
    if not isinstance(value, str):
        return value
    platforms = [Platform.parse(part.strip()) for part in value.split(",") if part.strip()]
    return tuple(dict.fromkeys(platforms))


def listed(value: object) -> object:
    """Split at commas."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def arguments(value: object) -> object:
    """Split as a shell does."""
    return tuple(shlex.split(value)) if isinstance(value, str) else value


# zstd's levels above 19 take more memory than packing is to have.
_LEVELS = {"gzip": range(4), "zstd": range(1, 20)}


def known_level(level: int | None, others: ValidationInfo) -> int | None:
    """Check that a compression has a level.

    Raises:
        ValueError: it has not.
    """
    name = others.data.get("compression")
    if level is not None and name is not None and level not in _LEVELS[name]:
        raise ValueError(f"the levels of {name} are {_LEVELS[name][0]} to {_LEVELS[name][-1]}")
    return level


Platforms = BeforeValidator(_platforms)
