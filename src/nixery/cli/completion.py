"""What the shell may offer behind an option. Called for each key, so that nothing heavy is imported here."""

from __future__ import annotations

from nixery.image.platform import SUPPORTED

OUTPUT_KINDS = ("oci:", "oci-archive:", "docker-archive:", "registry:")


def complete_platform(incomplete: str) -> list[str]:
    """Offer platforms."""
    return [str(platform) for platform in SUPPORTED if str(platform).startswith(incomplete)]


def complete_output(incomplete: str) -> list[str]:
    """Offer kinds of outputs."""
    return [kind for kind in OUTPUT_KINDS if kind.startswith(incomplete)]
