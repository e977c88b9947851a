"""The platforms an image can be built for: one fact, told in Nix's words and in Go's."""

from __future__ import annotations

from dataclasses import dataclass

from nixery.oci.documents import Architecture


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform of images.

    Attributes:
        nix_system: what a package set is called with, e.g. ``x86_64-linux``.
        architecture: what config and index say, e.g. ``amd64``.
    """

    nix_system: str
    architecture: Architecture

    def __str__(self) -> str:
        return f"linux/{self.architecture.name}"

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``linux/amd64`` or ``linux/arm64``.

        Raises:
            ValueError: it is another one.
        """
        found = next((platform for platform in SUPPORTED if text in (str(platform), f"{platform}/v8")), None)
        if found is None:
            supported = ", ".join(map(str, SUPPORTED))
            raise ValueError(f"{text!r} is no platform that images can be built for; supported: {supported}")
        return found


AMD64 = Platform("x86_64-linux", Architecture("amd64"))
ARM64 = Platform("aarch64-linux", Architecture("arm64", "v8"))
SUPPORTED = (AMD64, ARM64)
