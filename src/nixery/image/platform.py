"""The platforms that images can be built for, by their names in Nix and in Go."""

from __future__ import annotations

from dataclasses import dataclass

from nixery.oci.documents import Architecture


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform of images.

    Attributes:
        nix_system: the name in Nix, e.g. ``x86_64-linux``.
        architecture: the name in configs and indexes, e.g. ``amd64``.
    """

    nix_system: str
    architecture: Architecture

    def __str__(self) -> str:
        return f"linux/{self.architecture.name}"

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse ``linux/amd64`` or ``linux/arm64``.

        Raises:
            ValueError: it is not a supported platform.
        """
        found = next((platform for platform in SUPPORTED if text in (str(platform), f"{platform}/v8")), None)
        if found is None:
            supported = ", ".join(map(str, SUPPORTED))
            raise ValueError(f"{text!r} is not a supported platform; supported: {supported}")
        return found


AMD64 = Platform("x86_64-linux", Architecture("amd64"))
ARM64 = Platform("aarch64-linux", Architecture("arm64", "v8"))
SUPPORTED = (AMD64, ARM64)
