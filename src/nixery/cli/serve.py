"""``nixery serve``."""

from __future__ import annotations


def serve() -> None:
    """Serve the registry. All settings come from the environment; docs/reference/settings.md lists them.

    For example: PORT=8080 NIXERY_CHANNEL=nixos-unstable NIXERY_STORAGE_BACKEND=filesystem STORAGE_PATH=/var/lib/nixery nixery serve
    """
    from nixery.cli import serving

    serving.serve()
