"""``nixery`` as somebody at a terminal runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.server import clean_environment


class CommandLine:
    """``nixery`` with the settings of a test."""

    def __init__(self, settings: Mapping[str, str], directory: Path) -> None:
        self.directory = directory
        # Nothing but the package set has to be set.
        self._environment = clean_environment({**settings, "XDG_CACHE_HOME": str(directory / "cache")})

    def __call__(self, *arguments: str, status: int = 0, **settings: str) -> subprocess.CompletedProcess[str]:
        completed = subprocess.run(
            [sys.executable, "-m", "nixery", *arguments],
            env=self._environment | settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.directory,
        )
        assert completed.returncode == status, completed
        assert "Traceback" not in completed.stderr, completed.stderr
        return completed

    def inspect(self, *arguments: str) -> Any:  # noqa: ANN401 -- JSON is anything
        return json.loads(self("inspect", "--json", *arguments).stdout)
