"""Nixery with an access file, and users of it."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nixery.access.passwords import htpasswd_line
from scripts.peers.nixery import nixery
from scripts.peers.process import HOST, Peer, PeerError

NAME = "nixery, bearer token"

# Of all users.
PASSWORD = "correct horse"  # noqa: S105 -- of the benchmarks

# Seconds.
_TIMEOUT = 30.0


@contextmanager
def nixery_with_rules(
    directory: Path, package_set: str, rules: str, settings: Mapping[str, str], users: Mapping[str, str]
) -> Iterator[Peer]:
    """Serve a package set with an access file.

    Args:
        directory: gets the files and, unless the settings name another one, the storage.
        package_set: as ``nixery``.
        rules: the access file, without users.
        settings: as ``nixery``.
        users: lines of the password file, by user.

    Raises:
        PeerError: it does not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "htpasswd").write_text("".join(f"{line}\n" for line in users.values()))
    access = directory / "access.toml"
    access.write_text(f'htpasswd = "htpasswd"\n{rules}')
    with nixery(directory, package_set, {**settings, "NIXERY_ACCESS": str(access)}) as peer:
        yield peer


def basic(user: str, password: str = PASSWORD) -> Mapping[str, str]:
    """Return the header field for a user."""
    encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


def line_of(user: str) -> str:
    """Return the line of the password file for a user."""
    return htpasswd_line(user, PASSWORD)


def with_token(peer: Peer, user: str, image: str) -> Peer:
    """Return a server whose requests have a token of the token service for one image.

    Raises:
        PeerError: it issues none.
    """
    connection = http.client.HTTPConnection(HOST, peer.port, timeout=_TIMEOUT)
    try:
        path = f"/v2/token?service=nixery&scope=repository:{image}:pull"
        connection.request("GET", path, headers=dict(basic(user)))
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise PeerError(f"{peer.name} issues no token: {response.status}, {body[:200]!r}")
    return replace(peer, name=NAME, headers={"Authorization": f"Bearer {json.loads(body)['token']}"})
