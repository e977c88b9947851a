"""The platforms an image can be built for: one fact, told in Nix's words and in Go's."""

from __future__ import annotations

from dataclasses import dataclass

from nixery.oci.image import Architecture


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


AMD64 = Platform("x86_64-linux", Architecture("amd64"))
ARM64 = Platform("aarch64-linux", Architecture("arm64", "v8"))
