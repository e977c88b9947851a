"""``nixery check``."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import textwrap
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nixery.cli.completion import complete_name
from nixery.errors import NixeryError, SettingsError, StorageError
from nixery.plain_text import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.console import Console

    from nixery.binary_caches.client import BinaryCaches, CacheState
    from nixery.cli.output import Activity
    from nixery.closure import StorePath
    from nixery.settings import Settings

_WRONG = 1

# Characters of the longest subject of a finding.
_WIDTH = 8

# Of lines that follow the first one of a finding: the width of its mark.
_MARGIN = "      "

# Characters of a terminal that are used even if it claims to have fewer.
_NARROWEST = 40

# Seconds; a first evaluation may have to read the whole package set.
_TIMEOUT = 60

_OLDEST_NIX = (2, 8)

# Where Nix's installers, and NixOS, put its programs, besides the user's own profile.
_NIX_PROFILES = (Path("/nix/var/nix/profiles/default/bin"), Path("/run/current-system/sw/bin"))

_INSTALL = "install Nix 2.8 or newer (Debian: apt-get install nix-bin)"
_WITHOUT_NIX = (
    "Nix is not installed: a server serves stored images, and those whose packages are in the package index of its "
    "storage and in binary caches"
)
_NO_NIX = "docs/how-to/run-without-a-store.md says what else it needs"
_CONFIGURE = (
    "make sure that this user may build; in a checkout, `make setup` writes a configuration that works to "
    "var/nix/environment, and `. var/nix/environment` selects it"
)

# Store paths that each binary cache is asked for, to see its signatures.
_TRIED = 64

# Bytes of free space below which the check fails: many images take more.
_LOW_SPACE = 1 << 30

_CACHES = "docs/explanation/binary-caches.md describes caches, keys and signatures"
_SIGNATURES = {
    "trusted": "a trusted key signs its paths",
    "untrusted": "its paths are not trusted",
    "unknown": "it has no path of this machine's store, so its signatures were not tried",
    "not required": "its paths need no signature",
}

_CONFIGURATION = "docs/how-to/choose-a-package-source.md has examples"
_SAFER = "docs/explanation/deployments.md describes safer deployments"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check.

    Attributes:
        what: settings, nix, git, tls, access, cache, sandbox, storage, source, config or index; or the name of an image.
        right: whether it works.
        found: a description.
        advice: how to fix it; passed checks may have advice, too.
        facts: details for programs.
        lines: further lines of the description.
    """

    what: str
    right: bool
    found: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it for programs: everything but the lines, which say the same as the facts."""
        said = {"what": self.what, "right": self.right, "found": self.found, "advice": self.advice}
        return said | self.facts

    @property
    def mark(self) -> tuple[str, str]:
        """Return its mark, and the mark's style."""
        passed = ("WARN ", "bold yellow") if self.advice else ("ok   ", "green")
        return passed if self.right else ("WRONG", "bold red")


def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME[:TAG]",
            autocompletion=complete_name,
            help="Images, e.g. shell/git: print what each would be, instead of checking the settings.",
        ),
    ] = None,
    index: Annotated[
        bool, typer.Option("--index", help="Also evaluate the whole package set for the package index.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: a list of findings, or of images.")
    ] = False,
) -> None:
    """Check settings, Nix, storage and package source, and print how to fix what is wrong; or print what images would be.

    For an image: its packages, the state of the package source, what is not available and why, whether Nix has
    its store paths, can download them or would build them, and their size. Nix builds and downloads no package.

    --index takes minutes for a large package set. Interrupt it at any time; the next run resumes.

    Exits with 1 if something is wrong, or if an image cannot be made. Examples:

        NIXERY_CHANNEL=nixos-unstable nixery check

        nixery check shell/git arm64/jq images.web:main
    """
    from nixery.cli.output import activity

    if names:
        if index:
            raise typer.BadParameter("--index is for a check without names")
        from nixery.cli.check_names import check_names

        if not check_names(names, as_json=as_json):
            raise typer.Exit(_WRONG)
        return
    with activity("attributes", quiet=as_json) as shown:
        findings = list(_findings(shown, index=index))
    if as_json:
        typer.echo(json.dumps([finding.as_json() for finding in findings], indent=2))
    else:
        print_findings(findings, _WIDTH)
    if not all(finding.right for finding in findings):
        raise typer.Exit(_WRONG)


def print_findings(findings: Iterable[Finding], width: int) -> None:
    """Print findings on stdout.

    Args:
        findings: to print; their texts may be untrusted.
        width: of the column with their subjects, in characters.
    """
    from rich.console import Console

    console = Console()
    for finding in findings:
        mark, style = finding.mark
        console.print(f"[{style}]{mark}[/]", end=" ")
        console.print(
            f"{escaped(finding.what):<{width}}", markup=False, highlight=False, soft_wrap=True, end=" "
        )
        for number, line in enumerate((finding.found, *finding.lines, *filter(None, [finding.advice]))):
            for part in _on_terminal(escaped(line), console, 0 if number else width + 1):
                console.print(part, markup=False, highlight=False, soft_wrap=True)


def _on_terminal(line: str, console: Console, used: int) -> list[str]:
    """Break a line between words for a terminal, which would break it within a word; programs get one line.

    Args:
        line: to print.
        console: where to.
        used: characters that its subject takes, after the mark; 0 on a line of its own.
    """
    margin = "" if used else _MARGIN
    if not console.is_terminal or line != line.strip() or "  " in line:  # a row of a table
        return [margin + line]
    filled = textwrap.wrap(
        line,
        max(console.width, _NARROWEST),
        initial_indent=" " * (used + len(_MARGIN)) if used else _MARGIN,
        subsequent_indent=_MARGIN,
        # Paths and names stay whole, to be copied.
        break_long_words=False,
        break_on_hyphens=False,
    )
    first, *others = filled or [""]
    return [margin + first.lstrip(), *others]


def _findings(shown: Activity, *, index: bool) -> Iterator[Finding]:
    from nixery.cli.check_source import check_source
    from nixery.cli.session import missing_for_a_server, user_settings
    from nixery.nix.environments import build_environment
    from nixery.startup import releases

    shown.begin("checking Nix")
    nix = _nix(build_environment(os.environ))
    shown.begin("checking the settings")
    try:
        settings = user_settings()
    except SettingsError as error:
        for problem in error.problems:
            yield Finding("settings", False, problem, "docs/reference/settings.md lists all variables")
        yield nix
        return
    missing = missing_for_a_server()
    of_a_server = f"; a server also needs {', '.join(missing)}" if missing else ""
    unknown = "; ".join(
        f"{name} is not a setting" + (f", did you mean {near}?" if near else "")
        for name, near in settings.unknown_variables.items()
    )
    yield Finding("settings", right=True, found=f"nothing is missing or wrong{of_a_server}", advice=unknown)
    flawed = {found.program: found.warning for found in releases(settings) if found.warning}
    git = flawed.pop("git", "")
    works = nix.right
    if not works and settings.substitute == "direct" and not _is_anywhere(build_environment(os.environ)):
        nix = Finding("nix", right=True, found=_WITHOUT_NIX, advice=_NO_NIX)
    found = f"{nix.found}, and has known flaws" if works and flawed else nix.found
    yield replace(nix, found=found, advice=nix.advice or "; ".join(flawed.values()))
    if git:
        yield Finding("git", right=True, found=git, advice=_SAFER)
    yield from _tls(settings)
    shown.begin("checking the access file")
    yield from _access(settings)
    if settings.substitute == "direct":
        shown.begin("checking the binary caches")
        yield from _binary_caches(settings)
    shown.begin("checking the storage")
    storage = _storage(settings)
    # Without Nix, nothing more is to be said about its builders.
    if works and storage.right:
        shown.begin("checking what builders can reach")
        yield _sandbox(settings)
    yield storage
    if settings.serve_cache and storage.right:
        yield _signing(settings)
    if works and storage.right:
        shown.begin("evaluating the package source")
        configuration = settings.package_configuration
        try:
            summary = configuration.check(settings.build_environment) if configuration else None
        except SettingsError as error:
            yield Finding("config", False, str(error), _CONFIGURATION)
            return
        configured = (configuration, summary) if configuration and summary else None
        yield from check_source(shown, configured, indexed=settings.index, make_index=index)


def _nix(environment: Mapping[str, str]) -> Finding:
    if (missing := _where_nix_is(environment)) is not None:
        return missing
    try:
        printed = _run(environment, "nix-instantiate", "--version")
        version = re.search(r"(\d+)\.(\d+)\S*", printed)
        if version is None or (int(version[1]), int(version[2])) < _OLDEST_NIX:
            return Finding("nix", False, f"{printed} is older than 2.8, or not Nix", _INSTALL)
        if _run(environment, "nix-instantiate", "--eval", "--expr", "1 + 1") != "2":
            return Finding("nix", False, f"Nix {version[0]} does not evaluate", _CONFIGURE)
    except NixeryError as error:
        return Finding("nix", False, f"Nix is installed, but does not work: {error}", _CONFIGURE)
    return Finding("nix", right=True, found=f"version {version[0]} works")


def _where_nix_is(environment: Mapping[str, str]) -> Finding | None:
    """Return a finding if Nix's programs are not on ``PATH``; its installers write it only to shells' start-up files."""
    if _is_on_path(environment):
        return None
    found = _profile(environment)
    if found is None:
        return Finding("nix", False, "nix-instantiate is not on PATH", _INSTALL)
    return Finding(
        "nix",
        False,
        f"Nix is installed in {found}, which is not on PATH",
        f"add it: export PATH=$PATH:{found}",
    )


def _is_on_path(environment: Mapping[str, str]) -> bool:
    return shutil.which("nix-instantiate", path=environment.get("PATH", os.defpath)) is not None


def _profile(environment: Mapping[str, str]) -> Path | None:
    """The directory of Nix's programs, wherever Nix's installers put it; ``None`` if there is none."""
    places = [Path(environment.get("HOME", "/")) / ".nix-profile/bin", *_NIX_PROFILES]
    # Directories of another user count as missing.
    return next((place for place in places if os.path.exists(place / "nix-instantiate")), None)  # noqa: PTH110


def _is_anywhere(environment: Mapping[str, str]) -> bool:
    return _is_on_path(environment) or _profile(environment) is not None


def _run(environment: Mapping[str, str], *command: str) -> str:
    from nixery.nix.error_message import last_error

    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NixeryError(f"cannot run {command[0]}: {error}") from error
    if ended.returncode != 0:
        reason = last_error(ended.stderr) or f"exit status {ended.returncode}"
        raise NixeryError(f"{command[0]} failed: {reason}")
    return ended.stdout.strip()


def _tls(settings: Settings) -> Iterator[Finding]:
    from nixery.server.tls import advice, read_credentials, try_credentials
    from nixery.startup import tls_files

    files = tls_files(settings)
    if files is None:
        return
    try:
        credentials = read_credentials(files)
        with TemporaryDirectory() as directory:
            try_credentials(credentials, Path(directory))
    except SettingsError as error:
        for problem in error.problems:
            yield Finding("tls", False, problem, "see docs/how-to/serve-tls.md")
        return
    names = ", ".join(credentials.names)
    found = f"the certificate is for {names}, and expires on {credentials.expires:%Y-%m-%d}"
    yield Finding("tls", True, found, "; ".join(advice(credentials, settings.public_url)))


def _access(settings: Settings) -> Iterator[Finding]:
    import asyncio

    from nixery.access.checking import check_access

    if settings.access is None:
        return
    checked = asyncio.run(check_access(settings.access))
    for problem in checked.problems:
        yield Finding("access", False, problem, "docs/reference/access.md describes the access file")
    if checked.summary:
        yield Finding("access", right=True, found=checked.summary)
    for problem in checked.unreachable:
        yield Finding(
            "access", False, problem, "see docs/how-to/identity-providers.md#when-a-token-is-refused"
        )


def _signing(settings: Settings) -> Finding:
    import asyncio

    from nixery.builds.cache_signing import read_cache_key, shared_keys
    from nixery.startup import storage

    try:
        if settings.cache_key_file is not None:
            public = read_cache_key(settings.cache_key_file).public
        else:
            with storage(settings, settings.environment) as opened:
                keys = asyncio.run(shared_keys(opened.records))
            public = keys[min(keys)].public if keys else ""
    except (SettingsError, StorageError) as error:
        return Finding(
            "signing", False, str(error), "docs/reference/settings.md describes NIXERY_CACHE_KEY_FILE"
        )
    if not public:
        return Finding("signing", right=True, found="the first request to its binary cache makes a key")
    return Finding("signing", right=True, found=f"the public key of its binary cache is {public}")


def _binary_caches(settings: Settings) -> Iterator[Finding]:
    import asyncio

    from nixery.binary_caches.client import BinaryCaches
    from nixery.binary_caches.configuration import CacheConfiguration
    from nixery.closure import STORE_DIRECTORY
    from nixery.nix.machine import some_paths

    try:
        configuration = CacheConfiguration.read(settings.environment, settings.nix_arguments)
        caches = BinaryCaches(configuration)
    except SettingsError as error:
        yield Finding("cache", False, str(error), _CACHES)
        return
    for line in configuration.unusable:
        yield Finding("cache", right=True, found=f"not used: {line}", advice=_CACHES)
    if not configuration.caches:
        yield Finding("cache", False, "Nix's configuration has no binary cache", _CACHES)
    for state in asyncio.run(_states(caches, some_paths(Path(STORE_DIRECTORY), _TRIED))):
        facts = {"cache": state.name, "priority": state.priority, "signatures": state.signatures}
        if state.problem:
            yield Finding("cache", False, f"{state.name}: it {state.problem}", _CACHES, facts)
            continue
        found = f"{state.name} answers; priority {state.priority}; {_SIGNATURES[state.signatures]}"
        wrong = state.signatures == "untrusted"
        advice = _CACHES if wrong or state.signatures == "not required" else ""
        yield Finding(
            "cache", not wrong, f"{found}{f': {state.reason}' if state.reason else ''}", advice, facts
        )


async def _states(caches: BinaryCaches, paths: Sequence[StorePath]) -> Sequence[CacheState]:
    try:
        return await caches.states(paths)
    finally:
        await caches.close()


def _sandbox(settings: Settings) -> Finding:
    from nixery.nix.sandbox import is_loopback, require_confinement, require_sandbox
    from nixery.startup import builder_probe

    with builder_probe(settings, settings.storage_path) as probe:
        confinement = probe.confinement()
    try:
        if settings.nix_sandbox == "on":
            require_sandbox(confinement)
        # Not `listening_address`: a running server has the port already, and this command does not serve.
        # `serve` reports the error of an address that cannot be resolved.
        with suppress(OSError, UnicodeError):
            found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][4][0]
            if settings.nix_sandbox != "off" and not is_loopback(str(found)):
                require_confinement(confinement, settings.host)
    except SettingsError as error:
        return Finding("sandbox", False, str(error), _SAFER)
    if confinement.sandbox == "unknown":
        return Finding("sandbox", False, f"Nix cannot build, so {confinement.sentence}", _CONFIGURE)
    return Finding("sandbox", True, confinement.sentence, "" if confinement.is_complete else _SAFER)


def _storage(settings: Settings) -> Finding:
    from rich.filesize import decimal

    from nixery.startup import storage
    from nixery.storage.files import make_directory, temporary_file, write_all

    place = settings.storage_path
    try:
        make_directory(place)
        with temporary_file(place) as (descriptor, _):
            write_all(descriptor, b"nixery")
        free = shutil.disk_usage(place).free
    except (OSError, StorageError) as error:
        return Finding("storage", False, str(error), "set STORAGE_PATH to a writable directory")
    if free < _LOW_SPACE:
        return Finding("storage", False, f"{place}: {decimal(free)} are free", "free space for layers")
    if settings.storage_backend == "filesystem":
        return Finding("storage", right=True, found=f"{place} is writable; {decimal(free)} are free")
    try:
        with storage(settings, settings.environment):
            found = f"{settings.storage_backend}: writable, readable, listable and deletable"
            return Finding("storage", right=True, found=found)
    except StorageError as error:
        return Finding(
            "storage",
            False,
            str(error),
            "docs/how-to/store-images-in-a-bucket.md has the variables and permissions",
        )
