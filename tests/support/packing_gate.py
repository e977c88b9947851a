"""Holds a server at the moment a packed layer is about to get its name in the storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.nix import wait_until

# Python imports it at start-up. Audit hooks see every rename, in any code of the server.
_SITE_CUSTOMIZE = """\
import os, sys, time

def hold(event, arguments):
    if event == "os.rename" and "/blobs/" in os.fsdecode(arguments[1]) and os.path.exists({closed!r}):
        os.close(os.open({reached!r}, os.O_CREAT | os.O_WRONLY))
        while os.path.exists({closed!r}):
            time.sleep(0.02)

sys.addaudithook(hold)
"""


@dataclass(frozen=True)
class PackingGate:
    """A closed gate. A server with its environment stops there: the layer is written and its lock is held."""

    directory: Path

    @classmethod
    def install(cls, directory: Path) -> PackingGate:
        """Make the gate in a new directory."""
        directory.mkdir()
        gate = cls(directory)
        gate._closed.touch()
        text = _SITE_CUSTOMIZE.format(closed=str(gate._closed), reached=str(gate._reached))
        (directory / "sitecustomize.py").write_text(text)
        return gate

    @property
    def _closed(self) -> Path:
        return self.directory / "closed"

    @property
    def _reached(self) -> Path:
        return self.directory / "reached"

    def environment(self) -> Mapping[str, str]:
        """Return the environment of a server that stops at the gate."""
        return {"PYTHONPATH": str(self.directory)}

    def wait(self) -> None:
        """Wait until the server has stopped at the gate."""
        wait_until(self._reached.exists, "a layer is packed")

    def open(self) -> None:
        """Let the server continue; it does not stop again."""
        self._closed.unlink()
