"""Nixery, started as a user would start it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from scripts.peers.process import HOST, Peer, free_port, running

_NIXERY = ".venv/bin/nixery"

# Sources of the operator's environment, which would contradict the package set that is to be served.
_OTHER_SOURCES = ("NIXERY_CHANNEL", "NIXERY_PKGS_REPO", "NIXERY_FLAKE")


@contextmanager
def nixery(directory: Path, package_set: str, settings: Mapping[str, str] | None = None) -> Iterator[Peer]:
    """Serve a package set, with the storage in a directory, which is created if it does not exist.

    Raises:
        PeerError: it does not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = {
        "NIXERY_HOST": HOST,
        "PORT": str(port),
        "NIXERY_PKGS_PATH": package_set,
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(directory / "storage"),
        "NIX_TIMEOUT": "150",
        **(settings or {}),
    }
    command = ("env", *(f"--unset={source}" for source in _OTHER_SOURCES), _NIXERY, "serve")
    # With access rules, `/v2/` asks for credentials.
    with running("nixery", command, port, directory / "nixery.log", environment, "/healthz") as peer:
        yield peer
