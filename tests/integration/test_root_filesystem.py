"""The last layer: the image's root with links into the store, and its accounts and certificates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from nixery.packing.root_filesystem import BASE_DIRECTORIES
from tests.integration.conftest import Pull
from tests.support.server import Server


def test_base_directories_have_their_modes(pull: Pull) -> None:
    filesystem = pull("hello").filesystem
    modes = {
        "etc/ssl/certs": 0o755,
        "home": 0o755,
        "root": 0o700,
        "run/lock": 0o1777,
        "tmp": 0o1777,
        "usr/lib": 0o755,
        "usr/local/bin": 0o755,
        "var/tmp": 0o1777,
    }
    for name, mode in {**dict.fromkeys(text(BASE_DIRECTORIES), 0o755), **modes, "var/empty": 0o555}.items():
        member = filesystem.members[name]
        assert member.isdir(), name
        assert (member.mode, member.uid, member.gid) == (mode, 0, 0), name


def text(names: Iterable[bytes]) -> Iterator[str]:
    return (name.decode() for name in names)


def test_usr_bin_has_the_names_of_bin(pull: Pull) -> None:
    filesystem = pull("shell/hello").filesystem
    assert filesystem.members["usr/bin/hello"].linkname == "../../bin/hello"
    assert filesystem.names_in("usr/bin") == filesystem.names_in("bin")
    assert filesystem.read("usr/bin/hello") == filesystem.read("bin/hello")


def test_programs_are_links_into_the_store(pull: Pull) -> None:
    filesystem = pull("hello").filesystem
    assert filesystem.find("bin/hello").linkname == f"/{filesystem.store_path('hello-1.0')}/bin/hello"


def test_an_image_has_users_groups_and_name_services(pull: Pull) -> None:
    filesystem = pull("hello").filesystem
    users = dict(line.split(":", 1) for line in filesystem.read("etc/passwd").decode().splitlines())
    assert users["root"].startswith("x:0:0:")
    assert users["nobody"].startswith("x:65534:65534:")
    assert b"nobody:x:65534:" in filesystem.read("etc/group")
    assert b"hosts: files dns" in filesystem.read("etc/nsswitch.conf").replace(b":     ", b": ")


def test_a_passwd_file_of_a_package_replaces_the_default(pull: Pull) -> None:
    filesystem = pull("users").filesystem
    assert filesystem.read("etc/passwd") == b"somebody:x:1:1::/:/bin/sh\n"
    assert b"nobody" in filesystem.read("etc/group")


def test_certificates_have_both_names(pull: Pull) -> None:
    image = pull("hello")
    for name in ("ca-bundle.crt", "ca-certificates.crt"):
        assert image.filesystem.read(f"etc/ssl/certs/{name}") == b"certificates\n"
    for variable in ("SSL_CERT_FILE", "NIX_SSL_CERT_FILE", "GIT_SSL_CAINFO"):
        assert image.filesystem.read(image.env[variable].lstrip("/")) == b"certificates\n"
        assert "/nix/store" not in image.env[variable]


def test_the_path_begins_with_directories_for_programs_of_users(pull: Pull) -> None:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    image = pull("hello")
    assert image.env["PATH"] == path
    for directory in path.split(":"):
        assert image.filesystem.members[directory.removeprefix("/")].isdir()


@pytest.mark.parametrize(
    ("name", "architecture"), [("shell", b"x86_64-linux"), ("arm64/shell", b"aarch64-linux")]
)
def test_sh_and_env_are_of_the_images_architecture(pull: Pull, name: str, architecture: bytes) -> None:
    filesystem = pull(name).filesystem
    assert filesystem.read("bin/sh") == b"a shell for %s\n" % architecture
    assert filesystem.read("usr/bin/env") == b"coreutils for %s\n" % architecture


def test_sh_and_env_are_missing_without_a_shell(pull: Pull) -> None:
    assert pull("hello").filesystem.names_in("bin") == ["hello"]


@pytest.mark.parametrize(
    "name", ["hello", "shell", "arm64/hello", "shell/hello/greeting", "users", "symlinks"]
)
def test_no_link_of_the_root_dangles(pull: Pull, name: str) -> None:
    image = pull(name)
    links = [member for member in image.layers[-1].members() if member.issym()]
    assert links
    for link in links:
        # A symlink of a package may dangle.
        exists = link.name in image.filesystem or link.linkname.removeprefix("/") in image.filesystem.members
        assert exists, link.name


def test_clashing_files_are_taken_from_the_first_package_by_name(pull: Pull) -> None:
    filesystem = pull("clashb/clasha").filesystem
    assert filesystem.read("bin/clash") == b"a\n"
    assert filesystem.names_in("bin") == ["clash", "only-a", "only-b"]


def test_a_clash_is_logged(server: Server, pull: Pull) -> None:
    pull("clashb/clasha")
    (warning,) = [line for line in server.log.splitlines() if "bin/clash" in line and "only" not in line][:1]
    assert "clasha" in warning
    assert "clashb" in warning


def test_clashing_files_are_taken_by_priority_before_name(pull: Pull) -> None:
    assert pull("clasha/clashb/clashpriority").filesystem.read("bin/clash") == b"priority\n"


def test_a_file_never_replaces_a_base_directory(pull: Pull) -> None:
    filesystem = pull("clashfile/emptydirectory").filesystem
    assert "share/emptydirectory" in filesystem
    assert filesystem.members["usr/share"].isdir()


@pytest.mark.parametrize(
    ("name", "cmd"),
    [
        ("mainprogram", ["the-program"]),
        ("hello", ["hello"]),
        ("shell/hello", ["bash"]),
        ("hello/greeting", []),
        ("emptydirectory", []),
    ],
)
def test_cmd_is_the_main_program(pull: Pull, name: str, cmd: list[str]) -> None:
    config = pull(name).config_document["config"]
    assert config.get("Cmd", []) == cmd
    assert "Entrypoint" not in config


def test_the_creation_time_is_constant(pull: Pull) -> None:
    assert pull("hello").config_document["created"] == "1970-01-01T00:00:01Z"
