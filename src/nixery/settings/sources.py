"""Where packages come from, and what their names stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from nixery.image.platform import Platform
from nixery.settings.source_urls import archive_url, flake_url, git_url
from nixery.settings.values import DAY, NotEmpty, Platforms, existing_package_set, listed
from nixery.sources.commits import REACHABLE, CommitRule

_NIXPKGS = "https://github.com/NixOS/nixpkgs"
_ARCHIVES = f"{_NIXPKGS}/archive/{{rev}}.tar.gz"
_CHANNEL = r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$"

SOURCES = ("NIXERY_CHANNEL", "NIXERY_PKGS_REPO", "NIXERY_PKGS_PATH", "NIXERY_FLAKE")


class SourceSettings(BaseModel):
    """Package sources.

    Attributes:
        package_set: directory or file of a Nix package set; absolute. Exactly one of this and the next three is set.
        repository: git URL of a package set.
        channel: name or commit of nixpkgs.
        flake: reference of a flake with packages.
        channel_url: URL of a commit's archive, with ``{rev}`` in its place.
        channel_repository: git URL of the repository whose branches are the channels.
        channel_tags: patterns of the tags that select another channel; ``commits`` for commits.
        commits: the commits that a tag may name.
        public_source: whether clients may see the source's URL; ``None``: only in the annotations of images
            if it has no secret, and everywhere if it is nixpkgs' own.
        platforms: what a name stands for that does not begin with a platform, the first one for clients that know no
            indexes; empty for the one that Nix builds for.
        optional_platforms: those of them that may be missing from an index.
        pin_ttl: seconds for which a tag keeps its meaning; with 0, every request checks the package set.
    """

    package_set: Annotated[
        Path | None, NotEmpty, AfterValidator(existing_package_set), Field(alias="NIXERY_PKGS_PATH")
    ] = None
    repository: Annotated[str | None, NotEmpty, AfterValidator(git_url), Field(alias="NIXERY_PKGS_REPO")] = (
        None
    )
    channel: Annotated[str | None, NotEmpty, Field(alias="NIXERY_CHANNEL", pattern=_CHANNEL)] = None
    flake: Annotated[str | None, NotEmpty, AfterValidator(flake_url), Field(alias="NIXERY_FLAKE")] = None
    channel_url: Annotated[str, NotEmpty, AfterValidator(archive_url), Field(alias="NIXERY_CHANNEL_URL")] = (
        _ARCHIVES
    )
    channel_repository: Annotated[
        str, NotEmpty, AfterValidator(git_url), Field(alias="NIXERY_CHANNEL_REPO")
    ] = _NIXPKGS
    channel_tags: Annotated[
        tuple[str, ...], NotEmpty, BeforeValidator(listed), Field(alias="NIXERY_CHANNEL_TAGS")
    ] = ("nixos-*", "nixpkgs-*", "release-*", "commits")
    commits: Annotated[
        CommitRule,
        NotEmpty,
        BeforeValidator(lambda value: CommitRule.parse(value) if isinstance(value, str) else value),
        Field(alias="NIXERY_COMMITS"),
    ] = CommitRule.parse(REACHABLE)
    public_source: Annotated[bool | None, NotEmpty, Field(alias="NIXERY_PUBLIC_SOURCE")] = None
    platforms: Annotated[tuple[Platform, ...], NotEmpty, Platforms, Field(alias="NIXERY_PLATFORMS")] = ()
    optional_platforms: Annotated[
        tuple[Platform, ...], NotEmpty, Platforms, Field(alias="NIXERY_PLATFORMS_OPTIONAL")
    ] = ()
    pin_ttl: Annotated[int, NotEmpty, Field(alias="NIXERY_PIN_TTL", ge=0, le=DAY)] = 3600

    def shows(self, url: str) -> bool | None:
        """Whether clients may see a URL of the source; ``None`` if unset. See ``public_source``."""
        return True if self.public_source is None and url in {_NIXPKGS, _ARCHIVES} else self.public_source


def source_problems(variables: set[str]) -> list[str]:
    """Say what is wrong with the number of sources among the variables that are set."""
    given = [variable for variable in SOURCES if variable in variables]
    if not given:
        return [f"set one of {', '.join(SOURCES)}: where packages come from"]
    return [f"{' and '.join(given)} are set; packages come from one source"] if len(given) > 1 else []
