"""Programs with compiled-in paths or with requirements on their environment."""

from __future__ import annotations

import pytest

from tests.support.container import Container, pull
from tests.support.server import Server

pytestmark = pytest.mark.xdist_group("debian")

# As engines set it for a user without an entry in /etc/passwd; umoci writes root's home into the configuration.
_WITHOUT_ENTRY = {"HOME": "/"}
_HOMES = "/tmp/home-"  # noqa: S108  # in the container


@pytest.fixture(scope="module")
def programs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    name = "bash/coreutils/file/tmux/ruby/libc-bin/gophers"
    return pull(server.port, name, "latest", tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def installed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    name = "bash/coreutils/ca-certificates/dpkg/apache2/erlang-base/python3"
    return pull(server.port, name, "latest", tmp_path_factory.mktemp("installed"))


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


def test_a_certificate_authority_is_added(installed: Container) -> None:
    script = """
        mkdir -p /usr/local/share/ca-certificates
        openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=own -keyout /tmp/key \\
            -out /usr/local/share/ca-certificates/own.crt 2>/dev/null
        openssl verify /usr/local/share/ca-certificates/own.crt >/dev/null 2>&1 || echo unknown
        update-ca-certificates >/dev/null 2>&1 && openssl verify /usr/local/share/ca-certificates/own.crt
    """
    assert installed.run("bash", "-c", script) == "unknown\n/usr/local/share/ca-certificates/own.crt: OK\n"


def test_dpkg_knows_the_packages_of_the_closure(installed: Container) -> None:
    script = (
        "dpkg-query --show --showformat '${db:Status-Abbrev}${Package}\\n' libc6 apache2-bin ca-certificates"
    )
    assert installed.run("bash", "-c", script).split() == [
        "ii",
        "apache2-bin",
        "ii",
        "ca-certificates",
        "ii",
        "libc6",
    ]
    assert installed.status("dpkg-query", "--show", "emacs")[0] == 1


def test_a_user_without_an_entry_has_a_private_home_where_programs_write_to_it(installed: Container) -> None:
    python = """if True:
        import os, pathlib, site
        home = pathlib.Path.home()
        modules = pathlib.Path(site.getusersitepackages())
        (home / "written").touch()
        print(home, oct(home.stat().st_mode & 0o777), modules.relative_to(home), sep="|")
    """
    erlang = "{ok, [[Home]]} = init:get_argument(home), io:put_chars(Home), halt()."
    found = installed.run("python3", "-c", python, user=1000, env=_WITHOUT_ENTRY)
    assert found.startswith(f"{_HOMES}1000|0o700|.local/lib/python3")
    command = ("erl", "-noshell", "-sname", "x", "-eval", erlang)
    assert installed.run(*command, user=1000, env=_WITHOUT_ENTRY) == f"{_HOMES}1000"
    assert installed.run("python3", "-c", "import os; print(os.environ['HOME'])") == "/root\n"


def test_a_home_that_another_user_made_is_not_used(installed: Container) -> None:
    script = "import os; os.chmod('/tmp', 0o1777); os.makedirs('/tmp/home-1001', exist_ok=True)"
    installed.run("python3", "-c", script)
    assert (
        installed.run("python3", "-c", "import os; print(os.environ['HOME'])", user=1001, env=_WITHOUT_ENTRY)
        == "/\n"
    )


def test_a_server_finds_the_directories_that_only_root_can_make(installed: Container) -> None:
    assert installed.run("apachectl", "-v", user=1000).startswith("Server version: Apache/2")
