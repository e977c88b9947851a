"""The last log line of a server that does not start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.acceptance.conftest import PACKAGE_SET
from tests.support.nix import nix_environment
from tests.support.server import free_port, run_server


def error_line(settings: Mapping[str, str], directory: Path) -> str:
    """Return the only line of a server that ends with status 2."""
    always = {"PORT": str(free_port()), "NIXERY_PKGS_PATH": str(PACKAGE_SET), "STORAGE_PATH": str(directory)}
    ended = run_server({**always, **nix_environment(directory), **settings}, directory)
    assert ended.returncode == 2, ended
    (line,) = ended.stderr.splitlines()
    return line
