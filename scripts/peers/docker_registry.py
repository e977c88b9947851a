"""Debian's ``docker-registry``, the origin of the specification's API, and pushing to it."""

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

# Seconds for one request, and for copying an image that may have to be built first.
_TIMEOUT = 60.0
_COPY_TIMEOUT = 160.0


def version() -> str:
    """Return the version of the program, for example ``2.8.2+ds1``."""
    printed = subprocess.run((PROGRAM, "--version"), capture_output=True, text=True, check=True, timeout=30)
    return printed.stdout.split()[-1]


@contextmanager
def docker_registry(directory: Path, htpasswd: Path | None = None) -> Iterator[Peer]:
    """Serve from an empty storage, with Debian's settings.

    Args:
        directory: for the storage and the configuration; created if it does not exist.
        htpasswd: users with bcrypt hashes; ``None`` for access without a login.

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


def copy_image(source: Peer, target: Peer, name: str, *tags: str) -> None:
    """Copy ``name:latest`` unchanged from a registry to another one, once for each tag.

    Raises:
        PeerError: skopeo fails.
    """
    for tag in tags:
        command = (
            *("skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"),
            f"docker://{source.address}/{name}:latest",
            f"docker://{target.address}/{name}:{tag}",
        )
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COPY_TIMEOUT,
        )
        if done.returncode != 0:
            raise PeerError(f"skopeo cannot copy {name}:latest to {target.name} as {tag}: {done.stderr}")


def push_blob(registry: Peer, name: str, digest: str, content: bytes) -> None:
    """Upload a blob in one piece: POST for a session, then PUT.

    Raises:
        PeerError: the registry refuses it.
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
