"""Package sets that are flakes (``NIXERY_FLAKE``)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from nixery.closure.store_path import STORE_DIRECTORY
from nixery.errors import PackageSetChanged, PathsCollected
from nixery.fetching.disclosure import Disclosure
from nixery.fetching.flake_trees import FlakeTrees, Tree, without_directory
from nixery.fetching.git_repository import GitRepository
from nixery.fetching.nix_store import NixStore
from nixery.least_recently_used import LeastRecentlyUsed
from nixery.nix.process import Surroundings
from nixery.sources.commits import CommitRule
from nixery.sources.flake import FlakeReference, flake_reference
from nixery.sources.location import COMMIT, SourceLocation
from nixery.sources.source import Flake, Pin, Reference

# Cache size in bytes for flakes that passed the check.
_CAPACITY = 256 * 1024


class FlakeSource:
    """The ``PackageSource`` of a flake: ``packages`` and ``legacyPackages`` for the system.

    Args:
        reference: the operator's.
        location: the same, for messages.
        repository: where branches and tags are looked up; ``None`` for a flake without versions.
        rule: which commits clients may ask for.
        store: where Nix puts trees.
        fetching: what Nix is given for that.
    """

    def __init__(
        self,
        reference: FlakeReference,
        location: SourceLocation,
        repository: GitRepository | None,
        rule: CommitRule,
        store: NixStore,
        fetching: Surroundings,
    ) -> None:
        self._location = location
        self.description = f"flake:{reference.text}"
        self._flake = reference
        self._repository = repository
        self._rule = rule
        self._store = store
        self._trees = FlakeTrees(reference, Disclosure(location), fetching)
        self._checked: LeastRecentlyUsed[str, bool] = LeastRecentlyUsed(_CAPACITY)

    def reference(self, tag: str) -> Reference:
        """See ``PackageSource.reference``."""
        return flake_reference(tag, self._flake, self._rule)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:
        """See ``PackageSource.may_mean``: Nix would fetch any flake that a pin names."""
        asked = reference.name if COMMIT.fullmatch(reference.name) else None
        return self._flake.may_be_locked_as(pin.identity, asked)

    async def resolve(self, reference: Reference) -> Pin:
        """See ``PackageSource.resolve``."""
        if reference.name == self._flake.text:
            locked, tree = await self._trees.configured()
        else:
            locked = await self._locked(reference)
            tree = await self._trees.tree(without_directory(locked), reference.name)
        # A directory, or a working tree that has changes, is pinned by its copy in the Nix store.
        identity = locked if tree.rev else _copied(tree, locked)
        await self._require_sound(identity, tree.path)
        shown = tree.rev or tree.narHash
        url = self._published(locked) if tree.rev else None
        return Pin(self.description, identity, shown, url, tree.lastModified)

    async def confirm(self, pin: Pin) -> None:
        """See ``PackageSource.confirm``. Whatever is locked can always be had."""

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[Flake]:
        """See ``PackageSource.open``."""
        kind, _, copy = pin.identity.partition("?")[0].partition(":")
        if kind != "path" or not copy.startswith(STORE_DIRECTORY):
            if self._checked.get(pin.identity) is None:
                # Another server, maybe of another version, has resolved the pin.
                tree = await self._trees.tree(without_directory(pin.identity))
                await self._require_sound(pin.identity, tree.path)
            # A commit: Nix has it, or gets it again.
            yield Flake(pin.identity)
            return
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._store.keeping(Path(copy)))
            except PathsCollected:
                # There is no other copy of what was pinned.
                raise PackageSetChanged from None
            await self._require_sound(pin.identity, Path(copy))
            yield Flake(pin.identity)

    def _published(self, locked: str) -> str | None:
        location = SourceLocation.parse(locked.partition("?")[0], public=self._location.public)
        return location.published

    async def _locked(self, reference: Reference) -> str:
        if self._repository is None:
            raise AssertionError("a flake without versions has one reference")
        if not reference.moving:
            name = None
            if self._rule.checks or not self._flake.is_of_a_forge:
                # Older versions of Nix search for a commit in the history of one branch or tag only.
                name = await self._repository.leading_to(reference.name)
            if name is None and self._rule.checks:
                raise self._rule.refusal(reference.name)
            return self._flake.at(reference.name, name)
        found = await self._repository.look_up(reference.name)
        return self._flake.at(found.commit, found.name)

    async def _require_sound(self, identity: str, tree: Path) -> None:
        if self._checked.get(identity) is None:
            await self._trees.require_sound(tree, _directory(identity))
            self._checked.put(identity, True, len(identity))


def _directory(reference: str) -> str:
    return dict(parse_qsl(reference.partition("?")[2])).get("dir", "")


def _copied(tree: Tree, locked: str) -> str:
    parameters = {"narHash": tree.narHash}
    directory = _directory(locked)
    if directory:
        parameters["dir"] = directory
    return f"path:{tree.path}?{urlencode(parameters)}"
