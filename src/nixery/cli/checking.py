"""What ``nixery check`` does."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import typer
from rich.console import Console
from rich.filesize import decimal

from nixery.builds.packages import PackageIndex
from nixery.cli.output import Activity, activity
from nixery.cli.session import missing_for_a_server, open_session, run, user_settings
from nixery.errors import NixeryError, PackagesUnavailable, SettingsError, StorageError
from nixery.image.name import requests_for
from nixery.nix.environments import build_environment
from nixery.nix.sandbox import Confinement, is_loopback, require_confinement, require_sandbox
from nixery.plain_text import escaped
from nixery.settings import Settings
from nixery.source_location import redacted
from nixery.startup import builder_probe, releases, storage
from nixery.storage.files import make_directory, temporary_file, write_all

_WRONG = 1

# Seconds; a first evaluation may have to read all of its set.
_PATIENCE = 60

_OLDEST_NIX = (2, 8)

# Bytes: less than many an image takes.
_LITTLE_SPACE = 1 << 30

_SAFER = "docs/explanation/deployments.md says what is safer, and how to get there"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check.

    Attributes:
        what: settings, nix, git, sandbox, storage or source.
        right: whether it works.
        found: a description.
        advice: how to fix it; a passed check may have some, too.
    """

    what: str
    right: bool
    found: str
    advice: str = ""

    @property
    def mark(self) -> tuple[str, str]:
        """Return its mark, and the mark's style."""
        right = ("WARN ", "bold yellow") if self.advice else ("ok   ", "green")
        return right if self.right else ("WRONG", "bold red")


def check(*, as_json: bool) -> None:
    """See ``nixery.cli.check.check``."""
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
    shown.begin("asking Nix")
    nix = _nix(build_environment(os.environ))
    shown.begin("looking at the settings")
    settings: Settings | None = None
    try:
        settings = user_settings()
        missing = missing_for_a_server()
        of_a_server = f"; a server needs {', '.join(missing)} besides" if missing else ""
        yield Finding("settings", right=True, found=f"nothing is missing or wrong{of_a_server}")
    except SettingsError as error:
        for problem in error.problems:
            yield Finding("settings", False, problem, "docs/reference/settings.md lists all variables")
    if settings is None:
        yield nix
        return
    flawed = {found.program: found.warning for found in releases(settings) if found.warning}
    git = flawed.pop("git", "")
    yield replace(nix, advice=nix.advice or "; ".join(flawed.values()))
    if git:
        yield Finding("git", right=True, found=git, advice=_SAFER)
    shown.begin("trying the storage")
    place = _storage(settings)
    if place.right:
        shown.begin("asking a builder what it can reach")
        yield _sandbox(settings)
    yield place
    if nix.right and place.right:
        shown.begin("evaluating the package source")
        yield _source()


def _nix(environment: Mapping[str, str]) -> Finding:
    advice = "install Nix 2.8 or newer (Debian: apt-get install nix-bin), and see that this user may build"
    try:
        said = _ask(environment, "nix-instantiate", "--version")
        version = re.search(r"(\d+)\.(\d+)\S*", said)
        if version is None or (int(version[1]), int(version[2])) < _OLDEST_NIX:
            return Finding("nix", False, f"{said} is older than 2.8, or no Nix", advice)
        if _ask(environment, "nix-instantiate", "--eval", "--expr", "1 + 1") != "2":
            return Finding("nix", False, f"Nix {version[0]} does not evaluate", advice)
    except NixeryError as error:
        return Finding("nix", False, str(error), advice)
    return Finding("nix", right=True, found=f"version {version[0]} evaluates")


def _ask(environment: Mapping[str, str], *command: str) -> str:
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NixeryError(f"cannot run {command[0]}: {error}") from error
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["it said nothing"])[-1].strip()
        raise NixeryError(f"{command[0]} failed: {last}")
    return answer.stdout.strip()


def _sandbox(settings: Settings) -> Finding:
    with builder_probe(settings, settings.storage_path) as probe:
        confinement = probe.confinement()
    try:
        if settings.nix_sandbox == "on":
            require_sandbox(confinement)
        _require_confinement(confinement, settings)
    except SettingsError as error:
        return Finding("sandbox", False, str(error), _SAFER)
    advice = "" if confinement.is_complete else _SAFER
    return Finding("sandbox", confinement.sandbox != "unknown", confinement.sentence, advice)


def _require_confinement(confinement: Confinement, settings: Settings) -> None:
    # Not `listening_address`: a running server has the port already, and this command does not serve.
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][4][0]
    except (OSError, UnicodeError):
        return  # `serve` reports the error
    if settings.nix_sandbox != "off" and not is_loopback(str(found)):
        require_confinement(confinement, settings.host)


def _storage(settings: Settings) -> Finding:
    place = settings.storage_path
    try:
        make_directory(place)
        with temporary_file(place) as (descriptor, _):
            write_all(descriptor, b"nixery")
        free = shutil.disk_usage(place).free
    except (OSError, StorageError) as error:
        return Finding("storage", False, str(error), "set STORAGE_PATH to a directory that can be written to")
    if free < _LITTLE_SPACE:
        return Finding("storage", False, f"{place}: {decimal(free)} are free", "make room for layers")
    if settings.storage_backend != "filesystem":
        return _bucket(settings)
    return Finding("storage", right=True, found=f"{place} can be written to; {decimal(free)} are free")


def _bucket(settings: Settings) -> Finding:
    try:
        with storage(settings, settings.environment):
            found = f"{settings.storage_backend}: can be written, read, listed and deleted from"
            return Finding("storage", right=True, found=found)
    except StorageError as error:
        return Finding(
            "storage",
            False,
            str(error),
            "docs/how-to/store-images-in-a-bucket.md has the variables and permissions",
        )


def _source() -> Finding:
    found: list[str] = []

    async def command() -> Finding:
        async with open_session() as (components, resources):
            warning: str | None = None
            try:
                pinned = await components.pins.pin("latest")
                warning = pinned.warning
                found.append(f"{redacted(pinned.pin.source)} is pinned to {pinned.pin.revision}")
                (request,) = requests_for("shell", resources.platforms[:1])
                await components.evaluator.contents(request, pinned.pin)
            except PackagesUnavailable as error:
                found.append(f"it evaluates, but cannot make shell images: {error}")
            except NixeryError as error:
                advice = "docs/reference/sources.md says what a source has to be"
                return Finding("source", False, "; ".join([*found, str(error)]), advice)
            else:
                found.append("it evaluates")
            found.extend(await _listed(components.index))
            if warning:
                return Finding("source", False, "; ".join([*found, warning]), "see that it can be reached")
            return Finding("source", right=True, found="; ".join(found))

    return run(command, quiet=True)


async def _listed(index: PackageIndex) -> list[str]:
    """List the package set: pages and the shell complete its names from then on. Not all sets can be listed, and none has to be."""
    with suppress(NixeryError, TimeoutError):
        names = await asyncio.wait_for(index.names("latest"), _PATIENCE)
        return [f"{len(names):,} names can be completed"]
    return []
