"""Package authors cannot read files of the build machine, and control only their own files in an image."""

from __future__ import annotations

import contextlib
import gzip
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.nix import PACKAGE_SETS
from tests.support.pulled_image import PulledImage
from tests.support.server import Server, running_server
from tests.validator.image_validator import validate

pytestmark = pytest.mark.security

# In the environment of the server, in a file and in a file name.
SECRET = f"nixery-secret-{secrets.token_hex(16)}"


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The targets of links in packages."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret").write_text(f"{SECRET}:x:0:0::/:\nweb:x:4242:4242::/:\n")
    os.mkfifo(outside / "pipe")
    for name in ("bin", "etc", "lib", "share/d"):
        (outside / "directory" / name).mkdir(parents=True)
        (outside / "directory" / name / SECRET).write_text(SECRET)
    (outside / "directory" / "passwd").write_text(SECRET)
    (outside / "directory" / "sh").write_text(SECRET)
    (outside / "directory" / SECRET).write_text(SECRET)
    return outside


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, settings: Mapping[str, str], outside: Path
) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("hostile")
    package_set = directory / "set"
    package_set.mkdir()
    (package_set / "default.nix").write_text(
        f'arguments: import {PACKAGE_SETS}/hostile (arguments // {{ outside = "{outside}"; }})\n'
    )
    ours = {"NIXERY_PKGS_PATH": str(package_set), "AWS_SECRET_ACCESS_KEY": SECRET}
    with running_server(directory, {**settings, **ours}) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log


def pulled(server: Server, name: str) -> PulledImage:
    return validate(server.client.pull(name))


def everything_stored(server: Server) -> bytes:
    """The contents of all stored files, and the archives of all layers."""
    return b"".join(contents_stored(server) + layers_stored(server))


def layers_stored(server: Server) -> list[bytes]:
    return [
        gzip.decompress(content) for content in contents_stored(server) if content.startswith(b"\x1f\x8b")
    ]


def contents_stored(server: Server) -> list[bytes]:
    # Unfinished files, and the progress of a build that has just ended, may vanish at any time.
    contents = []
    for directory in (server.storage / "blobs", server.storage / "records"):
        for path in directory.rglob("*"):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                contents.append(path.read_bytes())
    return contents


@pytest.mark.parametrize("file", ["passwd", "group"])
@pytest.mark.parametrize(
    "kind", ["environment", "zero", "pipe", "secret", "upwards", "otherpath", "directory", "loop", "nofile"]
)
def test_accounts_are_read_from_the_image_only(server: Server, kind: str, file: str) -> None:
    pulled(server, "unrelated")  # the store path exists, in another image
    filesystem = pulled(server, f"{kind}.{file}").filesystem
    passwd, group = filesystem.read("etc/passwd").splitlines(), filesystem.read("etc/group").splitlines()
    users = [b"root", b"daemon", b"bin", b"nobody", b"web"]
    groups = [b"root", b"daemon", b"bin", b"tty", b"mail", b"users", b"nobody", b"nogroup", b"web"]
    assert [line.split(b":")[0] for line in passwd] == users
    assert [line.split(b":")[0] for line in group] == groups
    assert passwd[-1].startswith(b"web:x:1000:1000:web:/home/web:")
    assert filesystem.find("srv").uid == 1000
    assert SECRET.encode() not in everything_stored(server)


def names_at_root(image: PulledImage) -> set[str]:
    names = {member.name for layer in image.layers for member in layer.members()}
    return {name for name in names if not name.startswith("nix")}


@pytest.mark.parametrize("name", ["directories", "root", "process", "neighbours", "inetc", "whole"])
def test_directories_are_listed_in_the_image_only(server: Server, name: str) -> None:
    pulled(server, "unrelated")
    image = pulled(server, name)
    # Links without a target in the image, and the links of every image; /etc/shadow unless a package has the users.
    links = {
        "etc/shadow",
        "bin",
        "etc",
        "etc/ssl",
        "etc/x",
        "lib",
        "opt",
        "share",
        "usr",
        "usr/lib",
        "usr/share",
    }
    assert names_at_root(image) - names_at_root(pulled(server, "unrelated")) <= links
    assert not [layer for layer in image.layers if SECRET.encode() in layer.archive]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("whiteout", "-whiteout/.wh.nix"),
        ("opaque", "-opaque/share/x/.wh..wh..opq"),
        ("whiteoutdirectory", "-whiteoutdirectory/bin/.wh.sh"),
        ("whiteoutlink", "-whiteoutlink/etc/.wh.passwd"),
        ("whiteoutbelow", "-below/lib/.wh.libc"),
        ("whiteoutdefined", "/srv/.wh.data"),
        ("unrelated/whiteout", "-whiteout/.wh.nix"),
    ],
)
def test_whiteouts_are_refused_by_name(server: Server, name: str, file: str) -> None:
    refused = server.client.manifest(name)
    assert (refused.status, refused.error["code"]) == (422, "MANIFEST_UNKNOWN")
    assert f"{file} cannot be in an image: names that begin with .wh." in refused.error["message"]
    assert not [blob for blob in layers_stored(server) if b"/.wh." in blob]


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("digits", "-digits/etc/passwd", "no larger than 4294967294"),
        ("largestid", "-largestid/etc/passwd", "no larger than 4294967294"),
        ("largefile", "-largefile/etc/group", "more than 1,048,576 bytes"),
        ("lines", "-lines/etc/group", "more than 65,536 lines"),
        ("numbers", "/etc/passwd", "no number is left for the account web"),
        ("comments", "-comments/lib/sysusers.d/", "more than 8,192 lines"),
        ("deep", "-deep/etc/d", "below more than 128 directories"),
        ("multiplied", "-multiplied/", "more than 262,144 names"),
    ],
)
def test_oversized_account_files_are_refused_by_name(
    server: Server, name: str, file: str, reason: str
) -> None:
    refused = server.client.manifest(name)
    assert (refused.status, refused.error["code"]) == (422, "MANIFEST_UNKNOWN")
    assert file in refused.error["message"]
    assert reason in refused.error["message"]
    # The failure is cached.
    assert server.client.manifest(name).body == refused.body


@pytest.mark.parametrize("name", ["longuser", "toolongdefined", "deeplydefined", "manyvolumes"])
def test_definitions_are_bounded(server: Server, name: str) -> None:
    refused = server.client.manifest(name)
    assert (refused.status, refused.error["code"]) == (404, "MANIFEST_UNKNOWN")
    assert "should have at most" in refused.error["message"]
