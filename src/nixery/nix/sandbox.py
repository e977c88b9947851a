"""Whether builders run in Nix's sandbox, and whether they could."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from nixery.errors import SettingsError

# Seconds, for a build and for a question.
_PATIENCE = 60
_SHORT_PATIENCE = 5

# Its builder is in /build if it is in the sandbox (Nix manual, sandbox-build-dir). Never built before, or it would not be built now.
_DERIVATION = """\
{ salt }: derivation {
  name = "nixery-sandbox-check";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" "echo $PWD > $out" ];
  inherit salt;
}
"""

# So that the shell is there, whatever Nix's configuration puts into the sandbox; not all machines have all of them.
_PATHS = "/bin? /lib? /lib64? /usr?"


def configured_sandbox(environment: Mapping[str, str]) -> str:
    """Return what Nix's own configuration says, in its words. Blocks for some hundredths of a second."""
    for words in (("config", "show"), ("show-config",)):  # the name has changed
        command = ("nix", "--extra-experimental-features", "nix-command", *words)
        try:
            completed = subprocess.run(
                command,
                capture_output=True,
                timeout=_SHORT_PATIENCE,
                check=False,
                text=True,
                env=environment,
            )
        except (OSError, subprocess.TimeoutExpired):
            break
        for line in completed.stdout.splitlines() if completed.returncode == 0 else ():
            name, _, value = line.partition(" = ")
            if name == "sandbox":
                return value
    return "unknown"


def require_sandbox(environment: Mapping[str, str]) -> None:
    """Build something in the sandbox. Blocks for some tenths of a second.

    Raises:
        SettingsError: it was not built, or not there.
    """
    options = (
        "--option",
        "sandbox",
        "true",
        "--option",
        "sandbox-fallback",
        "false",
        "--option",
        "sandbox-paths",
        _PATHS,
    )
    command = (
        "nix-build",
        "--no-out-link",
        *options,
        "--argstr",
        "salt",
        str(time.time_ns()),
        "--expr",
        _DERIVATION,
    )
    try:
        completed = subprocess.run(
            command, capture_output=True, timeout=_PATIENCE, check=False, text=True, env=environment
        )
        if completed.returncode == 0:
            inside = Path(completed.stdout.strip()).read_text().strip() == "/build"
            reason = "" if inside else "Nix builds outside of it"
        else:
            reason = (completed.stderr.strip().splitlines() or ["Nix said nothing"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if reason:
        raise SettingsError((f"NIXERY_NIX_SANDBOX is on, but the sandbox does not work here: {reason}",))
