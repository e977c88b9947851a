"""What the environment says. Nothing else in nixery reads it.

The variables are Nixery's, with the same meaning; those that begin with ``NIXERY_`` and are not in its
documentation are ours.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from nixery.errors import SettingsError
from nixery.image.platform import Platform


def _existing_package_set(path: Path | None) -> Path | None:
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


# What Nix reads itself, and what its downloads need. A package set may read whatever it is given.
_FOR_NIX = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|LOCALE_ARCHIVE|LC_ALL|LANG|XDG_\w+_(HOME|DIRS)|NIX_\w+|SSL_CERT_\w+|NETRC"
    r"|(https?|ftp|all|no)_proxy|(HTTPS?|FTP|ALL|NO)_PROXY|CURL_CA_BUNDLE|GIT_SSL_CAINFO|SSH_AUTH_SOCK|GIT_SSH_COMMAND"
)

_NIXPKGS = "https://github.com/NixOS/nixpkgs"
_CHANNEL = r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$"

_NotEmpty = BeforeValidator(_refuse_empty)


def _platforms(value: object) -> object:
    if not isinstance(value, str):
        return value
    platforms = [Platform.parse(part.strip()) for part in value.split(",") if part.strip()]
    return tuple(dict.fromkeys(platforms))


def _with_rev(url: str) -> str:
    if "{rev}" not in url:
        raise ValueError("it has no {rev}, in whose place the commit goes")
    return url


def _listed(value: object) -> object:
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def _arguments(value: object) -> object:
    return tuple(shlex.split(value)) if isinstance(value, str) else value


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
        package_set: directory or file of a Nix package set; absolute. Exactly one of this and the next three is set.
        repository: git URL of a package set.
        channel: name or commit of nixpkgs.
        flake: reference of a flake with packages.
        channel_url: where a commit's archive is, with ``{rev}`` in its place.
        channel_repository: git URL where channels are branches.
        channel_tags: patterns of the tags that select another channel; ``commits`` for any commit.
        storage_backend: where blobs are kept.
        storage_path: directory for the file system backend.
        platforms: what a name stands for that does not begin with a platform, the first one for clients that know no
            indexes; empty for the one that Nix builds for.
        optional_platforms: those of them that may be missing from an index.
        nix_timeout: seconds a builder may run.
        pin_ttl: seconds for which a tag keeps its meaning; with 0 the package set is looked at for every request.
        failure_ttl: seconds for which a failed build is answered without trying again.
        nix_arguments: added to all commands of Nix.
        nix_sandbox: whether builders run in Nix's sandbox; ``auto`` for what Nix's own configuration says.
        allow_ifd: whether an evaluation may build things, and then read them (import from derivation).
        evaluation_memory: MiB that an evaluation may take; 0 for no bound.
        layer_budget: the most layers of an image, the last one with the root file system included; with 1, all store
            paths are one layer, and the root is another.
        popularity_url: http(s) or file URL, or a path, of a JSON object with reference counts.
        packing_workers: how many layers are packed at the same time.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: Annotated[str, _NotEmpty, Field(alias="NIXERY_HOST")] = "127.0.0.1"
    port: Annotated[int, _NotEmpty, Field(alias="PORT", ge=1, le=65535)]
    package_set: Annotated[
        Path | None, _NotEmpty, AfterValidator(_existing_package_set), Field(alias="NIXERY_PKGS_PATH")
    ] = None
    repository: Annotated[str | None, _NotEmpty, Field(alias="NIXERY_PKGS_REPO")] = None
    channel: Annotated[str | None, _NotEmpty, Field(alias="NIXERY_CHANNEL", pattern=_CHANNEL)] = None
    flake: Annotated[str | None, _NotEmpty, Field(alias="NIXERY_FLAKE")] = None
    channel_url: Annotated[str, _NotEmpty, AfterValidator(_with_rev), Field(alias="NIXERY_CHANNEL_URL")] = (
        f"{_NIXPKGS}/archive/{{rev}}.tar.gz"
    )
    channel_repository: Annotated[str, _NotEmpty, Field(alias="NIXERY_CHANNEL_REPO")] = _NIXPKGS
    channel_tags: Annotated[
        tuple[str, ...], _NotEmpty, BeforeValidator(_listed), Field(alias="NIXERY_CHANNEL_TAGS")
    ] = ("nixos-*", "nixpkgs-*", "release-*", "commits")
    storage_backend: Annotated[Literal["filesystem"], _NotEmpty, Field(alias="NIXERY_STORAGE_BACKEND")]
    storage_path: Annotated[Path, _NotEmpty, AfterValidator(Path.absolute), Field(alias="STORAGE_PATH")]
    platforms: Annotated[tuple[Platform, ...], _NotEmpty, _Platforms, Field(alias="NIXERY_PLATFORMS")] = ()
    optional_platforms: Annotated[
        tuple[Platform, ...], _NotEmpty, _Platforms, Field(alias="NIXERY_PLATFORMS_OPTIONAL")
    ] = ()
    nix_timeout: Annotated[int, _NotEmpty, Field(alias="NIX_TIMEOUT", ge=1, le=_WEEK)] = 60
    pin_ttl: Annotated[int, _NotEmpty, Field(alias="NIXERY_PIN_TTL", ge=0, le=_DAY)] = 3600
    failure_ttl: Annotated[int, _NotEmpty, Field(alias="NIXERY_FAILURE_TTL", ge=0, le=_DAY)] = 30
    nix_arguments: Annotated[
        tuple[str, ...], _NotEmpty, BeforeValidator(_arguments), Field(alias="NIXERY_NIX_OPTIONS")
    ] = ()
    nix_sandbox: Annotated[Literal["auto", "on", "off"], _NotEmpty, Field(alias="NIXERY_NIX_SANDBOX")] = (
        "auto"
    )
    allow_ifd: Annotated[bool, _NotEmpty, Field(alias="NIXERY_ALLOW_IFD")] = False
    evaluation_memory: Annotated[
        int, _NotEmpty, Field(alias="NIXERY_EVALUATION_MEMORY", ge=0, le=1 << 22)
    ] = 4096
    # Docker's overlay2 stops at about 125 layers; what the default leaves is for those who build on top of our images.
    layer_budget: Annotated[int, _NotEmpty, Field(alias="NIXERY_LAYER_BUDGET", ge=1, le=120)] = 94
    popularity_url: Annotated[str | None, _NotEmpty, Field(alias="NIX_POPULARITY_URL")] = None
    packing_workers: Annotated[
        int,
        _NotEmpty,
        Field(alias="NIXERY_PACKING_WORKERS", ge=1, le=256, default_factory=lambda: os.cpu_count() or 1),
    ]

    # Not a setting, and kept out of sight: it may hold secrets.
    environment: Annotated[Mapping[str, str], Field(alias="", repr=False)] = {}

    @property
    def evaluation_environment(self) -> Mapping[str, str]:
        """What of the environment an evaluation is given: what Nix itself needs."""
        return {name: value for name, value in self.environment.items() if _FOR_NIX.fullmatch(name)}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Check an environment.

        Raises:
            SettingsError: with a line for every setting that is missing or wrong.
        """
        problems = _source_problems(environment)
        try:
            settings = cls.model_validate(environment)
        except ValidationError as error:
            problems += [_problem(str(e["loc"][0]), e["type"], e["msg"]) for e in error.errors()]
        else:
            if not problems:
                return settings.model_copy(update={"environment": dict(environment)})
        raise SettingsError(tuple(problems))


_SOURCES = ("NIXERY_CHANNEL", "NIXERY_PKGS_REPO", "NIXERY_PKGS_PATH", "NIXERY_FLAKE")

_WHAT_IT_IS = {
    "PORT": "the TCP port to listen on, for example 8080",
    "NIXERY_STORAGE_BACKEND": "where layers are kept; supported: filesystem",
    "STORAGE_PATH": "the directory where layers are kept",
}


def _source_problems(environment: Mapping[str, str]) -> list[str]:
    given = [variable for variable in _SOURCES if variable in environment]
    if not given:
        return [f"set one of {', '.join(_SOURCES)}: where packages come from"]
    return [f"{' and '.join(given)} are set; packages come from one source"] if len(given) > 1 else []


def _problem(variable: str, kind: str, message: str) -> str:
    if kind == "missing":
        return f"{variable} is not set: {_WHAT_IT_IS[variable]}"
    reason = message.removeprefix("Value error, ")
    return f"{variable} is wrong: {reason[:1].lower() + reason[1:]}"
