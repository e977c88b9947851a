"""The operator's options for Nix, and the options and environment that confine each kind of command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nixery.nix.configuration import PackageConfiguration
from nixery.nix.environments import RESTRICTED, with_safe_git
from nixery.nix.packages import Flake, NixFiles, PackageSet
from nixery.nix.processes import USUAL_ANSWER, ProcessContext
from nixery.oci.documents import canonical_json

# Where a contained evaluation may fetch from: anything that a hash or a commit can pin, and no files of this
# machine. Nix compares up to a slash.
_NETWORKS = (
    "http:// https:// git:// ssh:// git+http:// git+https:// git+ssh:// hg+http:// hg+https:// hg+ssh:// tarball+http:// "
    "tarball+https:// file+http:// file+https:// github: gitlab: sourcehut:"
)

# Limit in bytes for a builder's log: Nix holds a line in memory until it ends, and keeps logs for ever. It is
# the limit of nixpkgs' own build farm (Hydra's max_log_size).
_LOG = ("--option", "max-build-log-size", str(64 * 1024 * 1024))

_SEARCH_PATH = "NIX_PATH"


@dataclass(frozen=True, slots=True)
class NixOptions:
    """The operator's options for Nix.

    Attributes:
        every_command: added unchanged to all commands of Nix.
        sandbox: whether builders run in Nix's sandbox; ``None`` for Nix's own configuration.
        import_from_derivation: whether an evaluation may build derivations, and then read them.
        environment: of evaluations that read variables, or that build.
        fetching: of evaluations that do neither, and so may fetch with logins.
        building: of commands that build, or that query the store.
        memory: of evaluations, in bytes; ``None`` for no limit.
        read_only: whether evaluations write no derivations, which cannot be realised then.
        on_start: called with the name of each program that is started for a request.
        on_index_start: the same for the package index.
        configuration: of the package set; ``None`` for the set's own defaults. Flakes take none.
    """

    every_command: tuple[str, ...] = ()
    sandbox: bool | None = None
    import_from_derivation: bool = False
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    fetching: Mapping[str, str] = field(default_factory=dict, repr=False)
    building: Mapping[str, str] = field(default_factory=dict, repr=False)
    memory: int | None = None
    read_only: bool = False
    on_start: Callable[[str], None] = field(default=lambda _: None, repr=False, compare=False)
    on_index_start: Callable[[str], None] = field(default=lambda _: None, repr=False, compare=False)
    configuration: PackageConfiguration | None = None

    @property
    def identity(self) -> str:
        """Identify the options that change the result of an evaluation."""
        search_path = self.environment.get(_SEARCH_PATH, "")
        configuration = self.configuration.identity if self.configuration else ""
        return canonical_json(
            [self.every_command, self.import_from_derivation, search_path, configuration]
        ).decode()

    def context(self, package_set: PackageSet, limit: int) -> ProcessContext:
        """Return the context of an evaluation: without secrets, and with bounded memory.

        Args:
            package_set: to evaluate.
            limit: of its output, in bytes.
        """
        environment = self.environment
        match package_set:
            case NixFiles(self_contained=True) | Flake(pure=True):
                if not self.import_from_derivation:
                    # It reads no variable (``restrict-eval``, ``pure-eval``) and runs no builder.
                    environment = self.fetching
                # It may fetch any repository.
                environment = with_safe_git(environment)
            case _:
                pass
        match package_set:
            case NixFiles(self_contained=True):
                # A restricted evaluation may read its search path.
                environment = {name: value for name, value in environment.items() if name != _SEARCH_PATH}
            case _:
                pass
        return ProcessContext(environment, self.memory, answer=limit, on_start=self.on_start)

    def for_evaluation(self, package_set: PackageSet, expressions: str) -> Sequence[str]:
        """Return options that restrict an evaluation to what it needs.

        Args:
            package_set: to evaluate.
            expressions: the directory with the expressions of this package.
        """
        options = ["--option", "allow-import-from-derivation", str(self.import_from_derivation).lower()]
        match package_set:
            case NixFiles(path, self_contained=True):
                # It reads nothing outside, and no environment variable (Nix manual, restrict-eval).
                options += [*RESTRICTED, "--option", "allowed-uris", _NETWORKS]
                # Older versions do not restrict `fetchTree`, a part of flakes.
                options += ["--option", "experimental-features", ""]
                options += ["-I", f"nixery-package-set={path}", "-I", f"nixery-expressions={expressions}"]
            case NixFiles():
                pass
            case Flake(pure=pure):
                if pure:
                    # A pure evaluation can read any file by its hash, unless it is restricted as well.
                    options += [*RESTRICTED, "--option", "allowed-uris", _NETWORKS]
                options += ["--option", "extra-experimental-features", "nix-command flakes"]
                # Only the new commands of Nix evaluate purely by default.
                options += ["--option", "pure-eval", str(pure).lower()]
        if self.import_from_derivation:
            # The evaluation builds as well, so the same limits apply to its builders.
            options += (*self._sandboxing, *_LOG)
        if self.configuration is not None and isinstance(package_set, NixFiles):
            options += ["--arg", "packageConfiguration", self.configuration.expression]
        return [*options, *self.every_command]

    def store(self, limit: int = USUAL_ANSWER) -> ProcessContext:
        """Return the context of commands that build, or that query the store.

        Args:
            limit: of the output, in bytes.
        """
        return ProcessContext(self.building, answer=limit, on_start=self.on_start)

    @property
    def for_building(self) -> Sequence[str]:
        """Return options for realising."""
        return (*self._sandboxing, *_LOG, *self.every_command)

    @property
    def _sandboxing(self) -> Sequence[str]:
        if self.sandbox is None:
            return ()
        return ("--option", "sandbox", str(self.sandbox).lower(), "--option", "sandbox-fallback", "false")
