"""Debian's ``docker-registry``, the reference implementation of the API that the specification grew out of."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from scripts.peers.process import HOST, Peer, PeerError, free_port, running

PROGRAM = "docker-registry"

# Seconds for one request.
_TIMEOUT = 60.0


def version() -> str:
    """Return the version of the program, for example ``2.8.2+ds1``."""
    printed = subprocess.run((PROGRAM, "--version"), capture_output=True, text=True, check=True, timeout=30)
    return printed.stdout.split()[-1]


@contextmanager
def docker_registry(directory: Path, htpasswd: Path | None = None) -> Iterator[Peer]:
    """Serve from an empty storage in a directory, which is made. Its settings are those of Debian, but without a login.

    Args:
        directory: of its own.
        htpasswd: who may log in, with bcrypt hashes; ``None`` for everybody, without.

    Raises:
        PeerError: it does not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    configuration = directory / "config.yml"
    # JSON is YAML.
    configuration.write_text(
        json.dumps(
            {
                "version": 0.1,
                "log": {"level": "error", "accesslog": {"disabled": True}},
                "storage": {
                    "cache": {"blobdescriptor": "inmemory"},
                    "filesystem": {"rootdirectory": str(directory / "storage")},
                },
                "http": {"addr": f"{HOST}:{port}"},
                **({"auth": {"htpasswd": {"realm": "test", "path": str(htpasswd)}}} if htpasswd else {}),
            }
        )
    )
    command = (PROGRAM, "serve", str(configuration))
    with running(PROGRAM, command, port, directory / "docker-registry.log", path="/") as peer:
        yield peer


def push_blob(registry: Peer, name: str, digest: str, content: bytes) -> None:
    """Upload a blob: POST for a session, PUT with everything.

    Raises:
        PeerError: the registry does not take it.
    """
    location = _request(registry, "POST", f"/v2/{name}/blobs/uploads/", b"", 202)
    separator = "&" if urlsplit(location).query else "?"
    upload = urlsplit(f"{location}{separator}digest={digest}")
    _request(registry, "PUT", f"{upload.path}?{upload.query}", content, 201)


def _request(registry: Peer, method: str, path: str, body: bytes, expected: int) -> str:
    connection = http.client.HTTPConnection(HOST, registry.port, timeout=_TIMEOUT)
    try:
        connection.request(method, path, body, {"Content-Type": "application/octet-stream"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != expected:
            raise PeerError(f"{registry.name} answered {method} {path} with {response.status}: {answer!r}")
        return response.getheader("Location") or ""
    finally:
        connection.close()
