"""``nixery check``."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from nixery.errors import NixeryError, PackagesUnavailable, SettingsError, StorageError
from nixery.plain_text import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nixery.builds.package_index import PackageIndex
    from nixery.cli.output import Activity
    from nixery.nix.configuration import PackageConfiguration, Summary
    from nixery.settings import Settings

_WRONG = 1

# Seconds; a first evaluation may have to read the whole package set.
_TIMEOUT = 60

_OLDEST_NIX = (2, 8)

# Bytes of free space below which the check fails: many images take more.
_LOW_SPACE = 1 << 30

_CONFIGURATION = "docs/how-to/choose-a-package-source.md has examples"
_SAFER = "docs/explanation/deployments.md describes safer deployments"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check.

    Attributes:
        what: settings, nix, git, sandbox, storage, source or config.
        right: whether it works.
        found: a description.
        advice: how to fix it; passed checks may have advice, too.
    """

    what: str
    right: bool
    found: str
    advice: str = ""

    @property
    def mark(self) -> tuple[str, str]:
        """Return its mark, and the mark's style."""
        passed = ("WARN ", "bold yellow") if self.advice else ("ok   ", "green")
        return passed if self.right else ("WRONG", "bold red")


def check(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of findings.")] = False,
) -> None:
    """Check settings, Nix, storage and package source, and print how to fix what is wrong.

    Exits with 1 if something is wrong. Example: NIXERY_CHANNEL=nixos-unstable nixery check
    """
    from rich.console import Console

    from nixery.cli.output import activity

    with activity(quiet=as_json) as shown:
        findings = list(_findings(shown))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        console = Console()
        for finding in findings:
            mark, style = finding.mark
            console.print(f"[{style}]{mark}[/] {finding.what:<9}", end="")
            console.print(escaped(finding.found), markup=False, highlight=False, soft_wrap=True)
            if finding.advice:
                console.print(f"      {finding.advice}", markup=False, highlight=False, soft_wrap=True)
    if not all(finding.right for finding in findings):
        raise typer.Exit(_WRONG)


def _findings(shown: Activity) -> Iterator[Finding]:
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
    yield Finding("settings", right=True, found=f"nothing is missing or wrong{of_a_server}")
    flawed = {found.program: found.warning for found in releases(settings) if found.warning}
    git = flawed.pop("git", "")
    yield replace(nix, advice=nix.advice or "; ".join(flawed.values()))
    if git:
        yield Finding("git", right=True, found=git, advice=_SAFER)
    shown.begin("checking the storage")
    storage = _storage(settings)
    if storage.right:
        shown.begin("checking what builders can reach")
        yield _sandbox(settings)
    yield storage
    if nix.right and storage.right:
        shown.begin("evaluating the package source")
        configuration = settings.package_configuration
        try:
            summary = configuration.check(settings.build_environment) if configuration else None
        except SettingsError as error:
            yield Finding("config", False, str(error), _CONFIGURATION)
        else:
            yield from _source(configuration, summary)


def _nix(environment: Mapping[str, str]) -> Finding:
    advice = (
        "install Nix 2.8 or newer (Debian: apt-get install nix-bin), and make sure that this user may build"
    )
    try:
        printed = _run(environment, "nix-instantiate", "--version")
        version = re.search(r"(\d+)\.(\d+)\S*", printed)
        if version is None or (int(version[1]), int(version[2])) < _OLDEST_NIX:
            return Finding("nix", False, f"{printed} is older than 2.8, or not Nix", advice)
        if _run(environment, "nix-instantiate", "--eval", "--expr", "1 + 1") != "2":
            return Finding("nix", False, f"Nix {version[0]} does not evaluate", advice)
    except NixeryError as error:
        return Finding("nix", False, str(error), advice)
    return Finding("nix", right=True, found=f"version {version[0]} evaluates")


def _run(environment: Mapping[str, str], *command: str) -> str:
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NixeryError(f"cannot run {command[0]}: {error}") from error
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1].strip()
        raise NixeryError(f"{command[0]} failed: {last}")
    return ended.stdout.strip()


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
    advice = "" if confinement.is_complete else _SAFER
    return Finding("sandbox", confinement.sandbox != "unknown", confinement.sentence, advice)


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


def _source(configuration: PackageConfiguration | None, summary: Summary | None) -> list[Finding]:
    """Check the package source, and whether its package set takes the operator's configuration."""
    from nixery.cli.session import open_session, run
    from nixery.image.name import requests_for
    from nixery.source_location import redacted

    found: list[str] = []
    configured: list[Finding] = []

    async def command() -> Finding:
        async with open_session() as (components, resources):
            warning: str | None = None
            try:
                pinned = await components.pins.pin("latest")
                warning = pinned.warning
                found.append(f"{redacted(pinned.pin.source)} is pinned to {pinned.pin.revision}")
                if configuration is not None and summary is not None:
                    takes = await components.evaluator.arguments(resources.platforms[0], pinned.pin)
                    configured.append(_configuration(configuration, summary, takes))
                (request,) = requests_for("shell", resources.platforms[:1])
                await components.evaluator.contents(request, pinned.pin)
            except PackagesUnavailable as error:
                found.append(f"it evaluates, but cannot make shell images: {error}")
            except NixeryError as error:
                advice = "docs/reference/sources.md describes package sources"
                return Finding("source", False, "; ".join([*found, str(error)]), advice)
            else:
                found.append("it evaluates")
            found.extend(await _listed(components.index))
            if warning:
                return Finding("source", False, "; ".join([*found, warning]), "make it reachable")
            return Finding("source", right=True, found="; ".join(found))

    return [run(command, quiet=True), *configured]


def _configuration(configuration: PackageConfiguration, summary: Summary, takes: frozenset[str]) -> Finding:
    from nixery.nix.configuration import VARIABLE

    found = f"{VARIABLE} sets {summary} (sha256:{configuration.identity[:12]})"
    used = {"config": summary.keys, "overlays": summary.overlays}
    ignored = [name for name, content in used.items() if content and name not in takes]
    advice = f"the package set declares no argument {' or '.join(ignored)}" if ignored else ""
    if ignored:
        advice += f"; {VARIABLE} has no effect there"
    return Finding("config", right=True, found=found, advice=advice)


async def _listed(index: PackageIndex) -> list[str]:
    """List the package set, for completion in the shell and on pages. Some sets cannot be listed, which is not an error."""
    with suppress(NixeryError, TimeoutError):
        names = await asyncio.wait_for(index.names("latest"), _TIMEOUT)
        return [f"{len(names):,} names can be completed"]
    return []
