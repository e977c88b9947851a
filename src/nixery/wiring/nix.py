"""Settings become what asks Nix, and what knows where packages come from."""

from __future__ import annotations

from pathlib import Path

from nixery.fetching.channel import Archives, ChannelSource
from nixery.fetching.directory import DirectorySource
from nixery.fetching.flake import FlakeSource
from nixery.fetching.git import GitSource
from nixery.fetching.git_repository import GitRepository
from nixery.fetching.nix_store import NixStore
from nixery.nix.options import NixOptions
from nixery.nix.process import Surroundings
from nixery.preparation import Prepared
from nixery.settings import Settings
from nixery.sources.channel import channel_rule
from nixery.sources.flake import FlakeReference
from nixery.sources.location import SourceLocation
from nixery.sources.source import PackageSource


def package_source(settings: Settings, prepared: Prepared, store: NixStore) -> PackageSource:
    """Make the one source that the settings name."""
    copies, temporary, git = (
        settings.storage_path / "sources",
        prepared.temporary.path,
        settings.git_environment,
    )

    def place(url: str) -> SourceLocation:
        # The user of a command can read the settings anyway; an image is the same, whichever command made it.
        return SourceLocation.parse(url, public=settings.shows(url), local=prepared.address is None)

    if settings.package_set is not None:
        return DirectorySource(settings.package_set, settings.build_environment)
    if settings.repository is not None:
        location = place(settings.repository)
        repository = GitRepository(location, copies, git, settings.commits)
        return GitSource(location, repository, settings.commits, temporary, store, git)
    if settings.channel is not None:
        rule = channel_rule(settings.commits, settings.channel, settings.channel_tags)
        names = GitRepository(place(settings.channel_repository), copies, git, rule)
        archives = Archives(
            place(settings.channel_url),
            settings.channel_url,
            temporary,
            settings.fetch_environment,
            _evaluation_memory(settings),
        )
        return ChannelSource(settings.channel, settings.channel_tags, archives, names, rule, store)
    if settings.flake is not None:
        is_directory = settings.flake.startswith(("/", "."))
        flake = FlakeReference(str(Path(settings.flake).absolute()) if is_directory else settings.flake)
        versions = (
            GitRepository(place(flake.repository), copies, git, settings.commits)
            if flake.repository
            else None
        )
        fetching = Surroundings(settings.fetch_environment, _evaluation_memory(settings))
        return FlakeSource(flake, place(flake.text), versions, settings.commits, store, fetching)
    raise AssertionError("the settings have one source")


async def look_ahead(source: PackageSource) -> None:
    """Read before anybody asks what will be needed anyway."""
    # The others would have to ask somebody else, about tags that perhaps nobody ever wants.
    if isinstance(source, DirectorySource):
        await source.look_ahead()


def nix_options(settings: Settings, *, sandbox: bool | None) -> NixOptions:
    """Return the options for running Nix.

    Args:
        settings: of the process.
        sandbox: whether builds ask for Nix's sandbox; ``None`` to leave that to Nix's configuration.
    """
    return NixOptions(
        every_command=settings.nix_arguments,
        sandbox=sandbox,
        import_from_derivation=settings.allow_ifd,
        environment=settings.evaluation_environment,
        fetching=settings.fetch_environment,
        building=settings.build_environment,
        memory=_evaluation_memory(settings),
    )


def _evaluation_memory(settings: Settings) -> int | None:
    return settings.evaluation_memory * 1024 * 1024 or None
