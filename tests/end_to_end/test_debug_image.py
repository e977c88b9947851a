"""The meta-package ``debug``: the image of ``kubectl debug``."""

from __future__ import annotations

import pytest

from tests.support.container import Container, pull
from tests.support.server import Server

pytestmark = pytest.mark.xdist_group("debian")

_PROGRAMS = (
    *("ps", "top", "kill", "pstree", "strace", "lsof", "curl", "ip", "ss", "ping", "dig", "nc", "tcpdump"),
    *("tar", "gzip", "grep", "sed", "awk", "find", "xargs", "less", "file", "which", "nano", "ts"),
)


@pytest.fixture(scope="module")
def debugger(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return pull(server.port, "debug", "latest", tmp_path_factory.mktemp("debug"))


def test_it_opens_a_prompt(debugger: Container) -> None:
    assert debugger.image.cmd == ["bash"]


def test_its_programs_are_found_by_any_user(debugger: Container) -> None:
    script = 'for program; do command -v "$program" || echo "missing: $program"; done'
    for user in (0, 1000):
        found = debugger.run("bash", "-c", script, "bash", *_PROGRAMS, user=user)
        assert "missing" not in found


def test_it_sees_processes_and_files(debugger: Container) -> None:
    assert debugger.run("bash", "-c", "ps -eo comm=; true").splitlines()[0] == "bash"
    assert "ELF 64-bit" in debugger.run("file", "--brief", "--dereference", "/bin/bash")
    assert debugger.run("curl", "--silent", "file:///etc/os-release").startswith("PRETTY_NAME=")
    assert "127.0.0.1" in debugger.run("ip", "-brief", "address", "show", "lo")
