"""The configuration of mirrors that podman, buildah and skopeo share: containers-registries.conf(5)."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.clients.client import host_of
from tests.support.server import HOST

# A name that nobody can have (RFC 2606): what is pulled from it has come from the mirror.
MIRRORED = "registry.invalid"

_REGISTRIES = """\
[[registry]]
location = "{mirrored}"
[[registry.mirror]]
location = "{mirror}"
insecure = true
"""


def write_registries(directory: Path, mirror: int) -> Path:
    """Write the file, with the registry on a port of this machine as the mirror."""
    file = directory / "registries.conf"
    file.write_text(_REGISTRIES.format(mirrored=MIRRORED, mirror=f"{HOST}:{mirror}"))
    return file


def plain_http(reference: str, flag: str) -> tuple[str, ...]:
    """Say that a registry takes plain HTTP, unless the file does; the flag would be in the way of what stands there."""
    return () if host_of(reference) == MIRRORED else (f"{flag}=false",)
