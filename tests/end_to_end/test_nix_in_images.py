"""Nix in an image knows the image's store paths: its collector keeps them, and it builds."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.container import Container, pull
from tests.support.server import Server

pytestmark = pytest.mark.xdist_group("debian")

# Builds need no cache, which a container without a network cannot reach.
ALONE = {"NIX_CONFIG": "substituters =", "HOME": "/tmp"}  # noqa: S108 -- of the container

TINY = """derivation {
  name = "tiny"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo built > $out" ];
}"""

# What people do in such an image, in this order; fails where Nix does, or has changed the image.
SESSION = f"""set -euo pipefail
cd /tmp
ls /nix/store | grep -v ^.links > before
nix-store --verify --check-contents
nix-store --query --references /bin/nix-store | grep libc6
nix-collect-garbage --delete-old
nix-store --verify --check-contents
ls /nix/store | grep -v ^.links | diff before -

nix-build --expr '{TINY}'
grep built result
nix-store --verify --check-contents
rm result
nix-store --gc --print-dead | sed 's/.*-//' | sort > dead
nix-store --gc
[ "$(tr '\n' ' ' < dead)" = "tiny tiny.drv " ]
ls /nix/store | grep -v ^.links | diff before -
"""


def schema(file: Path) -> object:
    """All that SQLite knows about the tables: Nix's own file has comments in them."""
    with closing(sqlite3.connect(file)) as connection:

        def rows(query: str) -> list[tuple[object, ...]]:
            return connection.execute(query).fetchall()

        tables = [str(name) for (name,) in rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
        triggers = rows("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        about = ("table_info", "index_list", "foreign_key_list")
        return sorted(tables), triggers, {(t, a): rows(f"PRAGMA {a}({t})") for t in tables for a in about}


@pytest.fixture(scope="module")
def container(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return pull(server.port, "shell/nix/gnugrep/gnused/diffutils", "latest", tmp_path_factory.mktemp("nix"))


def test_the_collector_keeps_the_image_and_nix_builds(container: Container) -> None:
    container.run("bash", "-c", SESSION, env=ALONE)


def test_the_collector_keeps_profiles(container: Container) -> None:
    package = TINY.replace("echo built > $out", "/bin/mkdir -p $out/share; echo kept > $out/share/it")
    script = f"""set -euo pipefail
        echo '{package}' > package.nix
        nix-env --install --file package.nix
        nix-collect-garbage --delete-old
        cat $HOME/.nix-profile/share/it
    """
    assert container.run("bash", "-c", script, env={**ALONE, "HOME": "/root"}).endswith("kept\n")


def test_the_user_of_a_definition_has_nix(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    container = pull(server.port, "nixuser", "latest", tmp_path_factory.mktemp("nix-user"))
    container.run("bash", "-c", SESSION, env=ALONE, user=1000)
    # The store's directory is that group's, too, but not the image's store paths.
    script = "mv $(dirname $(dirname $(readlink -f /bin/bash))) /nix/store/moved"
    status, output = container.status("bash", "-c", script, user=1000)
    assert status != 0
    assert "Operation not permitted" in output


def test_an_arbitrary_user_of_group_0_has_nix(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # As on OpenShift, which adds an entry for the user; here the variable has the name.
    name = "bash/coreutils/diffutils/gnugrep/gnused/nix"
    container = pull(server.port, name, "latest", tmp_path_factory.mktemp("nix-group"))
    container.run("bash", "-c", SESSION, env={**ALONE, "USER": "arbitrary"}, user=12345, group=0)


def test_the_tables_are_those_of_nix(container: Container, tmp_path: Path) -> None:
    places = {f"NIX_{name}_DIR": str(tmp_path / name) for name in ("STORE", "STATE", "LOG", "CONF")}
    environment = {**os.environ, **places, "NIX_CONFIG": "build-users-group ="}
    subprocess.run(["nix-store", "--init"], env=environment, check=True, timeout=60)
    ours = container.find("/nix/var/nix/db/db.sqlite")
    assert schema(ours) == schema(tmp_path / "STATE" / "db" / "db.sqlite")


def test_an_image_without_nix_has_no_database(hello: Container) -> None:
    assert not (hello.root / "nix" / "var").exists()
