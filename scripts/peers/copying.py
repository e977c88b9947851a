"""Copying an image from one registry to another, with a client that both have to please."""

from __future__ import annotations

import subprocess

from scripts.peers.process import Peer, PeerError

# Seconds; the image may have to be built first.
_TIMEOUT = 160.0


def copy_image(source: Peer, target: Peer, name: str, *tags: str) -> None:
    """Copy ``name:latest`` as it is, under each of some tags.

    Raises:
        PeerError: one of the registries does not play along.
    """
    for tag in tags:
        command = (
            *("skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"),
            f"docker://{source.address}/{name}:latest",
            f"docker://{target.address}/{name}:{tag}",
        )
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
        if done.returncode != 0:
            raise PeerError(f"skopeo could not copy {name}:latest to {target.name} as {tag}: {done.stderr}")
