"""Have Nix fetch the archives and trees of package sources; nothing fetched here is evaluated as a package set."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nixery.errors import AnswerTooLarge, EvaluationFailed, NixTimedOut, NixUnusable
from nixery.nix.environments import RESTRICTED
from nixery.nix.error_message import explanation, without_paths
from nixery.nix.processes import ProcessContext, run_command

# Seconds: for 45 MB and unpacking 40,000 files, and for reading the inputs of a flake.
_FETCH_TIMEOUT = 900
_READ_TIMEOUT = 60

# Bytes of address space for reading the inputs of a flake.
_MEMORY = 2 * 1024**3

# Limit in bytes for the inputs that a flake declares. The largest flakes in use have some hundred, and 100
# kB.
_LARGEST_INPUTS = 1024 * 1024

_EXPRESSIONS = files("nixery.nix") / "expressions"

# Nix's messages for an archive that a server does not have, and for a file.
_NO_ARCHIVE = re.compile(r"HTTP error 404|error: 404|file not found", re.IGNORECASE)

# Messages of Nix, git and the forges that mean a wrong reference rather than an unreachable source.
_NO_TREE = re.compile(
    r"http error 404|error: 404|couldn't find remote ref|cannot find git revision|unknown revision|not our ref"
    r"|revspec"  # libgit2, in newer versions of Nix
    r"|object not found|cannot read object",
    re.IGNORECASE,
)

# The last line of `nix flake prefetch`, in all versions that have flakes.
_DOWNLOADED = re.compile(r"Downloaded '(?P<url>.+)' to '(?P<path>[^']+)' \(hash '(?P<hash>[^']+)'\)\.?")


class FetchFailed(Exception):
    """Nix could not fetch something.

    Attributes:
        reason: the words of Nix and git, which may repeat a URL with its secrets.
        is_missing: whether the server answered that it does not have it.
    """

    def __init__(self, reason: str, *, is_missing: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_missing = is_missing


@dataclass(frozen=True, slots=True)
class LockedFlake:
    """The current state of a flake.

    Attributes:
        reference: locked.
        path: of its tree in the Nix store.
        nar_hash: of the tree.
    """

    reference: str
    path: Path
    nar_hash: str


class FlakeTree(BaseModel):
    """A tree in the Nix store, as ``tree.nix`` describes it: its commit, and the date of that commit in seconds since the epoch."""

    path: Path
    narHash: str  # noqa: N815 -- Nix's names
    rev: str | None = None
    lastModified: int | None = None  # noqa: N815


class FlakeInputs(BaseModel):
    """The result of ``flake_inputs.nix``: the declared inputs, and the arguments of ``outputs``."""

    inputs: dict[str, Any]
    arguments: list[str]


async def fetch_archive(url: str, temporary: Path, context: ProcessContext) -> Path:
    """Fetch and unpack an archive; return the store path of its tree.

    Args:
        url: of the archive; it may hold secrets.
        temporary: for Nix's cache of URLs; belongs to this process.
        context: for fetching. Nix may keep an archive in memory, and a server may send one without end, so
            its memory should be limited.

    Raises:
        FetchFailed: the archive does not exist, or cannot be fetched.
        NixUnusable: Nix cannot be run.
    """
    with tempfile.TemporaryDirectory(dir=temporary) as cache:
        # Nix caches whole URLs where other users may read them; each archive is fetched only once anyway.
        stdout, _ = await _fetch(
            "archive",
            _NO_ARCHIVE,
            _with_variables(context, {"NIXERY_ARCHIVE_URL": url, "XDG_CACHE_HOME": cache}),
            *("nix-instantiate", "--eval", "--read-write-mode"),
            *("--option", "restrict-eval", "false", "--option", "pure-eval", "false"),
            *("--expr", (_EXPRESSIONS / "archive.nix").read_text()),
        )
    return Path(stdout.decode().strip().strip('"'))


async def lock_flake(reference: str, context: ProcessContext, *, use_registry: bool) -> LockedFlake:
    """Fetch the current state of a flake, without its inputs.

    Args:
        reference: of the operator.
        context: for fetching.
        use_registry: whether Nix may look the reference up in its registry, which it downloads.

    Raises:
        FetchFailed: the flake does not exist, or cannot be fetched.
        NixUnusable: Nix cannot be run, or its answer cannot be parsed.
    """
    with as_file(_EXPRESSIONS / "registry.json") as registry:
        # Otherwise Nix downloads its registry even for references that do not need it.
        options = () if use_registry else ("--option", "flake-registry", str(registry))
        features = ("--extra-experimental-features", "nix-command flakes")
        command = ("nix", *features, *options, "flake", "prefetch", "--refresh", reference)
        _, stderr = await _fetch("tree", _NO_TREE, context, *command)
    # The last match is Nix's own: before it, git prints warnings that quote names of files, and messages of
    # its server. Both can look like this line, and would choose another flake.
    matches = (_DOWNLOADED.fullmatch(line.strip()) for line in reversed(stderr))
    found = next(filter(None, matches), None)
    if found is None:
        raise NixUnusable("cannot parse the output of nix flake prefetch")
    return LockedFlake(found["url"], Path(found["path"]), found["hash"])


async def fetch_tree(reference: str | Mapping[str, str], context: ProcessContext) -> FlakeTree:
    """Fetch the tree of a flake, without its inputs.

    Args:
        reference: as a URL or as attributes, without ``dir``.
        context: for fetching.

    Raises:
        FetchFailed: the tree does not exist, or cannot be fetched.
        NixUnusable: Nix cannot be run, or its answer cannot be parsed.
    """
    stdout, _ = await _fetch(
        "tree",
        _NO_TREE,
        _with_variables(context, {"NIXERY_TREE": json.dumps(reference)}),
        *("nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode"),
        *("--option", "extra-experimental-features", "nix-command flakes"),
        *("--option", "restrict-eval", "false", "--option", "pure-eval", "false"),
        *("--expr", (_EXPRESSIONS / "tree.nix").read_text()),
    )
    try:
        return FlakeTree.model_validate_json(stdout)
    except ValidationError as error:
        raise NixUnusable("cannot parse Nix's description of a flake's tree") from error


async def read_flake_inputs(tree: Path, directory: str, environment: Mapping[str, str]) -> FlakeInputs:
    """Read the inputs that a flake declares; the evaluation can reach its tree only, and no network.

    Args:
        tree: in the Nix store.
        directory: of the flake in it.
        environment: of Nix.

    Raises:
        EvaluationFailed: ``flake.nix`` does not evaluate, or its inputs are too many or have an unknown form.
        NixUnusable: Nix cannot be run.
    """
    environment = {name: value for name, value in environment.items() if name != "NIX_PATH"}
    command = (
        *("nix-instantiate", "--eval", "--strict", "--json"),
        *(*RESTRICTED, "--option", "allowed-uris", ""),
        *("--option", "allow-import-from-derivation", "false", "--option", "experimental-features", ""),
        *("-I", f"flake={tree}"),
        *("--expr", (_EXPRESSIONS / "flake_inputs.nix").read_text()),
        *("--argstr", "file", str(tree / directory / "flake.nix")),
    )
    try:
        completed, stderr = await run_command(
            _READ_TIMEOUT, *command, context=ProcessContext(environment, _MEMORY, answer=_LARGEST_INPUTS)
        )
    except AnswerTooLarge as error:
        # Nix demands literal inputs, but only after this: an expression can make millions of them.
        size = f"{error.limit // 1024**2} MiB"
        raise EvaluationFailed((), f"the flake is refused: its inputs have more than {size}") from None
    except NixTimedOut as error:
        raise EvaluationFailed(
            (), f"reading the flake's inputs took longer than {_READ_TIMEOUT} seconds"
        ) from error
    if completed.exit_code != 0:
        raise EvaluationFailed((), without_paths(explanation(stderr)))
    try:
        return FlakeInputs.model_validate_json(completed.stdout)
    except ValidationError as error:
        raise EvaluationFailed((), "the flake is refused: its inputs have an unknown form") from error


def _with_variables(context: ProcessContext, variables: Mapping[str, str]) -> ProcessContext:
    return replace(context, environment={**context.environment, **variables})


async def _fetch(
    what: str, missing: re.Pattern[str], context: ProcessContext, *command: str
) -> tuple[bytes, Sequence[str]]:
    try:
        completed, stderr = await run_command(_FETCH_TIMEOUT, *command, context=context)
    except NixTimedOut as error:
        raise FetchFailed(f"no {what} within {_FETCH_TIMEOUT} seconds") from error
    if completed.exit_code == 0:
        return completed.stdout, stderr
    # Nix reports only git's exit status; git writes the reason on a separate line.
    fatal = [line for line in stderr if line.startswith("fatal:")]
    # Newer versions print the message before the last error, so all lines count.
    raise FetchFailed(" ".join([explanation(stderr), *fatal]), is_missing=any(map(missing.search, stderr)))
