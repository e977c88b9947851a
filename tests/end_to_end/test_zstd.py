"""An image with zstd layers, pulled and run by a real client."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.conftest import PACKAGE_SET
from tests.support.container import pull
from tests.support.nix import nix_environment
from tests.support.server import running_server

pytestmark = pytest.mark.xdist_group("debian")


def test_a_zstd_image_runs(tmp_path: Path) -> None:
    settings = {
        "NIXERY_PKGS_PATH": str(PACKAGE_SET),
        "NIX_TIMEOUT": "300",
        "NIXERY_COMPRESSION": "zstd",
        **nix_environment(tmp_path),
    }
    with running_server(tmp_path, settings) as server:
        (tmp_path / "pulled").mkdir()
        container = pull(server.port, "hello", "latest", tmp_path / "pulled")
    assert all(layer.is_zstd for layer in container.image.layers)
    assert container.run("hello") == "Hello, world!\n"
