"""Programs of this machine, which is no part of an image, run in images."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.container import Container, call, pull
from tests.support.server import Server

pytestmark = pytest.mark.xdist_group("debian")

LOADERS = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}
LOADER = LOADERS[platform.machine()]

# Seconds.
_DOWNLOAD = 300

_IMPORT = "import numpy, grpc; print(numpy.ones(3).sum(), grpc.__version__)"

USERS = pytest.mark.parametrize("user", [0, 1000])


@pytest.fixture(scope="module")
def image(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    name = "bash/coreutils/libstdc__2b__2b6/decoy"
    return pull(server.port, name, "latest", tmp_path_factory.mktemp("foreign"))


def program(name: str, *libraries: str) -> Path:
    """Find a program of this machine that names the system's loader, and libraries without directories."""
    found = shutil.which(name)
    assert found is not None
    assert patchelf("--print-interpreter", found) == [LOADER]
    assert set(patchelf("--print-needed", found)) >= set(libraries)
    assert patchelf("--print-rpath", found) == []
    return Path(found)


def patchelf(*arguments: str) -> list[str]:
    finished = subprocess.run(["patchelf", *arguments], check=True, capture_output=True, text=True)
    return finished.stdout.split()


@USERS
def test_a_program_finds_its_loader_and_the_c_library(image: Container, user: int) -> None:
    files = {"/opt/echo": program("echo", "libc.so.6")}
    assert image.run("/opt/echo", "foreign", files=files, user=user) == "foreign\n"


@USERS
def test_a_program_finds_the_cpp_library(image: Container, user: int) -> None:
    files = {"/opt/patchelf": program("patchelf", "libstdc++.so.6", "libgcc_s.so.1")}
    assert image.run("/opt/patchelf", "--version", files=files, user=user).startswith("patchelf ")


def loaded(image: Container, *command: str, **files: Path) -> dict[str, str]:
    """Ask the loader which files it would load, by the libraries' names."""
    mounted = {f"/opt/{name}": file for name, file in files.items()}
    lines = image.run(*command, env={"LD_TRACE_LOADED_OBJECTS": "1"}, files=mounted).splitlines()
    found = (line.split() for line in lines if " => " in line)
    return {name: file for name, _, file, *_ in found}


def test_programs_of_nix_are_left_alone(image: Container) -> None:
    # Both are bash. That of this machine would load another library by the name of one that it needs.
    foreign = loaded(image, "/opt/bash", bash=program("bash", "libtinfo.so.6"))["libtinfo.so.6"]
    assert "-decoy/" in str(image.find(foreign))
    own = loaded(image, "/bin/bash")["libtinfo.so.6"]
    assert "-libtinfo6-" in own
    assert image.run("/bin/bash", "-c", "echo unchanged") == "unchanged\n"


@pytest.fixture(scope="module")
def nixpkgs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return pull(server.port, "bash-of-nixpkgs", "latest", tmp_path_factory.mktemp("nixpkgs"))


def test_programs_of_nixpkgs_load_their_own_libraries(nixpkgs: Container) -> None:
    own = loaded(nixpkgs, "/bin/bash")
    assert "-libtinfo-1/lib/" in own["libtinfo.so.6"]
    assert "-glibc-9.99/lib/" in own["libc.so.6"]
    foreign = loaded(nixpkgs, "/opt/bash", bash=program("bash", "libtinfo.so.6"))
    assert "-zlib-2/lib/" in foreign["libtinfo.so.6"]
    assert foreign["libc.so.6"] == own["libc.so.6"]


def test_programs_of_nixpkgs_never_read_the_systems_cache(nixpkgs: Container) -> None:
    glibc = loaded(nixpkgs, "/bin/bash")["libc.so.6"].removesuffix("/lib/libc.so.6")
    # No directory of a program has the library.
    wanted = {"LD_PRELOAD": "libonly.so.1", "LD_DEBUG": "libs"}
    own = nixpkgs.run("/bin/bash", "-c", "echo own", env=wanted)
    assert "own\n" in own
    assert re.findall(r"search cache=(.*)", own) == [f"{glibc}/etc/ld.so.cache"]
    assert "object 'libonly.so.1' from LD_PRELOAD cannot be preloaded" in own
    files = {"/opt/echo": program("echo", "libc.so.6")}
    foreign = nixpkgs.run("/opt/echo", "foreign", env=wanted, files=files)
    assert "foreign\n" in foreign
    assert set(re.findall(r"search cache=(.*)", foreign)) == {"/etc/ld.so.cache"}
    assert re.search(r"calling init: .*-zlib-3/lib/libonly\.so\.1", foreign)


@pytest.fixture(scope="module")
def python(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return pull(server.port, "bash/python3/pip", "latest", tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="module")
def wheels(python: Container, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels with modules in C++, for the Python of the image."""
    version = python.run("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    directory = tmp_path_factory.mktemp("wheels")
    directory.chmod(0o755)
    download = (
        "pip",
        "download",
        "--only-binary=:all:",
        "--python-version",
        version,
        "--dest",
        str(directory),
    )
    call([sys.executable, "-m", *download, "numpy==2.4.6", "grpcio==1.85.3"], _DOWNLOAD)
    return directory


@USERS
def test_wheels_find_the_cpp_library(python: Container, wheels: Path, user: int) -> None:
    script = f"""
        set -e
        python3 -m venv /tmp/{user}
        /tmp/{user}/bin/pip install --quiet --no-cache-dir --no-index --find-links /mnt/wheels numpy grpcio
        /tmp/{user}/bin/python -c '{_IMPORT}'
    """
    printed = python.run("bash", "-c", script, files={"/mnt/wheels": wheels}, user=user)
    assert printed.splitlines()[-1] == "3.0 1.85.3"


def test_pip_installs_for_everyone(python: Container, wheels: Path) -> None:
    script = f"""
        set -e
        pip install --quiet --no-cache-dir --no-index --find-links /mnt/wheels numpy grpcio
        python3 -c '{_IMPORT}'
        command -v f2py
    """
    printed = python.run("bash", "-c", script, files={"/mnt/wheels": wheels})
    assert printed.splitlines()[-2:] == ["3.0 1.85.3", "/usr/local/bin/f2py"]
