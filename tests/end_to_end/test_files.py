"""The root file system, seen from inside a container."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.support.container import Container, pull
from tests.support.server import Server

# ELF header, e_machine.
_AARCH64 = 183

pytestmark = pytest.mark.xdist_group("debian")


def test_directories_have_modes_and_owners(tools: Container) -> None:
    modes = {
        "/tmp": "1777",  # noqa: S108 -- of the container
        "/var/tmp": "1777",  # noqa: S108 -- likewise
        "/nix": "755",
        "/nix/store": "755",
        "/root": "700",
        "/etc": "755",
        "/usr": "755",
        "/bin": "755",
        "/var": "755",
    }
    listed = tools.run("stat", "-c", "%n %a %u:%g %F", *modes).splitlines()
    assert listed == [f"{name} {mode} 0:0 directory" for name, mode in modes.items()]


def test_all_files_have_the_same_time(tools: Container) -> None:
    # In directories to which neither runtimes nor other tests add files.
    names = ["/bin", "/bin/ls", "/usr", "/var", "/nix/store", "/etc/passwd", "/etc/ssl/certs"]
    assert set(tools.run("stat", "-c", "%Y", *names).split()) == {"1"}


def test_store_paths_are_as_in_the_nix_store(tools: Container) -> None:
    code = """if True:
        import os, stat
        for directory, _, names in os.walk("/nix/store"):
            for name in ([directory] if directory != "/nix/store" else []) + [f"{directory}/{n}" for n in names]:
                status = os.lstat(name)
                assert (status.st_uid, status.st_gid, status.st_mtime) == (0, 0, 1), name
                assert stat.S_ISLNK(status.st_mode) or stat.S_IMODE(status.st_mode) in (0o444, 0o555), name
    """
    tools.run("python3", "-c", code)


def test_root_and_nobody_have_names(tools: Container) -> None:
    code = """if True:
        import grp, pwd
        print([(pwd.getpwuid(n).pw_name, pwd.getpwuid(n).pw_dir, grp.getgrgid(n).gr_name) for n in (0, 65534)])
    """
    expected = [("root", "/root", "root"), ("nobody", "/", "nobody")]
    assert tools.run("python3", "-c", code) == f"{expected}\n"
    assert tools.run("id", user=65534) == "uid=65534(nobody) gid=65534(nobody) groups=65534(nobody)\n"


def test_names_in_etc_hosts_resolve_because_of_nsswitch(tools: Container, tmp_path: Path) -> None:
    hosts, without_files = tmp_path / "hosts", tmp_path / "nsswitch.conf"
    hosts.write_text("192.0.2.7 database\n")
    without_files.write_text("hosts: dns\n")
    code = ("python3", "-c", "import socket; print(socket.gethostbyname('database'))")
    assert tools.run(*code, files={"/etc/hosts": hosts}) == "192.0.2.7\n"
    # So the image's file makes it resolve.
    status, _ = tools.status(*code, files={"/etc/hosts": hosts, "/etc/nsswitch.conf": without_files})
    assert status != 0


def test_files_of_a_package_replace_the_defaults(special: Container) -> None:
    assert special.run("id", "-u", "somebody") == "4711\n"
    assert special.status("id", "-u", "nobody")[0] != 0
    # Groups are still the default.
    assert special.run("id", "-gn", user=65534) == "nobody\n"


def test_a_directory_of_a_package_is_merged_with_the_default(special: Container) -> None:
    names = ("/etc/ssl/openssl.cnf", "/etc/ssl/certs/ca-bundle.crt")
    assert special.run("cat", *names) == "own\nown\n"
    assert special.run("bash", "-c", "wc -l < /etc/ssl/certs/ca-certificates.crt").strip().isdigit()
    assert special.run("stat", "-c", "%F", "/etc/ssl", "/etc/ssl/certs") == "directory\ndirectory\n"


def test_scripts_find_their_interpreters(tools: Container, special: Container) -> None:
    assert special.run("say") == "said by bash\n"
    assert special.run("say-below-usr") == "said below usr\n"
    assert special.run("/usr/bin/say") == "said by bash\n"
    for container in (tools, special):
        assert container.run("stat", "-c", "%F", "/usr/bin", "/bin") == "directory\n" * 2
        assert container.run("/bin/sh", "-c", "echo $0") == "/bin/sh\n"
        assert container.run("/usr/bin/env", "bash", "-c", "echo x") == "x\n"


def test_an_image_has_an_env_if_its_closure_has_one(hello: Container) -> None:
    assert hello.run("/usr/bin/hello") == "Hello, world!\n"
    names = {path.name for path in (hello.root / "bin").iterdir()}
    assert ("env" in names) == any("-coreutils-" in path for path in hello.image.filesystem.store_paths)
    for name in names:
        assert hello.find(f"/bin/{name}").exists()


@pytest.mark.parametrize("name", ["/bin/sh", "/usr/bin/env"])
def test_shell_and_env_are_of_the_images_architecture(arm64: Container, name: str) -> None:
    header = arm64.find(name).read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", header, 18) == (_AARCH64,)


@pytest.fixture(scope="module")
def arm64(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return pull(server.port, "arm64/bash/coreutils", "latest", tmp_path_factory.mktemp("arm64"))


def test_a_clash_is_decided_by_priority_before_name_and_logged(special: Container, server: Server) -> None:
    # quiet has the lower meta.priority, loud the first name.
    assert special.run("volume") == "quiet\n"
    lines = [json.loads(line) for line in server.log.splitlines() if "names clash" in line]
    clashes = [(line["name"], line["winner"], line["loser"]) for line in lines if "dash" in line["image"]]
    assert ("bin/volume", "quiet", "loud") in clashes


def test_an_unknown_user_can_run_everything(tools: Container) -> None:
    script = (
        "set -e; id -u; echo x > /tmp/of-$$; cat /tmp/of-$$; rm /tmp/of-$$; git --version; test -r /bin/sh"
    )
    printed = tools.run("bash", "-c", script, user=12345).split()
    assert printed[:2] == ["12345", "x"]


def test_an_unknown_user_can_read_all_but_the_home_of_root_and_the_passwords(tools: Container) -> None:
    code = """if True:
        import os
        hidden = []
        for directory, directories, names in os.walk("/", onerror=lambda error: hidden.append(error.filename)):
            directories[:] = [n for n in directories if f"{directory}{n}" not in ("/proc", "/sys", "/dev")]
            paths = [os.path.join(directory, name) for name in names]
            hidden += [path for path in paths if not os.path.islink(path) and not os.access(path, os.R_OK)]
        print(sorted(hidden))
    """
    assert tools.run("python3", "-c", code, user=12345) == "['/etc/shadow', '/root']\n"
