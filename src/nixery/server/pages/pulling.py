"""The lines that pull an image."""

from __future__ import annotations

from dataclasses import dataclass

from nixery.server.clients import host, is_encrypted
from nixery.server.http import Request


@dataclass(frozen=True, slots=True)
class PullLine:
    """A line to copy: what it is for, and the line."""

    label: str
    text: str


def pull_lines(request: Request, image: str) -> list[PullLine]:
    """Return lines for the host name by which the client reaches us.

    Args:
        request: of the client.
        image: name, a colon, tag.
    """
    reference = f"{host(request)}/{image}"
    # podman takes an unencrypted registry for an error, unless it is told.
    plain = "" if is_encrypted(request) else "--tls-verify=false "
    return [
        PullLine("Docker", f"docker run --rm -it {reference}"),
        PullLine("Podman", f"podman run --rm -it {plain}{reference}"),
        PullLine("Kubernetes", f"kubectl run -it --rm --restart=Never --image={reference} nixery"),
    ]
