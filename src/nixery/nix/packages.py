"""The seam between the pipeline and Nix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nixery.closure import Closure, StorePath
from nixery.errors import UnavailablePackage
from nixery.image.platform import Platform
from nixery.nix.build_log import ProgressCallback
from nixery.oci.documents import ExecutionParameters

# Nix's own default for meta.priority; a lower number wins a name clash.
DEFAULT_PRIORITY = 5


@dataclass(frozen=True, slots=True)
class Package:
    """An evaluated package.

    Attributes:
        requested_name: as it stands in the image request.
        attribute: the attribute path where the set has it.
        derivation: store path of the ``.drv``.
        outputs: outputs to install, by output name.
        name: without version (``pname``).
        version: may be empty.
        description: one line; may be empty.
        licences: SPDX identifiers where the set gives them, else short names.
        main_program: name of the program in ``bin/`` the package is for, where the set says so.
        priority: who wins a name clash: the lower number.
    """

    requested_name: str
    attribute: str
    derivation: StorePath
    outputs: Mapping[str, StorePath]
    name: str
    version: str = ""
    description: str = ""
    licences: tuple[str, ...] = ()
    main_program: str | None = None
    priority: int = DEFAULT_PRIORITY


@dataclass(frozen=True, slots=True)
class Definition:
    """What an image definition says besides its contents.

    Attributes:
        requested_name: as it stands in the image request.
        attribute: where the set has it.
        execution: its ``config``.
        layers: how many the image is to have at most; ``None`` for as many as any.
        installables: what Nix has to provide because the config mentions it: ``<derivation>!<output>``, or a store path.
        store_paths: the paths that are mentioned.
    """

    requested_name: str
    attribute: str
    execution: ExecutionParameters
    layers: int | None = None
    installables: tuple[str, ...] = ()
    store_paths: tuple[StorePath, ...] = ()


@dataclass(frozen=True, slots=True)
class Contents:
    """What is to be in an image.

    Attributes:
        packages: whose outputs are installed.
        definition: the one that was asked for, if any was.
    """

    packages: tuple[Package, ...]
    definition: Definition | None = None

    @property
    def installables(self) -> list[str]:
        """What Nix has to provide, in its own words, sorted."""
        outputs = {f"{p.derivation}!{output}" for p in self.packages for output in p.outputs}
        return sorted(outputs.union(self.definition.installables if self.definition else ()))

    @property
    def store_paths(self) -> list[StorePath]:
        """The paths whose closure the image is, sorted."""
        outputs = {path for package in self.packages for path in package.outputs.values()}
        return sorted(outputs.union(self.definition.store_paths if self.definition else ()))


@dataclass(frozen=True, slots=True)
class NixFiles:
    """A package set to be imported.

    Attributes:
        path: absolute, of a Nix file or of a directory with a ``default.nix``.
        self_contained: whether everything it may read is below that path: a copy of a commit is, a directory that
            somebody works in may refer to its surroundings.
    """

    path: Path
    self_contained: bool


@dataclass(frozen=True, slots=True)
class Flake:
    """A package set that is a flake's.

    Attributes:
        reference: locked, so that it means the same for ever.
        pure: whether it is evaluated as flakes are: from itself and its locked inputs, and nothing else.
    """

    reference: str
    pure: bool = True


PackageSet = NixFiles | Flake


@dataclass(frozen=True, slots=True)
class NixExpression:
    """An expression of whoever is at the command line, as one more attribute of the package set.

    Attributes:
        attribute: its name there.
        text: Nix; a function is called with ``{ pkgs }``.
    """

    attribute: str
    text: str


Evaluated = Package | Definition | UnavailablePackage


@dataclass(frozen=True, slots=True)
class Details:
    """What a list of packages says about one of them; empty where nobody knows."""

    version: str = ""
    description: str = ""


class NixBuilder(Protocol):
    """Evaluates, realises, and tells the closure of what it realised."""

    async def evaluate(
        self, wanted: Sequence[str], optional: Sequence[str], platform: Platform, package_set: PackageSet
    ) -> Mapping[str, Sequence[Evaluated]]:
        """Look names up in a package set, all in one evaluation.

        Returns:
            By name what it stands for: one package; all of a list; a definition and its contents; or why it cannot be had.
            Nothing, for an optional name that the set does not have.

        Raises:
            EvaluationFailed: the set itself is broken.
            PathsCollected: something that it refers to has gone meanwhile.
            NixTimedOut: evaluation took too long.
            NixUnusable: Nix cannot be run.
        """
        ...

    async def index(
        self, platform: Platform, package_set: PackageSet, *, details: bool
    ) -> Mapping[str, Details]:
        """List everything at the top of a package set that may be a package, by attribute.

        Args:
            platform: what the packages would be for.
            package_set: is listed.
            details: whether to look into each of them, which not every set makes possible, and which may take long.

        Raises:
            EvaluationFailed: the set is broken, or something in it that was looked into.
            NixTimedOut: evaluation took too long.
            NixUnusable: Nix cannot be run.
        """
        ...

    def collector_paused(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        """Have Nix's garbage collector wait, where that is possible, from an evaluation until what it wrote is realised.

        Yields:
            What lets it go on, for ``realise``.
        """
        ...

    def realise(
        self, installables: Sequence[str], tell: ProgressCallback = ..., on_begun: Callable[[], None] = ...
    ) -> AbstractAsyncContextManager[frozenset[StorePath]]:
        """Build or substitute the given outputs, and no others.

        Args:
            installables: in Nix's syntax.
            tell: called with the progress, some ten times a second.
            on_begun: called when Nix itself protects its inputs; possibly several times, or never.

        Yields:
            The store paths that Nix provided. An evaluation may claim others, which do not belong to the
            package set.

            The context protects them from Nix's garbage collector.

        Raises:
            PathsCollected: a derivation no longer exists; a new evaluation writes it.
            BuildFailed: with the failing derivation and the end of its log.
            NixTimedOut: with the derivation, if one caused it.
            NixUnusable: Nix cannot be run.
        """
        ...

    async def closure(self, paths: Sequence[StorePath]) -> Closure:
        """Return the runtime closure of valid store paths, from Nix's database.

        Raises:
            NixUnusable: Nix cannot be run, or a path is not valid.
        """
        ...
