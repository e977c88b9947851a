"""An empty Nix store in a directory, whose only substituter is the binary cache of a server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from tests.support.server import HOST, Server

# Seconds.
_TIMEOUT = 60

_CONFIGURATION = """\
build-users-group =
sandbox = false
substituters = http://{host}:{port}/nix-cache
trusted-public-keys = {key}
netrc-file = {netrc}
"""


@dataclass(frozen=True)
class SecondStore:
    """The store of another machine."""

    directory: Path

    @classmethod
    def create(cls, directory: Path, server: Server, key: str, netrc: str = "") -> SecondStore:
        """Create the directory.

        Args:
            directory: does not exist.
            server: the only substituter.
            key: the only trusted public key.
            netrc: the content of a file with credentials.
        """
        directory.mkdir()
        (directory / "netrc").write_text(netrc)
        text = _CONFIGURATION.format(host=HOST, port=server.port, key=key, netrc=directory / "netrc")
        (directory / "nix.conf").write_text(text)
        return cls(directory)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["nix-store", "--store", str(self.directory / "root"), *arguments],
            env=self._environment(),
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )

    def _environment(self) -> Mapping[str, str]:
        # Nix remembers what a cache has, or lacks, in a database of the user.
        own = {"NIX_CONF_DIR": str(self.directory), "XDG_CACHE_HOME": str(self.directory / "cache")}
        return {**os.environ, **own}

    def fetch(self, *paths: str) -> str:
        """Fetch store paths and all that they refer to; return what Nix printed, or raise it as an error."""
        completed = self._run("--realise", *paths)
        printed = completed.stderr.decode(errors="replace")
        if completed.returncode != 0:
            raise AssertionError(printed)
        return printed

    def has(self, path: str) -> bool:
        return self._run("--check-validity", path).returncode == 0

    def nar_hash(self, path: str) -> str:
        """Return the SHA-256 of a path's NAR, as this store has it."""
        # Its place, since `--dump` ignores `--store`.
        completed = self._run("--dump", f"{self.directory}/root{path}")
        assert completed.returncode == 0, completed.stderr
        return hashlib.sha256(completed.stdout).hexdigest()

    def references(self, path: str) -> Sequence[str]:
        return self._run("--query", "--references", path).stdout.decode().split()

    def remove(self) -> None:
        """Make the store, which is read-only, removable."""
        subprocess.run(["chmod", "-R", "u+w", str(self.directory)], check=False, timeout=_TIMEOUT)


def registered_paths(storage: Path) -> Mapping[str, Any]:
    """Return what the records of a storage say of the store paths of all images, by path."""
    found: dict[str, Any] = {}
    for record in (storage / "records" / "image-closures").rglob("*"):
        if record.is_file():
            document = json.loads(zstandard.decompress(record.read_bytes()))
            found |= {f"/nix/store/{path['path']}": path for path in document["paths"]}
    return found


def hash_of(path: str) -> str:
    """Return the digits by which a binary cache knows a path."""
    return path.removeprefix("/nix/store/")[:32]
