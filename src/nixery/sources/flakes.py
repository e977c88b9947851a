"""Trees of flakes: Nix fetches them without their inputs, and we check them before any evaluation.

Package sets that are flakes (``NIXERY_FLAKE``).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from pydantic import BaseModel, ValidationError

from nixery.caching import LRUCache
from nixery.closure import STORE_DIRECTORY
from nixery.errors import (
    EvaluationFailed,
    NixTimedOut,
    NixUnusable,
    PackageSetChanged,
    PathsCollected,
    TagUnknown,
)
from nixery.nix.error_message import explanation, without_paths
from nixery.nix.packages import Flake
from nixery.nix.processes import ProcessContext, run_command
from nixery.source_location import COMMIT, SourceLocation
from nixery.sources.commits import CommitRule
from nixery.sources.flake_lock import (
    FlakeReference,
    FlakeRefused,
    check_inputs,
    flake_reference,
    locked_inputs,
)
from nixery.sources.git_commands import Disclosure, with_hardening
from nixery.sources.git_repository import GitRepository
from nixery.sources.source import Pin, Reference
from nixery.sources.trees import NixStore

# Timeouts in seconds: for fetching a flake's tree, and for reading its inputs.
_FETCH = 900
_READ = 60

# Bytes of address space for reading inputs.
_MEMORY = 2 * 1024**3

# Attempts to read a directory that changes during the read.
_ATTEMPTS = 3

_EXPRESSIONS = files("nixery.sources") / "expressions"

# Messages of Nix, git and the forges that mean a wrong reference rather than an unreachable source.
_UNKNOWN = (
    *("http error 404", "error: 404", "couldn't find remote ref", "cannot find git revision"),
    "unknown revision",
    "not our ref",
    "revspec",  # libgit2, in newer versions of Nix
    "object not found",
    "cannot read object",
)

# `nix flake prefetch`, in all versions that have flakes.
_DOWNLOADED = re.compile(r"Downloaded '(?P<url>[^']+)' to '(?P<path>[^']+)' \(hash '(?P<hash>[^']+)'\)")


class Tree(BaseModel):
    """The answer of ``tree.nix``."""

    path: Path
    narHash: str  # noqa: N815 -- Nix's names
    rev: str | None = None
    lastModified: int | None = None  # noqa: N815


class _Inputs(BaseModel):
    """The answer of ``flake_inputs.nix``."""

    inputs: dict[str, Any]
    arguments: list[str]


class FlakeTrees:
    """Fetches the trees of one flake.

    Args:
        flake: as the operator wrote it.
        disclosure: makes error messages about it.
        fetching: surroundings of commands that fetch it; their memory is bounded, since a server may send an archive without end.
    """

    def __init__(self, flake: FlakeReference, disclosure: Disclosure, fetching: ProcessContext) -> None:
        self._flake = flake
        self._disclosure = disclosure
        self._fetching = fetching

    async def configured(self) -> tuple[str, Tree]:
        """Fetch the current state of the flake; return a reference to that state, and its tree.

        Raises:
            PackageSetChanged: it changed during every attempt.
            TagUnknown, SourceUnreachable: as below.
        """
        for _ in range(_ATTEMPTS):
            found = await self._prefetch()
            locked = found["url"]
            kind, _, place = locked.partition("?")[0].partition(":")
            parameters = dict(parse_qsl(locked.partition("?")[2]))
            if kind == "path" and parameters.get("lastModified", "").isdigit():
                modified = int(parameters["lastModified"])
                return locked, Tree(path=Path(found["path"]), narHash=found["hash"], lastModified=modified)
            tree = await self.tree(
                {"type": "path", "path": place} if kind == "path" else without_directory(locked)
            )
            if tree.narHash == found["hash"]:
                return locked, tree
        raise PackageSetChanged

    async def _prefetch(self) -> Mapping[str, str]:
        with as_file(_EXPRESSIONS / "registry.json") as registry:
            # Otherwise Nix downloads its registry even where it needs none.
            options = ("--option", "flake-registry", str(registry)) if self._flake.is_direct else ()
            features = ("--extra-experimental-features", "nix-command flakes")
            command = ("nix", *features, *options, "flake", "prefetch", "--refresh", self._flake.text)
            _, stderr = await self._nix(*command)
        found = _DOWNLOADED.search(" ".join(line.strip() for line in stderr))
        if found is None:
            raise NixUnusable("Nix's answer to nix flake prefetch is not understood")
        return found.groupdict()

    async def tree(self, reference: str | Mapping[str, str], tag: str = "latest") -> Tree:
        """Fetch a tree without its inputs.

        Args:
            reference: as a URL or as attributes, without ``dir``.
            tag: that the client asked for.

        Raises:
            TagUnknown, SourceUnreachable: it does not exist, or cannot be fetched.
        """
        stdout, _ = await self._nix(
            *("nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode"),
            *("--option", "extra-experimental-features", "nix-command flakes"),
            *("--option", "restrict-eval", "false", "--option", "pure-eval", "false"),
            *("--expr", (_EXPRESSIONS / "tree.nix").read_text()),
            variables={"NIXERY_TREE": json.dumps(reference)},
            tag=tag,
        )
        try:
            return Tree.model_validate_json(stdout)
        except ValidationError as error:
            raise NixUnusable("Nix's answer about a flake's tree is not understood") from error

    async def _nix(
        self, *command: str, variables: Mapping[str, str] | None = None, tag: str = "latest"
    ) -> tuple[bytes, Sequence[str]]:
        environment = with_hardening({**self._fetching.environment, **(variables or {})})
        context = replace(self._fetching, environment=environment)
        try:
            completed, stderr = await run_command(_FETCH, *command, context=context)
        except NixTimedOut as error:
            raise self._disclosure.unreachable(f"no tree within {_FETCH} seconds") from error
        if completed.exit_code == 0:
            return completed.stdout, stderr
        # Nix reports only git's exit status; git writes the reason on a line of its own.
        fatal = [line for line in stderr if line.startswith("fatal:")]
        unreachable = self._disclosure.unreachable(" ".join([explanation(stderr), *fatal]))
        if any(words in line.casefold() for words in _UNKNOWN for line in stderr):
            raise TagUnknown(tag, f"{self._disclosure.name} has no such flake")
        raise unreachable

    async def require_sound(self, tree: Path, directory: str) -> None:
        """Check a flake's inputs before anything of it is evaluated as a flake.

        Args:
            tree: in the Nix store.
            directory: of the flake in it.

        Raises:
            EvaluationFailed: an input is not locked, or refers to this machine.
            PathsCollected: the tree no longer exists.
        """
        try:
            locked = await asyncio.to_thread(locked_inputs, tree, directory)
            found = await self._inputs(tree, directory)
            check_inputs(found.inputs, found.arguments, locked)
        except FileNotFoundError:
            raise PathsCollected(str(tree)) from None
        except FlakeRefused as error:
            raise EvaluationFailed((), f"the flake is refused: {error}") from error

    async def _inputs(self, tree: Path, directory: str) -> _Inputs:
        """Read the inputs that a flake declares: the evaluation can reach its tree only, and no network."""
        environment = {
            name: value for name, value in self._fetching.environment.items() if name != "NIX_PATH"
        }
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
                _READ, *command, context=ProcessContext(environment, _MEMORY)
            )
        except NixTimedOut as error:
            raise EvaluationFailed(
                (), f"reading the flake's inputs took longer than {_READ} seconds"
            ) from error
        if completed.exit_code != 0:
            raise EvaluationFailed((), without_paths(explanation(stderr)))
        try:
            return _Inputs.model_validate_json(completed.stdout)
        except ValidationError as error:
            raise FlakeRefused("its inputs are not understood") from error


def without_directory(reference: str) -> str:
    """Return a reference without ``dir``, which locates the flake in a tree and does not concern fetching."""
    location, _, query = reference.partition("?")
    parameters = [(key, value) for key, value in parse_qsl(query) if key != "dir"]
    return f"{location}?{urlencode(parameters)}" if parameters else location


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
        fetching: ProcessContext,
    ) -> None:
        self._location = location
        self.description = f"flake:{reference.text}"
        self._flake = reference
        self._repository = repository
        self._rule = rule
        self._store = store
        self._trees = FlakeTrees(reference, Disclosure(location), fetching)
        self._checked: LRUCache[str, bool] = LRUCache(_CAPACITY)

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
