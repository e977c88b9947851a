"""The configuration of mirrors that podman, buildah and skopeo share: containers-registries.conf(5)."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.clients.client import host_of
from tests.support.server import HOST

# A reserved name (RFC 2606): an image pulled from it came from the mirror.
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
    """Return the flag for plain HTTP, unless the file allows it: the flag would override the file."""
    return () if host_of(reference) == MIRRORED else (f"{flag}=false",)
