"""Debian's packages for two platforms: the index, the images that clients choose, and programs of the other platform.

No builder of the Debian set runs a program of the target, so this machine makes both. QEMU's user mode
emulation runs the programs of the other platform: its static binary is the first program of the container,
since binfmt_misc may not be configured in the kernel.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support import container_engine
from tests.support.container import call
from tests.support.nix import nix_environment
from tests.support.server import Server, clean_environment, running_server

PACKAGE_SET = Path(__file__).parents[2] / "packagesets" / "debian"

INDEX = "application/vnd.oci.image.index.v1+json"
PLATFORMS: Mapping[str, Mapping[str, str]] = {
    "amd64": {"architecture": "amd64", "os": "linux"},
    "arm64": {"architecture": "arm64", "os": "linux", "variant": "v8"},
}
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
HERE, OTHER = ("arm64", "amd64") if platform.machine() == "aarch64" else ("amd64", "arm64")

# Seconds; a new image is downloaded and built first.
_PULL = 300

pytestmark = pytest.mark.xdist_group("debian")

Docker = Callable[..., str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("platforms")
    settings = {
        "NIXERY_PKGS_PATH": str(PACKAGE_SET),
        "NIXERY_PLATFORMS": "linux/amd64,linux/arm64",
        "NIX_TIMEOUT": "300",
        **nix_environment(directory),
    }
    with running_server(directory, settings) as running:
        yield running


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Docker:
    environment = container_engine.install(tmp_path_factory.mktemp("engine"))

    def run(*arguments: str) -> str:
        finished = subprocess.run(
            ["docker", "run", "--rm", *arguments],
            env=clean_environment(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PULL,
            check=False,
        )
        assert finished.returncode == 0, finished
        return finished.stdout

    return run


def copy(server: Server, name: str, layout: Path, *options: str) -> dict[str, Any]:
    """Copy to a layout with skopeo; return the descriptor in it."""
    source = f"docker://127.0.0.1:{server.port}/{name}"
    call(["skopeo", *options, "copy", "--src-tls-verify=false", source, f"oci:{layout}:image"], _PULL)
    (descriptor,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    found: dict[str, Any] = descriptor
    return found


def read(layout: Path, descriptor: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        (layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
    )
    return document


def platform_of(layout: Path, descriptor: Mapping[str, Any]) -> dict[str, str]:
    """Return the platform in the config of an image."""
    config = read(layout, read(layout, descriptor)["config"])
    return {key: config[key] for key in ("architecture", "os", "variant") if key in config}


def in_index(server: Server) -> dict[str, dict[str, Any]]:
    index = server.client.get("/v2/hello/manifests/latest", {"Accept": INDEX}).json()
    return {entry["platform"]["architecture"]: entry for entry in index["manifests"]}


def test_a_client_pulls_its_own_platform(server: Server, tmp_path: Path) -> None:
    descriptor = copy(server, "hello", tmp_path, "--override-os=linux")
    assert platform_of(tmp_path, descriptor) == PLATFORMS[HERE]
    assert descriptor["digest"] == in_index(server)[HERE]["digest"]


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_a_client_pulls_the_platform_of_its_option(server: Server, tmp_path: Path, architecture: str) -> None:
    options = ("--override-os=linux", f"--override-arch={architecture}")
    descriptor = copy(server, "hello", tmp_path, *options)
    assert platform_of(tmp_path, descriptor) == PLATFORMS[architecture]
    assert descriptor["digest"] == in_index(server)[architecture]["digest"]


def test_a_client_pulls_all_platforms(server: Server, tmp_path: Path) -> None:
    source = f"docker://127.0.0.1:{server.port}/hello"
    call(["skopeo", "copy", "--all", "--src-tls-verify=false", source, f"oci:{tmp_path}:image"], _PULL)
    (root,) = json.loads((tmp_path / "index.json").read_bytes())["manifests"]
    assert root["mediaType"] == INDEX
    entries = read(tmp_path, root)["manifests"]
    assert [entry["platform"] for entry in entries] == [PLATFORMS["amd64"], PLATFORMS["arm64"]]
    for entry in entries:
        assert platform_of(tmp_path, entry) == entry["platform"]
        for layer in read(tmp_path, entry)["layers"]:
            assert (tmp_path / "blobs" / layer["digest"].replace(":", "/")).stat().st_size == layer["size"]


def test_hello_runs_on_both_platforms(server: Server, docker: Docker) -> None:
    for architecture in ("amd64", "arm64"):
        assert docker(f"127.0.0.1:{server.port}/{architecture}/hello") == "Hello, world!\n"


def test_python_runs_on_the_other_platform(server: Server, docker: Docker) -> None:
    code = "import hashlib, platform, ssl; print(platform.machine(), hashlib.sha256(b'').hexdigest()[:8])"
    image = f"127.0.0.1:{server.port}/{OTHER}/python3"
    assert docker(image, "python3", "-c", code) == f"{MACHINES[OTHER]} e3b0c442\n"


def test_a_program_from_elsewhere_runs_on_the_other_platform(
    server: Server, docker: Docker, tmp_path: Path
) -> None:
    # From a wheel: a program in Rust that needs the C library and libgcc_s.
    tag = f"manylinux_2_17_{MACHINES[OTHER]}"
    download = (
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--platform",
        tag,
        "--dest",
        str(tmp_path),
    )
    call([sys.executable, "-m", *download, "ruff==0.15.0"], _PULL)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        program = archive.extract("ruff-0.15.0.data/scripts/ruff", tmp_path)
    Path(program).chmod(0o755)
    image = f"127.0.0.1:{server.port}/{OTHER}/bash"
    assert docker("-v", f"{program}:/opt/ruff", image, "/opt/ruff", "--version") == "ruff 0.15.0\n"
