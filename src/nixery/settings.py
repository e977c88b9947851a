"""What the environment says. Nothing else in nixery reads it.

The variables are Nixery's, with the same meaning; those that begin with ``NIXERY_`` and are not in its
documentation are ours.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from nixery.errors import SettingsError
from nixery.image.platform import Platform


def _existing_package_set(path: Path) -> Path:
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


_NotEmpty = BeforeValidator(_refuse_empty)


def _platforms(value: object) -> object:
    if not isinstance(value, str):
        return value
    platforms = [Platform.parse(part.strip()) for part in value.split(",") if part.strip()]
    return tuple(dict.fromkeys(platforms))


_Platforms = BeforeValidator(_platforms)


# Seconds. Nix does not take arbitrarily large numbers.
_DAY = 24 * 3600
_WEEK = 7 * _DAY


class Settings(BaseModel):
    """All settings, checked; made from a mapping such as the process environment.

    Attributes:
        host: address to bind. Nixery binds all addresses; a server that builds what it is asked for should be
            opened to a network on purpose.
        port: TCP port to bind.
        package_set: directory or file of the Nix package set; absolute.
        storage_backend: where blobs are kept.
        storage_path: directory for the file system backend.
        platforms: what a name stands for that does not begin with a platform, the first one for clients that know no
            indexes; empty for the one that Nix builds for.
        optional_platforms: those of them that may be missing from an index.
        nix_timeout: seconds a builder may run.
        pin_ttl: seconds for which a tag keeps its meaning; with 0 the package set is looked at for every request.
        failure_ttl: seconds for which a failed build is answered without trying again.
        popularity_url: http(s) or file URL, or a path, of a JSON object with reference counts.
        packing_workers: how many layers are packed at the same time.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: Annotated[str, _NotEmpty, Field(alias="NIXERY_HOST")] = "127.0.0.1"
    port: Annotated[int, _NotEmpty, Field(alias="PORT", ge=1, le=65535)]
    package_set: Annotated[
        Path, _NotEmpty, AfterValidator(_existing_package_set), Field(alias="NIXERY_PKGS_PATH")
    ]
    storage_backend: Annotated[Literal["filesystem"], _NotEmpty, Field(alias="NIXERY_STORAGE_BACKEND")]
    storage_path: Annotated[Path, _NotEmpty, AfterValidator(Path.absolute), Field(alias="STORAGE_PATH")]
    platforms: Annotated[tuple[Platform, ...], _NotEmpty, _Platforms, Field(alias="NIXERY_PLATFORMS")] = ()
    optional_platforms: Annotated[
        tuple[Platform, ...], _NotEmpty, _Platforms, Field(alias="NIXERY_PLATFORMS_OPTIONAL")
    ] = ()
    nix_timeout: Annotated[int, _NotEmpty, Field(alias="NIX_TIMEOUT", ge=1, le=_WEEK)] = 60
    pin_ttl: Annotated[int, _NotEmpty, Field(alias="NIXERY_PIN_TTL", ge=0, le=_DAY)] = 3600
    failure_ttl: Annotated[int, _NotEmpty, Field(alias="NIXERY_FAILURE_TTL", ge=0, le=_DAY)] = 30
    popularity_url: Annotated[str | None, _NotEmpty, Field(alias="NIX_POPULARITY_URL")] = None
    packing_workers: Annotated[
        int,
        _NotEmpty,
        Field(alias="NIXERY_PACKING_WORKERS", ge=1, le=256, default_factory=lambda: os.cpu_count() or 1),
    ]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Check an environment.

        Raises:
            SettingsError: with a line for every setting that is missing or wrong.
        """
        try:
            return cls.model_validate(environment)
        except ValidationError as error:
            raise SettingsError(
                tuple(_problem(str(e["loc"][0]), e["type"], e["msg"]) for e in error.errors())
            ) from None


_WHAT_IT_IS = {
    "PORT": "the TCP port to listen on, for example 8080",
    "NIXERY_PKGS_PATH": "the directory of a Nix package set",
    "NIXERY_STORAGE_BACKEND": "where layers are kept; supported: filesystem",
    "STORAGE_PATH": "the directory where layers are kept",
}


def _problem(variable: str, kind: str, message: str) -> str:
    if kind == "missing":
        return f"{variable} is not set: {_WHAT_IT_IS[variable]}"
    reason = message.removeprefix("Value error, ")
    return f"{variable} is wrong: {reason[:1].lower() + reason[1:]}"
