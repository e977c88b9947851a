"""Package sets, and what evaluating one returns: packages, image definitions, or a reason for neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from nixery.closure import StorePath
from nixery.errors import UnavailablePackage
from nixery.image.meta_packages import FACTS
from nixery.oci.documents import ExecutionParameters

# Nix's own default for meta.priority; a lower number wins a name clash.
DEFAULT_PRIORITY = 5


@dataclass(frozen=True, slots=True)
class Package:
    """An evaluated package.

    Attributes:
        requested_name: as written in the image request.
        attribute: its attribute path in the set.
        derivation: store path of the ``.drv``.
        outputs: outputs to install, by output name.
        name: without version (``pname``).
        version: may be empty.
        description: one line; may be empty.
        licences: SPDX identifiers where the set has them, else short names.
        main_program: the program in ``bin/`` that the package is for, if the set names it.
        priority: decides name clashes; the lower number wins.
        fhs: whether its programs look for files of its dependencies in the file system hierarchy (``/usr/share``),
            so that the image has the files of its whole closure there.
        is_realised: whether its outputs are in the Nix store, so that no derivation is needed. The closure tells
            whether this derivation built them.
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
    fhs: bool = False
    is_realised: bool = False


@dataclass(frozen=True, slots=True)
class Definition:
    """An image definition without its contents.

    Attributes:
        requested_name: as written in the image request.
        attribute: its attribute path in the set.
        execution: its ``config``.
        layers: the most layers of the image; ``None`` for the server's default.
        installables: what the config refers to and Nix must provide: ``<derivation>!<output>``, or a store
            path.
        store_paths: the paths that the config refers to.
    """

    requested_name: str
    attribute: str
    execution: ExecutionParameters
    layers: int | None = None
    installables: tuple[str, ...] = ()
    store_paths: tuple[StorePath, ...] = ()


@dataclass(frozen=True, slots=True)
class MetaPackageFound:
    """A meta-package without its packages, which follow it.

    Attributes:
        requested_name: as written in the image request.
        command: what a container of an image with it runs by default; may be empty.
    """

    requested_name: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a package set says of itself.

    Attributes:
        os_release: for ``/etc/os-release``; valid.
    """

    os_release: Mapping[str, str]

    @property
    def requested_name(self) -> str:
        """The name in requests."""
        return FACTS


EvaluatedItem = Package | Definition | MetaPackageFound | Facts | UnavailablePackage


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of an image.

    Attributes:
        packages: the packages whose outputs are installed.
        definition: the image definition that was requested, if any.
        command: what a container of the image runs by default, of its meta-packages; empty if they say nothing.
        os_release: what the package set says of itself for ``/etc/os-release``; valid, and empty if it says nothing.
    """

    packages: tuple[Package, ...]
    definition: Definition | None = None
    command: tuple[str, ...] = ()
    os_release: Mapping[str, str] = field(default_factory=dict)

    @property
    def installables(self) -> list[str]:
        """The outputs that Nix must provide, in Nix's syntax, sorted."""
        outputs = {
            str(path) if package.is_realised else f"{package.derivation}!{output}"
            for package in self.packages
            for output, path in package.outputs.items()
        }
        return sorted(outputs.union(self.definition.installables if self.definition else ()))

    @property
    def store_paths(self) -> list[StorePath]:
        """The paths whose closure is the image, sorted."""
        outputs = {path for package in self.packages for path in package.outputs.values()}
        paths = outputs.union(self.definition.store_paths if self.definition else ())
        # By the text itself: comparing twenty thousand objects takes ten times as long.
        return sorted(paths, key=attrgetter("base_name"))


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of a package set, evaluated for the package index.

    Attributes:
        path: names from the top of the set.
        kind: ``package``, ``list``, ``definition``, ``meta-package``, ``set`` (of attributes), ``facts`` or ``other``.
        items: what a request for it would get; ``None`` if only an evaluation can say.
        recurse: whether it is a set of packages, as nixpkgs marks them.
        reason: why it is not available; empty if it is.
        name: without version (``pname``).
        version: may be empty, as all that follows.
        description: one line.
        homepage: a URL.
        licences: SPDX identifiers where the set has them, else short names.
        main_program: the program that it is for.
        programs: that it installs.
        platforms: that it supports, in Nix's words.
        outputs: all of them, not only those that are installed: store paths by name.
    """

    path: tuple[str, ...]
    kind: str
    items: tuple[EvaluatedItem, ...] | None = None
    recurse: bool = False
    reason: str = ""
    name: str = ""
    version: str = ""
    description: str = ""
    homepage: str = ""
    licences: tuple[str, ...] = ()
    main_program: str = ""
    programs: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NixFiles:
    """A package set that Nix imports.

    Attributes:
        path: absolute path of a Nix file, or of a directory with a ``default.nix``.
        self_contained: whether everything that it may read is below that path. True for a copy of a commit;
            false for a working directory, which may refer to its surroundings.
    """

    path: Path
    self_contained: bool


@dataclass(frozen=True, slots=True)
class Flake:
    """A package set from a flake.

    Attributes:
        reference: locked, so that it never changes its meaning.
        pure: whether the evaluation reads only the flake and its locked inputs.
        tree: of the flake in the Nix store, which may have been collected; ``None`` if unknown.
    """

    reference: str
    pure: bool = True
    tree: Path | None = None


PackageSet = NixFiles | Flake


@dataclass(frozen=True, slots=True)
class NixExpression:
    """An expression from the command line that is added to the package set as an attribute.

    Attributes:
        attribute: name of that attribute.
        text: Nix; a function is called with ``{ pkgs }``.
    """

    attribute: str
    text: str
