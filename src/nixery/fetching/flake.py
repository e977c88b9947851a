"""Package sets that are flakes (``NIXERY_FLAKE``)."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, ValidationError

from nixery.closure.store_path import STORE_DIRECTORY
from nixery.errors import (
    BuildTimedOut,
    EvaluationFailed,
    NixUnusable,
    PackageSetChanged,
    PathsCollected,
    TagUnknown,
)
from nixery.fetching.disclosure import Disclosure
from nixery.fetching.flake_lock import FlakeRefused, check_inputs, locked_inputs
from nixery.fetching.git_command import with_hardening
from nixery.fetching.git_repository import GitRepository
from nixery.fetching.nix_store import NixStore
from nixery.least_recently_used import LeastRecentlyUsed
from nixery.nix.command import run_command
from nixery.nix.error_message import explanation, without_paths
from nixery.nix.process import Surroundings
from nixery.sources.commits import CommitRule
from nixery.sources.flake import FlakeReference, flake_reference
from nixery.sources.location import SourceLocation
from nixery.sources.source import Flake, Pin, Reference

# Seconds, for a flake's tree, and for reading what its inputs are.
_FETCH = 900
_READ = 60

# Bytes of address space for reading that; and what Nix says is all of it that may be a reason.
_MEMORY = 2 * 1024**3

# How often a directory is read anew that changes while it is read.
_ATTEMPTS = 3

# Bytes for the flakes that were looked at.
_CAPACITY = 256 * 1024

_EXPRESSIONS = files("nixery.fetching") / "expressions"

# What Nix, git and the forges say if the reference is wrong rather than out of reach.
_UNKNOWN = (
    "http error 404",
    "error: 404",
    "couldn't find remote ref",
    "cannot find git revision",
    "unknown revision",
    "not our ref",
    "revspec",  # libgit2, in newer versions of Nix
    "object not found",
    "cannot read object",
)

# `nix flake prefetch`, in all versions that have flakes.
_DOWNLOADED = re.compile(r"Downloaded '(?P<url>[^']+)' to '(?P<path>[^']+)' \(hash '(?P<hash>[^']+)'\)")


class _Tree(BaseModel):
    """The answer of ``tree.nix``."""

    path: Path
    narHash: str  # noqa: N815 -- Nix's names
    rev: str | None = None
    lastModified: int | None = None  # noqa: N815


class _Inputs(BaseModel):
    """The answer of ``flake_inputs.nix``."""

    inputs: dict[str, Any]
    arguments: list[str]


class FlakeSource:
    """The ``PackageSource`` of a flake: ``packages`` and ``legacyPackages`` for the system.

    Args:
        reference: of the operator's.
        location: the same, as people see it.
        repository: where branches and tags are looked up; ``None`` for a flake without versions.
        rule: which commits clients may ask for.
        store: where Nix puts trees.
        environment: for fetching.
    """

    def __init__(
        self,
        reference: FlakeReference,
        location: SourceLocation,
        repository: GitRepository | None,
        rule: CommitRule,
        store: NixStore,
        environment: Mapping[str, str],
    ) -> None:
        self._location = location
        self.description = f"flake:{reference.text}"
        self._disclosure = Disclosure(location)
        self._flake = reference
        self._repository = repository
        self._rule = rule
        self._store = store
        self._environment = environment
        self._checked: LeastRecentlyUsed[str, bool] = LeastRecentlyUsed(_CAPACITY)

    def reference(self, tag: str) -> Reference:
        """See ``PackageSource.reference``."""
        return flake_reference(tag, self._flake, self._rule)

    async def resolve(self, reference: Reference) -> Pin:
        """See ``PackageSource.resolve``."""
        if reference.name == self._flake.text:
            locked, tree = await self._resolve_configured()
        else:
            locked = await self._locked(reference)
            tree = await self._tree(_without_directory(locked), reference.name)
        # A directory, or a working tree that has changes, is pinned by its copy in the Nix store.
        identity = locked if tree.rev else _copied(tree, locked)
        await self._check(identity, tree.path, _directory(locked))
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
                # Another server has resolved the pin, perhaps one of another version.
                tree = await self._tree(_without_directory(pin.identity))
                await self._check(pin.identity, tree.path, _directory(pin.identity))
            # A commit: Nix has it, or gets it again.
            yield Flake(pin.identity)
            return
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._store.keeping(Path(copy)))
            except PathsCollected:
                # There is no other copy of what was pinned.
                raise PackageSetChanged from None
            await self._check(pin.identity, Path(copy), _directory(pin.identity))
            yield Flake(pin.identity)

    def _published(self, locked: str) -> str | None:
        location = SourceLocation.parse(locked.partition("?")[0], public=self._location.public)
        return location.published

    async def _locked(self, reference: Reference) -> str:
        if self._repository is None:
            raise AssertionError("a flake without versions has one reference")
        if not reference.moving:
            # Older versions of Nix find a commit in the history of one branch or tag alone.
            name = await self._repository.leading_to(reference.name)
            if name is None and self._rule.checks:
                raise self._rule.refusal(reference.name)
            return self._flake.at(reference.name, name)
        found = await self._repository.look_up(reference.name)
        return self._flake.at(found.commit, found.name)

    async def _resolve_configured(self) -> tuple[str, _Tree]:
        """Fetch the flake as it is now; return a reference of that state, and its tree."""
        for _ in range(_ATTEMPTS):
            found = await self._prefetch()
            locked = found["url"]
            kind, _, place = locked.partition("?")[0].partition(":")
            parameters = dict(parse_qsl(locked.partition("?")[2]))
            if kind == "path" and parameters.get("lastModified", "").isdigit():
                modified = int(parameters["lastModified"])
                return locked, _Tree(path=Path(found["path"]), narHash=found["hash"], lastModified=modified)
            tree = await self._tree(
                {"type": "path", "path": place} if kind == "path" else _without_directory(locked)
            )
            if tree.narHash == found["hash"]:
                return locked, tree
        raise PackageSetChanged

    async def _prefetch(self) -> Mapping[str, str]:
        with as_file(_EXPRESSIONS / "registry.json") as registry:
            # Nix would ask for its registry even where it is of no use.
            options = ("--option", "flake-registry", str(registry)) if self._flake.is_direct else ()
            stderr = (
                await self._nix(
                    *("nix", "--extra-experimental-features", "nix-command flakes", *options),
                    *("flake", "prefetch", "--refresh", self._flake.text),
                )
            )[1]
        found = _DOWNLOADED.search(" ".join(line.strip() for line in stderr))
        if found is None:
            raise NixUnusable("Nix's answer to nix flake prefetch is not understood")
        return found.groupdict()

    async def _tree(self, reference: str | Mapping[str, str], tag: str = "latest") -> _Tree:
        """Fetch a tree, and none of its inputs."""
        stdout, _ = await self._nix(
            *("nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode"),
            *("--option", "extra-experimental-features", "nix-command flakes"),
            *("--option", "restrict-eval", "false", "--option", "pure-eval", "false"),
            *("--expr", (_EXPRESSIONS / "tree.nix").read_text()),
            variables={"NIXERY_TREE": json.dumps(reference)},
            tag=tag,
        )
        try:
            return _Tree.model_validate_json(stdout)
        except ValidationError as error:
            raise NixUnusable("Nix's answer about a flake's tree is not understood") from error

    async def _nix(
        self, *command: str, variables: Mapping[str, str] | None = None, tag: str = "latest"
    ) -> tuple[bytes, Sequence[str]]:
        surroundings = Surroundings(with_hardening({**self._environment, **(variables or {})}))
        try:
            completed, stderr = await run_command(_FETCH, *command, surroundings=surroundings)
        except BuildTimedOut as error:
            raise self._disclosure.unreachable(f"no tree within {_FETCH} seconds") from error
        if completed.exit_code == 0:
            return completed.stdout, stderr
        # Nix says of git no more than its status; git says why, in a line of its own.
        fatal = [line for line in stderr if line.startswith("fatal:")]
        unreachable = self._disclosure.unreachable(" ".join([explanation(stderr), *fatal]))
        if any(words in line.casefold() for words in _UNKNOWN for line in stderr):
            raise TagUnknown(tag, f"{self._disclosure.name} has no such flake")
        raise unreachable

    async def _check(self, identity: str, tree: Path, directory: str) -> None:
        """Make sure of a flake's inputs before anything of it is evaluated as a flake.

        Raises:
            EvaluationFailed: an input is not locked, or of this machine.
        """
        if self._checked.get(identity) is not None:
            return
        try:
            locked = await asyncio.to_thread(locked_inputs, tree, directory)
            found = await self._inputs(tree, directory)
            check_inputs(found.inputs, found.arguments, locked)
        except FileNotFoundError:
            raise PathsCollected(str(tree)) from None
        except FlakeRefused as error:
            raise EvaluationFailed((), f"the flake is refused: {error}") from error
        self._checked.put(identity, True, len(identity))

    async def _inputs(self, tree: Path, directory: str) -> _Inputs:
        """Read what a flake says of its inputs: nothing but its tree is in reach, and no network."""
        environment = {name: value for name, value in self._environment.items() if name != "NIX_PATH"}
        command = (
            *("nix-instantiate", "--eval", "--strict", "--json"),
            *("--option", "restrict-eval", "true", "--option", "allowed-uris", ""),
            *("--option", "allow-import-from-derivation", "false", "--option", "experimental-features", ""),
            *("-I", f"flake={tree}"),
            *(
                "--expr",
                (_EXPRESSIONS / "flake_inputs.nix").read_text(),
                "--argstr",
                "file",
                str(tree / directory / "flake.nix"),
            ),
        )
        try:
            completed, stderr = await run_command(
                _READ, *command, surroundings=Surroundings(environment, _MEMORY)
            )
        except BuildTimedOut as error:
            raise EvaluationFailed(
                (), f"reading the flake's inputs took longer than {_READ} seconds"
            ) from error
        if completed.exit_code != 0:
            raise EvaluationFailed((), without_paths(explanation(stderr)))
        try:
            return _Inputs.model_validate_json(completed.stdout)
        except ValidationError as error:
            raise FlakeRefused("its inputs are not understood") from error


def _directory(reference: str) -> str:
    return dict(parse_qsl(reference.partition("?")[2])).get("dir", "")


def _without_directory(reference: str) -> str:
    # It says where the flake is in a tree, and is nothing to fetch.
    location, _, query = reference.partition("?")
    parameters = [(key, value) for key, value in parse_qsl(query) if key != "dir"]
    return f"{location}?{urlencode(parameters)}" if parameters else location


def _copied(tree: _Tree, locked: str) -> str:
    parameters = {"narHash": tree.narHash}
    directory = _directory(locked)
    if directory:
        parameters["dir"] = directory
    return f"path:{tree.path}?{urlencode(parameters)}"
