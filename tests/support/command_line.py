"""The ``nixery`` command, with and without a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.server import clean_environment


class CommandLine:
    """The command with the settings of a test."""

    def __init__(self, settings: Mapping[str, str], directory: Path) -> None:
        self.directory = directory
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

    def on_terminal(self, *arguments: str, status: int = 0, **settings: str) -> str:
        """Run on a pseudo-terminal; return all output."""
        ours, theirs = pty.openpty()
        terminal = {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        process = subprocess.Popen(
            [sys.executable, "-m", "nixery", *arguments],
            env=self._environment | terminal | settings,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=self.directory,
            start_new_session=True,
        )
        os.close(theirs)
        written = bytearray()
        try:
            # Reading after the other side closed is an error (pty(7)).
            with suppress(OSError):
                while select.select([ours], [], [], 60)[0] and (part := os.read(ours, 1 << 16)):
                    written += part
            assert process.wait(10) == status, written.decode()
        finally:
            process.kill()
            os.close(ours)
        return written.decode()

    def inspect(self, *arguments: str) -> Any:  # noqa: ANN401 -- JSON is anything
        return json.loads(self("inspect", "--json", *arguments).stdout)
