"""One way to write a JSON document, so that equal documents have equal digests.

Media types and descriptors (image specification, descriptor.md and media-types.md).

Image configs and manifests (image specification, config.md and manifest.md).

Indexes: one manifest for each platform (image specification, image-index.md; Docker calls it a manifest list).

The same image in Docker's own media types, for clients that know no others (Docker Registry, manifest schema 2).

Families are never mixed: containers/image refuses a manifest of one with layers of the other. And there is no media type of
Docker's for zstd: what some tools have written in its place, containers/image refuses as well (its pull request 2906).

What manifests and indexes point to.
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


def canonical_json(document: Any) -> bytes:  # noqa: ANN401 -- whatever JSON can express
    """Serialise with sorted keys, no white space and UTF-8 unescaped (after OLPC's canonical JSON)."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class MediaType(StrEnum):
    """The media types this registry produces. Families are never mixed within one manifest."""

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
    """Points to content: what it is, its digest, and its size in bytes."""

    media_type: MediaType
    digest: Digest
    size: int

    def as_json(self) -> dict[str, Any]:
        """The descriptor's JSON object."""
        return {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}


# No clock may reach a digest. One second after the epoch rather than the epoch itself:
# some tools take a zero time for "unknown". It is also the mtime of every path in a Nix store.
_UNKNOWN = 1

# The end of the year 9999: RFC 3339 has four digits for a year. A commit can have any number in its date's place.
_LATEST = 253_402_300_799


@dataclass(frozen=True, slots=True)
class Layer:
    """A stored layer as the config and the manifest need it.

    Attributes:
        descriptor: of the compressed blob.
        diff_id: digest of the uncompressed tar.
        packages: names of what is inside, sorted; told in the image's history.
    """

    descriptor: Descriptor
    diff_id: Digest
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A CPU as Go names it: ``amd64`` has no variant, ``arm64`` has ``v8``."""

    name: str
    variant: str | None = None

    def as_json(self) -> dict[str, str]:
        """The two properties of a config or of a platform object."""
        properties = {"architecture": self.name}
        return properties | {"variant": self.variant} if self.variant else properties


@dataclass(frozen=True, slots=True)
class ExecutionParameters:
    """How a container of the image starts: the part of a config that is called ``config``.

    Attributes:
        env: ``NAME=value`` entries in order.
        cmd: default arguments; empty or ``None`` for an image that has to be told what to run.
        entrypoint: what arguments are given to; empty for none.
        user: name or id, of a group as well after a colon.
        working_directory: absolute.
        exposed_ports: such as ``80/tcp``.
        volumes: absolute paths.
        labels: free text by name.
        stop_signal: such as ``SIGINT``.
        healthcheck: in Docker's words; other runtimes pass over it.
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
        """Properties without a value are left out, as Docker does."""
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
    """A JSON document of the image together with the descriptor that points to it."""

    descriptor: Descriptor
    content: bytes

    @classmethod
    def of(cls, media_type: MediaType, properties: dict[str, Any]) -> Document:
        """Serialise canonically and describe the result."""
        content = canonical_json(properties)
        return cls(Descriptor(media_type, Digest.of(content), len(content)), content)


def image_config(
    architecture: Architecture,
    execution: ExecutionParameters,
    layers: Sequence[Layer],
    created: int | None = None,
) -> Document:
    """Make the config.

    Args:
        architecture: of the CPU.
        execution: how containers start.
        layers: in order, base first; each has one history entry.
        created: seconds since the epoch; never the time of the build.
    """
    seconds = created if created and 0 < created <= _LATEST else _UNKNOWN
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
    """Make the manifest that ties config and layers together."""
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
    """Make an index. Clients take the first manifest that fits, so the order counts.

    Args:
        media_type: OCI's or Docker's, as that of the manifests.
        manifests: what is pointed to, for Linux on each CPU.
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
    """Make a schema 2 manifest. Config and layers are the bytes of the OCI image, under Docker's media types.

    Returns:
        ``None`` if a layer is compressed in a way that Docker has no media type for.
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
    """Return digest and size of everything that a manifest or an index points to; nothing for any other bytes."""
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
    """Whether a document points to manifests, which point to other things in turn."""
    try:
        properties = json.loads(document)
    except (ValueError, RecursionError):
        return False
    return isinstance(properties, dict) and "manifests" in properties
