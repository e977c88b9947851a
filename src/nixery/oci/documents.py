"""The documents of an image as exact bytes: config, manifest and index.

The OCI forms follow the image specification (config.md, manifest.md, image-index.md, descriptor.md,
media-types.md). The same image is also available in Docker's media types (manifest schema 2), for clients
that know no others. The two families are never mixed: containers/image refuses a manifest of one with layers
of the other. Docker has no media type for zstd; containers/image refuses those that some tools use instead
(its pull request 2906).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from nixery.errors import InvalidDigest
from nixery.oci.digest import Digest

# The date of an image whose source has none: unless asked for, no clock may affect a digest. One second after the epoch, as for
# every path in a Nix store, because some tools take the epoch for "unknown".
_NO_DATE = 1

# The end of the year 9999, since RFC 3339 has four digits for a year. A commit can have any number as its
# date.
_LATEST = 253_402_300_799


def canonical_json(document: Any) -> bytes:  # noqa: ANN401 -- JSON is anything
    """Serialise with sorted keys, without white space and with unescaped UTF-8 (after OLPC's canonical JSON).

    Equal documents have equal bytes, and so equal digests.
    """
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class MediaType(StrEnum):
    """The media types that this registry produces."""

    OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
    OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
    OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
    OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
    OCI_INDEX = "application/vnd.oci.image.index.v1+json"
    DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
    DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
    DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
    DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content: its media type, digest, and size in bytes."""

    media_type: MediaType
    digest: Digest
    size: int

    def as_json(self) -> dict[str, Any]:
        """The descriptor's JSON object."""
        return {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}


@dataclass(frozen=True, slots=True)
class Layer:
    """A stored layer.

    Attributes:
        descriptor: of the compressed blob.
        diff_id: digest of the uncompressed tar.
        packages: names of the packages in it, sorted; for the image's history.
    """

    descriptor: Descriptor
    diff_id: Digest
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A CPU by Go's name: ``amd64`` has no variant, ``arm64`` has ``v8``."""

    name: str
    variant: str | None = None

    def as_json(self) -> dict[str, str]:
        """The two properties of a config or of a platform object."""
        properties = {"architecture": self.name}
        return properties | {"variant": self.variant} if self.variant else properties


@dataclass(frozen=True, slots=True)
class ExecutionParameters:
    """How a container of the image starts: the ``config`` object of a config.

    Attributes:
        env: ``NAME=value`` entries in order.
        cmd: default arguments; empty or ``None`` for none.
        entrypoint: the program that receives the arguments; empty for none.
        user: name or id; after a colon, that of a group.
        working_directory: absolute.
        exposed_ports: such as ``80/tcp``.
        volumes: absolute paths.
        labels: free text by name.
        stop_signal: such as ``SIGINT``.
        healthcheck: in Docker's format; other runtimes ignore it.
    """

    env: tuple[str, ...] = ()
    cmd: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] = ()
    user: str | None = None
    working_directory: str | None = None
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str | None = None
    healthcheck: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object; like Docker, leave out properties without a value."""
        properties: dict[str, Any] = {
            "Env": list(self.env),
            "Cmd": list(self.cmd or ()),
            "Entrypoint": list(self.entrypoint),
            "User": self.user,
            "WorkingDir": self.working_directory,
            "ExposedPorts": {port: {} for port in self.exposed_ports},
            "Volumes": {path: {} for path in self.volumes},
            "Labels": dict(self.labels),
            "StopSignal": self.stop_signal,
            "Healthcheck": self.healthcheck,
        }
        return {name: value for name, value in properties.items() if value}


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON document of the image, and its descriptor."""

    descriptor: Descriptor
    content: bytes

    @classmethod
    def of(cls, media_type: MediaType, properties: dict[str, Any]) -> Document:
        """Serialise a document canonically."""
        content = canonical_json(properties)
        return cls(Descriptor(media_type, Digest.of(content), len(content)), content)


def image_config(
    architecture: Architecture,
    execution: ExecutionParameters,
    layers: Sequence[Layer],
    created: int | None = None,
) -> Document:
    """Return the config.

    Args:
        architecture: of the CPU.
        execution: how containers start.
        layers: in order, base first; each has one history entry.
        created: seconds since the epoch.
    """
    seconds = created if created and 0 < created <= _LATEST else _NO_DATE
    when = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Document.of(
        MediaType.OCI_CONFIG,
        {
            **architecture.as_json(),
            "os": "linux",
            "created": when,
            "config": execution.as_json(),
            "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
            "history": [
                {"created": when, "created_by": "nixery", "comment": " ".join(layer.packages)}
                for layer in layers
            ],
        },
    )


def image_manifest(
    config: Document, layers: Sequence[Layer], annotations: Mapping[str, str] | None = None
) -> Document:
    """Return the manifest of a config and layers."""
    properties: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MediaType.OCI_MANIFEST,
        "config": config.descriptor.as_json(),
        "layers": [layer.descriptor.as_json() for layer in layers],
    }
    if annotations:
        properties["annotations"] = dict(annotations)
    return Document.of(MediaType.OCI_MANIFEST, properties)


def image_index(media_type: MediaType, manifests: Sequence[tuple[Architecture, Document]]) -> Document:
    """Return an index. Clients take the first manifest that fits, so the order matters.

    Args:
        media_type: OCI's or Docker's, the same family as the manifests.
        manifests: for Linux on each CPU.
    """
    return Document.of(
        media_type,
        {
            "schemaVersion": 2,
            "mediaType": media_type,
            "manifests": [
                {**manifest.descriptor.as_json(), "platform": {**architecture.as_json(), "os": "linux"}}
                for architecture, manifest in manifests
            ],
        },
    )


def docker_manifest(config: Document, layers: Sequence[Layer]) -> Document | None:
    """Return a schema 2 manifest: config and layers have the bytes of the OCI image, under Docker's media types.

    Returns:
        ``None`` if Docker has no media type for the compression of a layer.
    """
    if any(layer.descriptor.media_type != MediaType.OCI_LAYER_GZIP for layer in layers):
        return None
    config_descriptor = replace(config.descriptor, media_type=MediaType.DOCKER_CONFIG)
    layer_descriptors = [replace(layer.descriptor, media_type=MediaType.DOCKER_LAYER) for layer in layers]
    return Document.of(
        MediaType.DOCKER_MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": MediaType.DOCKER_MANIFEST,
            "config": config_descriptor.as_json(),
            "layers": [descriptor.as_json() for descriptor in layer_descriptors],
        },
    )


def referenced_blobs(document: bytes) -> tuple[tuple[Digest, int], ...]:
    """Return digest and size of everything that a manifest or an index refers to; empty for other bytes."""
    try:
        properties = json.loads(document)
        if not isinstance(properties, dict):
            return ()
        config = [properties["config"]] if "layers" in properties else []
        descriptors = (*config, *properties.get("layers", ()), *properties.get("manifests", ()))
        return tuple((Digest.parse(d["digest"]), _size(d["size"])) for d in descriptors)
    except (ValueError, KeyError, TypeError, RecursionError, InvalidDigest):
        return ()


def _size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"no size: {value!r}")
    return value


def is_image_manifest(document: bytes, media_type: str) -> bool:
    """Whether a document is an image manifest, by the media type that it declares."""
    try:
        properties = json.loads(document)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(properties, dict)
        and properties.get("mediaType") == media_type
        and {"config", "layers"} <= properties.keys()
        and bool(referenced_blobs(document))
    )


def is_index(document: bytes) -> bool:
    """Whether a document refers to manifests."""
    try:
        properties = json.loads(document)
    except (ValueError, RecursionError):
        return False
    return isinstance(properties, dict) and "manifests" in properties
