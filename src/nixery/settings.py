"""What the environment says. Nothing else in nixery reads it.

The variables are Nixery's, with the same meaning; those that begin with ``NIXERY_`` and are not in its
documentation are ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from nixery.errors import SettingsError
from nixery.image.platform import Platform
from nixery.setting_values import (
    NotEmpty,
    Platforms,
    arguments,
    existing_package_set,
    known_level,
    listed,
    with_rev,
)

# What Nix reads itself, and what its downloads need. A package set may read whatever it is given.
_FOR_NIX = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|LOCALE_ARCHIVE|LC_ALL|LANG|XDG_\w+_(HOME|DIRS)|NIX_\w+|SSL_CERT_\w+|NETRC"
    r"|(https?|ftp|all|no)_proxy|(HTTPS?|FTP|ALL|NO)_PROXY|CURL_CA_BUNDLE|GIT_SSL_CAINFO|SSH_AUTH_SOCK|GIT_SSH_COMMAND"
)

_NIXPKGS = "https://github.com/NixOS/nixpkgs"
_CHANNEL = r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$"

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
        popularity_url: http(s) or file URL, or a path, of a JSON object with reference counts.
        compression: of layers; zstd has no name in Docker's media types.
        compression_level: of that compression, from fast to small; ``None`` for its default.
        packing_workers: how many layers are packed at the same time.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: Annotated[str, NotEmpty, Field(alias="NIXERY_HOST")] = "127.0.0.1"
    port: Annotated[int, NotEmpty, Field(alias="PORT", ge=1, le=65535)]
    package_set: Annotated[
        Path | None, NotEmpty, AfterValidator(existing_package_set), Field(alias="NIXERY_PKGS_PATH")
    ] = None
    repository: Annotated[str | None, NotEmpty, Field(alias="NIXERY_PKGS_REPO")] = None
    channel: Annotated[str | None, NotEmpty, Field(alias="NIXERY_CHANNEL", pattern=_CHANNEL)] = None
    flake: Annotated[str | None, NotEmpty, Field(alias="NIXERY_FLAKE")] = None
    channel_url: Annotated[str, NotEmpty, AfterValidator(with_rev), Field(alias="NIXERY_CHANNEL_URL")] = (
        f"{_NIXPKGS}/archive/{{rev}}.tar.gz"
    )
    channel_repository: Annotated[str, NotEmpty, Field(alias="NIXERY_CHANNEL_REPO")] = _NIXPKGS
    channel_tags: Annotated[
        tuple[str, ...], NotEmpty, BeforeValidator(listed), Field(alias="NIXERY_CHANNEL_TAGS")
    ] = ("nixos-*", "nixpkgs-*", "release-*", "commits")
    storage_backend: Annotated[Literal["filesystem"], NotEmpty, Field(alias="NIXERY_STORAGE_BACKEND")]
    storage_path: Annotated[Path, NotEmpty, AfterValidator(Path.absolute), Field(alias="STORAGE_PATH")]
    platforms: Annotated[tuple[Platform, ...], NotEmpty, Platforms, Field(alias="NIXERY_PLATFORMS")] = ()
    optional_platforms: Annotated[
        tuple[Platform, ...], NotEmpty, Platforms, Field(alias="NIXERY_PLATFORMS_OPTIONAL")
    ] = ()
    nix_timeout: Annotated[int, NotEmpty, Field(alias="NIX_TIMEOUT", ge=1, le=_WEEK)] = 60
    pin_ttl: Annotated[int, NotEmpty, Field(alias="NIXERY_PIN_TTL", ge=0, le=_DAY)] = 3600
    failure_ttl: Annotated[int, NotEmpty, Field(alias="NIXERY_FAILURE_TTL", ge=0, le=_DAY)] = 30
    nix_arguments: Annotated[
        tuple[str, ...], NotEmpty, BeforeValidator(arguments), Field(alias="NIXERY_NIX_OPTIONS")
    ] = ()
    nix_sandbox: Annotated[Literal["auto", "on", "off"], NotEmpty, Field(alias="NIXERY_NIX_SANDBOX")] = "auto"
    allow_ifd: Annotated[bool, NotEmpty, Field(alias="NIXERY_ALLOW_IFD")] = False
    evaluation_memory: Annotated[int, NotEmpty, Field(alias="NIXERY_EVALUATION_MEMORY", ge=0, le=1 << 22)] = (
        4096
    )
    popularity_url: Annotated[str | None, NotEmpty, Field(alias="NIX_POPULARITY_URL")] = None
    compression: Annotated[Literal["gzip", "zstd"], NotEmpty, Field(alias="NIXERY_COMPRESSION")] = "gzip"
    compression_level: Annotated[
        int | None, NotEmpty, AfterValidator(known_level), Field(alias="NIXERY_COMPRESSION_LEVEL")
    ] = None
    packing_workers: Annotated[
        int,
        NotEmpty,
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
