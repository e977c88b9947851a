"""The variables and commands of containers."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.end_to_end.conftest import PACKAGE_SET
from tests.support.container import Container, pull
from tests.support.server import Server

pytestmark = pytest.mark.xdist_group("debian")


def test_variables_are_set_without_a_shell(tools: Container) -> None:
    with tools.started("sleep", "60") as execute:
        listed = dict(line.split("=", 1) for line in execute("env").splitlines())
        assert listed.items() >= tools.image.env.items()
        assert execute("git", "--version").startswith("git version")
    assert tools.image.env["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert "/nix/store" not in " ".join(tools.image.env.values())


def test_home_is_left_to_the_runtime(tools: Container) -> None:
    assert "HOME" not in tools.image.env
    assert tools.run("bash", "-c", "cd && pwd") == "/root\n"


def test_the_locale_is_utf_8(tools: Container) -> None:
    assert tools.image.env["LANG"] == "C.UTF-8"
    assert tools.run("bash", "-c", "letter=ä; echo ${#letter}") == "1\n"
    code = "import locale; print(locale.setlocale(locale.LC_ALL, ''), locale.nl_langinfo(locale.CODESET))"
    assert tools.run("python3", "-c", code, env={"PYTHONCOERCECLOCALE": "0"}) == "C.UTF-8 UTF-8\n"


def test_time_zones_are_found(tools: Container, hello: Container) -> None:
    assert tools.image.env["TZDIR"] == "/usr/share/zoneinfo"
    berlin = {"TZ": "Europe/Berlin"}
    assert tools.run("date", "-d", "2026-07-01", "+%z %Z", env=berlin) == "+0200 CEST\n"
    assert tools.run("date", "-d", "2026-01-01", "+%z %Z", env=berlin) == "+0100 CET\n"
    code = """if True:
        from datetime import datetime
        from zoneinfo import ZoneInfo
        print(datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")).utcoffset())
    """
    assert tools.run("python3", "-c", code) == "2:00:00\n"
    assert "TZDIR" not in hello.image.env


# Debian's C library ignores LOCALE_ARCHIVE and looks into /usr/lib/locale for both kinds.
_WEEKDAY = ("date", "-d", "2026-06-01", "+%A")


def test_locales_are_found_in_directories(special: Container) -> None:
    assert "LOCALE_ARCHIVE" not in special.image.env
    assert special.run(*_WEEKDAY, env={"LC_ALL": "de_DE.UTF-8"}) == "Montag\n"
    # C.UTF-8 still works.
    assert special.run("bash", "-c", "letter=ä; echo ${#letter}") == "1\n"


def test_locales_are_found_in_an_archive(server: Server, tmp_path: Path) -> None:
    container = pull(server.port, "coreutils/germanarchive", "latest", tmp_path)
    archive = container.image.env["LOCALE_ARCHIVE"]
    assert archive == "/usr/lib/locale/locale-archive"
    assert int(container.run("stat", "-L", "-c", "%s", archive)) > 100_000
    assert container.run(*_WEEKDAY, env={"LC_ALL": "de_DE.UTF-8"}) == "Montag\n"
    assert container.run(*_WEEKDAY) == "Monday\n"


def test_the_default_command_can_be_replaced(tools: Container, hello: Container, special: Container) -> None:
    assert tools.image.cmd == ["bash"]
    assert hello.image.cmd == ["hello"]
    assert special.image.cmd == []
    for container in (tools, hello, special):
        assert "Entrypoint" not in container.image.config_document["config"]
    assert hello.run("hello", "--greeting=x") == "x\n"


def test_created_is_not_the_time_of_the_build(hello: Container) -> None:
    # It is the time of the last commit to the package set, or a constant outside a work tree.
    log = subprocess.run(
        ["git", "-c", "safe.directory=*", "log", "-1", "--format=%ct", "--", "."],
        cwd=PACKAGE_SET,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    expected = datetime.fromtimestamp(int(log.stdout or 1), UTC)
    assert datetime.fromisoformat(hello.image.config_document["created"]) == expected
