"""Programs with compiled-in paths or with requirements on their environment."""

from __future__ import annotations

import pytest

from tests.support.container import Container, pull
from tests.support.server import Server

pytestmark = pytest.mark.xdist_group("debian")


@pytest.fixture(scope="module")
def programs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    name = "bash/coreutils/file/tmux/ruby/libc-bin/gophers"
    return pull(server.port, name, "latest", tmp_path_factory.mktemp("programs"))


def test_file_finds_its_magic(programs: Container) -> None:
    assert "ELF 64-bit" in programs.run("file", "--brief", "--dereference", "/bin/bash")


def test_tmux_finds_a_utf_8_locale(programs: Container) -> None:
    script = "tmux -f /dev/null new-session -d 'sleep 20' && tmux list-sessions && tmux kill-server"
    assert "1 windows" in programs.run("bash", "-c", script)


def test_ruby_finds_its_library(programs: Container) -> None:
    code = "require 'json'; require 'digest'; puts [Digest::SHA256.hexdigest('')[0, 8]].to_json"
    assert programs.run("ruby", "-e", code) == '["e3b0c442"]\n'


def test_iconv_finds_its_character_sets(programs: Container) -> None:
    # UTF-8 and Latin 1 are built into the C library, EUC-JP is a module, in which A4 A2 is the hiragana a.
    script = r"printf '\xa4\xa2' | iconv --from-code=EUC-JP --to-code=UTF-8"
    assert programs.run("bash", "-c", script) == "あ"


def test_the_go_toolchain_and_its_output_run(programs: Container) -> None:
    assert programs.run("bash", "-c", "echo 'package  p' | gofmt") == "package p\n"
    assert programs.run("built").startswith("built ")


def test_a_script_finds_the_modules_of_its_packages(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    container = pull(server.port, "httpie", "latest", tmp_path_factory.mktemp("httpie"))
    assert container.image.cmd == ["http"]
    request = container.run("http", "--ignore-stdin", "--offline", "POST", "http://registry/", "name=value")
    assert request.startswith("POST / HTTP/1.1")
    assert '{"name": "value"}' in request
