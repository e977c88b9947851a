"""The whole path: Debian's packages through Nix, pulled, unpacked and run by real clients."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.support.container import Container, pull
from tests.support.server import Server

# ELF header, e_machine.
_AARCH64 = 183

pytestmark = pytest.mark.xdist_group("debian")


def test_hello_runs(hello: Container) -> None:
    assert hello.image.cmd == ["hello"]
    assert hello.run("hello") == "Hello, world!\n"


def test_an_image_pulled_by_digest_is_the_same(server: Server, tmp_path: Path) -> None:
    digest = server.client.digest("hello")
    container = pull(server.port, "hello", digest, tmp_path)
    assert container.image.digest == digest
    assert container.run("/bin/hello") == "Hello, world!\n"


def test_a_shell_has_its_tools(tools: Container) -> None:
    assert tools.image.cmd == ["bash"]
    assert tools.run("bash", "-c", "command -v ls nano").split() == ["/usr/bin/ls", "/usr/bin/nano"]


def test_git_works_with_a_repository(tools: Container) -> None:
    script = """
        set -e
        export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git init -q /tmp/one && cd /tmp/one && echo x > f && git add f && git commit -qm first
        git clone -q /tmp/one /tmp/two && cat /tmp/two/f
    """
    assert tools.run("bash", "-c", script).splitlines()[-1] == "x"


def test_jq_and_curl_run(tools: Container) -> None:
    assert tools.run("jq", "--version").startswith("jq-1")
    assert "https" in tools.run("curl", "--version")
    assert tools.run("bash", "-c", "echo '{\"a\": [1, 2]}' | jq -c .a") == "[1,2]\n"


def test_protocol_and_service_names_resolve(tools: Container) -> None:
    # moreutils and git bring perl, which asks the C library, which reads /etc. No warning shows that the
    # locale of LANG is found.
    script = "perl=$(echo /nix/store/*-perl-*/bin/perl); $perl -e 'print scalar(getprotobyname(q(tcp)))'"
    assert tools.run("bash", "-c", script) == "6"


def test_every_image_has_certificates(tools: Container) -> None:
    script = 'for file in "$SSL_CERT_FILE" /etc/ssl/certs/ca-certificates.crt; do wc -l < $file; done'
    first, second = map(int, tools.run("bash", "-c", script).split())
    assert first == second > 1000


def test_python_finds_its_modules(server: Server, tmp_path: Path) -> None:
    container = pull(server.port, "python3", "latest", tmp_path)
    code = (
        "import ssl, hashlib, sqlite3; print(hashlib.sha256(b'').hexdigest()[:8], bool(ssl.OPENSSL_VERSION))"
    )
    assert container.run("python3", "-c", code) == "e3b0c442 True\n"


def test_arm64_images_have_programs_of_arm64(server: Server, tmp_path: Path) -> None:
    # skopeo prefers this machine's architecture, but a manifest offers no choice.
    container = pull(server.port, "arm64/hello", "latest", tmp_path)
    config = container.image.config_document
    assert (config["architecture"], config["variant"]) == ("arm64", "v8")
    target = (container.root / "bin" / "hello").readlink()
    header = (container.root / str(target).lstrip("/")).read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", header, 18) == (_AARCH64,)


def test_a_typo_gets_a_suggestion(server: Server) -> None:
    error = server.client.manifest("shell/htpo").error
    assert error["code"] == "MANIFEST_UNKNOWN"
    assert "htop" in error["message"]
