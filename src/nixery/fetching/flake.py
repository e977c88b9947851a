"""Package sets that are flakes (``NIXERY_FLAKE``)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, ValidationError

from nixery.closure.store_path import STORE_DIRECTORY
from nixery.errors import (
    BuildTimedOut,
    NixUnusable,
    PackageSetChanged,
    PathsCollected,
    SourceUnreachable,
    TagUnknown,
)
from nixery.fetching.nix_store import NixStore
from nixery.nix.command import run_command
from nixery.nix.error_message import explanation, without_paths
from nixery.nix.process import Surroundings
from nixery.sources.flake import flake_reference
from nixery.sources.location import public_url, without_credentials
from nixery.sources.source import Flake, Pin, Reference

# Seconds, for the flake and for all of its inputs.
_FETCH = 900

# What Nix, git and the forges say if the reference is wrong rather than out of reach.
_UNKNOWN = (
    "404",
    "couldn't find remote ref",
    "cannot find git revision",
    "unknown revision",
    "not our ref",
    "revspec",  # libgit2, in newer versions of Nix
    "object not found",
    "cannot read object",
)


class _Metadata(BaseModel):
    """``nix flake metadata --json``, as far as all versions have it in common."""

    url: str
    path: Path
    locked: dict[str, Any]
    lastModified: int | None = None  # noqa: N815 -- Nix's name


class FlakeSource:
    """The ``PackageSource`` of a flake: ``packages`` and ``legacyPackages`` for the system.

    Args:
        flake: a reference; a directory's is relative to where the server was started.
        store: where Nix puts it.
        environment: of the commands that fetch it.
    """

    def __init__(self, flake: str, store: NixStore, environment: Mapping[str, str]) -> None:
        self._surroundings = Surroundings(environment)
        self.description = f"flake:{without_credentials(flake)}"
        self._flake = str(Path(flake).absolute()) if flake.startswith(("/", ".")) else flake
        self._store = store

    def reference(self, tag: str) -> Reference:
        """See ``PackageSource.reference``."""
        return flake_reference(tag, self._flake)

    async def resolve(self, reference: Reference) -> Pin:
        """See ``PackageSource.resolve``."""
        metadata = await self._metadata(reference)
        revision = metadata.locked.get("rev")
        # A directory, or a working tree that has changes, is pinned by its copy in the Nix store.
        identity = metadata.url if revision else _copied(metadata)
        shown = revision or metadata.locked.get("narHash", identity)
        url = public_url(metadata.url.partition("?")[0]) if revision else None
        return Pin(self.description, identity, str(shown), url, metadata.lastModified)

    async def confirm(self, pin: Pin) -> None:
        """See ``PackageSource.confirm``. Whatever is locked can always be had."""

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[Flake]:
        """See ``PackageSource.open``."""
        kind, _, copy = pin.identity.partition("?")[0].partition(":")
        if kind != "path" or not copy.startswith(STORE_DIRECTORY):
            # A commit: Nix has it, or gets it again.
            yield Flake(pin.identity)
            return
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._store.keeping(Path(copy)))
            except PathsCollected:
                # There is no other copy of what was pinned.
                raise PackageSetChanged from None
            yield Flake(pin.identity)

    async def _metadata(self, reference: Reference) -> _Metadata:
        shown = without_credentials(reference.name)
        features = ("--extra-experimental-features", "nix-command flakes")
        try:
            completed, stderr = await run_command(
                _FETCH,
                "nix",
                *features,
                "flake",
                "metadata",
                "--json",
                "--refresh",
                "--no-write-lock-file",
                reference.name,
                surroundings=self._surroundings,
            )
        except BuildTimedOut as error:
            raise SourceUnreachable(f"{shown} did not arrive in {_FETCH} seconds") from error
        if completed.exit_code != 0:
            said = without_paths(without_credentials(explanation(stderr))) or "Nix said nothing"
            if any(words in line.casefold() for words in _UNKNOWN for line in stderr):
                raise TagUnknown(shown, f"there is no such flake: {said}")
            raise SourceUnreachable(f"cannot read the flake {shown}: {said}")
        try:
            return _Metadata.model_validate_json(completed.stdout)
        except ValidationError as error:
            raise NixUnusable("Nix's answer to nix flake metadata is not understood") from error


def _copied(metadata: _Metadata) -> str:
    parameters = {"narHash": str(metadata.locked.get("narHash", ""))}
    directory = dict(parse_qsl(metadata.url.partition("?")[2])).get("dir")
    if directory:
        parameters["dir"] = directory
    return f"path:{metadata.path}?{urlencode(parameters)}"
