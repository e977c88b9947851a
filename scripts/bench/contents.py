"""The contents of all servers: an image built by nixery, and two blobs of chosen sizes."""

from __future__ import annotations

import hashlib
import http.client
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nixery.locks import ProcessDirectory
from nixery.storage.blobs import BlobStore
from nixery.storage.filesystem import FilesystemDriver
from scripts.bench.load import BenchError
from scripts.peers.docker_registry import copy_image, push_blob
from scripts.peers.process import HOST, Peer

NAME = "shell/hello"
ACCEPT = {"Accept": "application/vnd.oci.image.manifest.v1+json"}

SMALL = 2 * 1024
BIG = 50 * 1024 * 1024

# Seconds; Nix may have to fetch and build the packages.
_BUILD = 160.0


@dataclass(frozen=True)
class Contents:
    """The contents to request.

    Attributes:
        manifest: bytes of the image's manifest.
    """

    manifest: bytes
    small: bytes
    big: bytes

    @property
    def by_tag(self) -> str:
        """Path of the manifest."""
        return f"/v2/{NAME}/manifests/latest"

    @property
    def by_digest(self) -> str:
        """Path of the same manifest."""
        return f"/v2/{NAME}/manifests/{_digest(self.manifest)}"

    @property
    def small_blob(self) -> str:
        """Path."""
        return _blob(self.small)

    @property
    def big_blob(self) -> str:
        """Path."""
        return _blob(self.big)

    @property
    def manifests(self) -> Mapping[str, bytes]:
        """The manifest by path."""
        return {self.by_tag: self.manifest, self.by_digest: self.manifest}

    @property
    def files(self) -> Mapping[str, bytes]:
        """All contents by path."""
        return {
            **self.manifests,
            self.small_blob: self.small,
            self.big_blob: self.big,
        }


def prepare(ours: Peer, storage: Path) -> Contents:
    """Let nixery build the image, and write the blobs into its storage.

    Raises:
        BenchError: the image cannot be built.
    """
    manifest = _get(ours, f"/v2/{NAME}/manifests/latest", ACCEPT)
    numbers = random.Random(0)  # noqa: S311 -- bytes that do not compress, the same each time
    contents = Contents(manifest, numbers.randbytes(SMALL), numbers.randbytes(BIG))
    temporary = ProcessDirectory(storage / "temporary")
    try:
        store = BlobStore(FilesystemDriver(storage, temporary.path))
        for content in (contents.small, contents.big):
            with store.create() as writer:
                writer.write(content)
                writer.commit()
    finally:
        temporary.close()
    return contents


def hand_over(contents: Contents, ours: Peer, registry: Peer) -> None:
    """Push all contents to docker-registry.

    Raises:
        PeerError: it refuses them.
    """
    copy_image(ours, registry, NAME, "latest")
    for content in (contents.small, contents.big):
        push_blob(registry, NAME, _digest(content), content)


def compare(files: Mapping[str, bytes], peers: Sequence[Peer]) -> None:
    """Check that all servers answer with the same bytes.

    Args:
        files: by path.
        peers: the servers.

    Raises:
        BenchError: one of them does not.
    """
    for peer in peers:
        for path, content in files.items():
            if _get(peer, path, ACCEPT) != content:
                raise BenchError(f"{peer.name} has other content at {path}")


def _get(peer: Peer, path: str, headers: Mapping[str, str]) -> bytes:
    connection = http.client.HTTPConnection(HOST, peer.port, timeout=_BUILD)
    try:
        connection.request("GET", path, headers={**headers, **peer.headers})
        response = connection.getresponse()
        body = response.read()
        if response.status != http.client.OK:
            raise BenchError(f"{peer.name} answered {path} with {response.status}: {body[:500]!r}")
        return body
    finally:
        connection.close()


def _blob(content: bytes) -> str:
    return f"/v2/{NAME}/blobs/{_digest(content)}"


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
