"""Image configs and manifests (image specification, config.md and manifest.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from nixery.oci.canonical_json import canonical_json
from nixery.oci.descriptor import Descriptor, MediaType
from nixery.oci.digest import Digest

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
