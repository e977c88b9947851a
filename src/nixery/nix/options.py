"""What Nix is told besides what it is to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nixery.nix.packages import Flake, NixFiles, PackageSet
from nixery.nix.processes import ProcessContext
from nixery.oci.documents import canonical_json

# Where a contained evaluation may fetch from: whatever a hash or a commit can pin, and no files of this machine. Nix compares
# up to a slash.
_NETWORKS = (
    "http:// https:// git:// ssh:// git+http:// git+https:// git+ssh:// hg+http:// hg+https:// hg+ssh:// tarball+http:// "
    "tarball+https:// file+http:// file+https:// github: gitlab: sourcehut:"
)

# Bytes that a builder may write. Nix has a line in memory until it ends, however long it is, and keeps logs for ever. The bound of
# nixpkgs' own build farm (Hydra's max_log_size).
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
    """

    every_command: tuple[str, ...] = ()
    sandbox: bool | None = None
    import_from_derivation: bool = False
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    fetching: Mapping[str, str] = field(default_factory=dict, repr=False)
    building: Mapping[str, str] = field(default_factory=dict, repr=False)
    memory: int | None = None

    @property
    def identity(self) -> str:
        """Of what has a say in what an evaluation results in, besides the package set."""
        search_path = self.environment.get(_SEARCH_PATH, "")
        return canonical_json([self.every_command, self.import_from_derivation, search_path]).decode()

    def context(self, package_set: PackageSet, answer: int) -> ProcessContext:
        """Return the surroundings of an evaluation: without our secrets, and with bounded memory.

        Args:
            package_set: to evaluate.
            answer: limit of its output, in bytes.
        """
        environment = self.environment
        match package_set:
            case NixFiles(self_contained=True) | Flake(pure=True) if not self.import_from_derivation:
                # It reads no variable (``restrict-eval``, ``pure-eval``) and runs no builder.
                environment = self.fetching
            case _:
                pass
        match package_set:
            case NixFiles(self_contained=True):
                # What is searched is what a restricted evaluation may read.
                environment = {name: value for name, value in environment.items() if name != _SEARCH_PATH}
            case _:
                pass
        return ProcessContext(environment, self.memory, answer=answer)

    def for_evaluation(self, package_set: PackageSet, expressions: str) -> Sequence[str]:
        """Return options that keep an evaluation to what it needs.

        Args:
            package_set: what is evaluated.
            expressions: the directory with our own expressions.
        """
        options = ["--option", "allow-import-from-derivation", str(self.import_from_derivation).lower()]
        match package_set:
            case NixFiles(path, self_contained=True):
                # Nothing outside is read, nor any variable of the environment (Nix manual, restrict-eval).
                options += ["--option", "restrict-eval", "true", "--option", "allowed-uris", _NETWORKS]
                # What flakes bring along (`fetchTree`) is not restricted in older versions.
                options += ["--option", "experimental-features", ""]
                options += ["-I", f"nixery-package-set={path}", "-I", f"nixery-expressions={expressions}"]
            case NixFiles():
                pass
            case Flake(pure=pure):
                if pure:
                    # A pure evaluation can read any file by its hash, unless it is restricted as well.
                    options += ["--option", "restrict-eval", "true", "--option", "allowed-uris", _NETWORKS]
                options += ["--option", "extra-experimental-features", "nix-command flakes"]
                # Not by itself: only the new commands of Nix evaluate purely unless they are told otherwise.
                options += ["--option", "pure-eval", str(pure).lower()]
        if self.import_from_derivation:
            # It builds as well, so the same holds for its builders.
            options += (*self._sandboxing, *_LOG)
        return [*options, *self.every_command]

    def store(self, answer: int | None = None) -> ProcessContext:
        """Return the surroundings of commands that build, or that query the store.

        Args:
            answer: limit of the output in bytes; ``None`` for a short one.
        """
        return (
            ProcessContext(self.building) if answer is None else ProcessContext(self.building, answer=answer)
        )

    @property
    def for_building(self) -> Sequence[str]:
        """Return options for realising."""
        return (*self._sandboxing, *_LOG, *self.every_command)

    @property
    def _sandboxing(self) -> Sequence[str]:
        if self.sandbox is None:
            return ()
        return ("--option", "sandbox", str(self.sandbox).lower(), "--option", "sandbox-fallback", "false")
