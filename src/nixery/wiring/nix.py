"""Settings become what asks Nix, and what knows where packages come from."""

from __future__ import annotations

from nixery.fetching.channel import ChannelSource
from nixery.fetching.directory import DirectorySource
from nixery.fetching.flake import FlakeSource
from nixery.fetching.git import GitSource
from nixery.fetching.git_repository import GitRepository
from nixery.fetching.nix_store import NixStore
from nixery.nix.options import NixOptions
from nixery.preparation import Prepared
from nixery.settings import Settings
from nixery.sources.source import PackageSource


def package_source(settings: Settings, prepared: Prepared, store: NixStore) -> PackageSource:
    """Make the one source that the settings name."""
    storage, temporary, environment = settings.storage_path, prepared.temporary.path, settings.environment
    if settings.package_set is not None:
        return DirectorySource(settings.package_set, environment)
    if settings.repository is not None:
        return GitSource(settings.repository, storage / "sources", temporary, store, environment)
    if settings.channel is not None:
        names = GitRepository(settings.channel_repository, storage / "sources", environment)
        return ChannelSource(settings.channel, settings.channel_tags, settings.channel_url, names, store)
    if settings.flake is not None:
        return FlakeSource(settings.flake, store)
    raise AssertionError("the settings have one source")


async def look_ahead(source: PackageSource) -> None:
    """Read before anybody asks what will be needed anyway."""
    # The others would have to ask somebody else, about tags that perhaps nobody ever wants.
    if isinstance(source, DirectorySource):
        await source.look_ahead()


def nix_options(settings: Settings, *, sandbox: bool | None) -> NixOptions:
    """Say how Nix is to be run.

    Args:
        settings: of the process.
        sandbox: whether builds ask for Nix's sandbox; ``None`` to leave that to Nix's configuration.
    """
    return NixOptions(
        every_command=settings.nix_arguments,
        sandbox=sandbox,
        import_from_derivation=settings.allow_ifd,
        environment=settings.evaluation_environment,
        memory=settings.evaluation_memory * 1024 * 1024 or None,
    )
