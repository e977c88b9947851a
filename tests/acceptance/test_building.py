"""Builders copy files over an image: what the image has stays, and the copied files are there."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixery.packing.root_filesystem import BASE_DIRECTORIES
from tests.acceptance.clients.buildah import running_buildah
from tests.acceptance.clients.client import Outcome
from tests.acceptance.clients.docker import Docker, running_docker
from tests.acceptance.clients.kaniko import Kaniko
from tests.acceptance.clients.podman import Podman, running_podman
from tests.support.file_systems import short_lived_directory
from tests.support.server import Server

# git has directories that no other package has, below /usr/share and /usr/lib.
IMAGE = "shell/findutils/git/gnutar"

PROGRAM = "#!/bin/sh\necho program\n"

# Copied over the image; those in bin and sbin are programs.
FILES = (
    *("usr/bin/x", "usr/sbin/v", "usr/local/bin/y", "bin/z", "sbin/w"),
    *("lib/app/l", "lib/lib1.so", "usr/lib/app/m", "usr/lib/lib2.so", "usr/lib/git-core/git-mine"),
    *("usr/share/app/d", "usr/share/git-core/templates/hooks/mine", "usr/include/app.h", "usr/libexec/app/e"),
    *("etc/app.conf", "etc/ssl/certs/mine.crt", "etc/profile.d/mine.sh", "opt/app/a", "home/web/h"),
    *("srv/www/i", "var/log/app/l", "var/lib/app/l", "var/cache/app/c", "var/spool/app/s"),
)
LINKS = {"usr/bin/linked": "/opt/app/a", "opt/current": "app"}

# Programs of the image; the other name of each leads to the same file.
REPLACED = ("usr/bin/shuf", "bin/shred")

DOCKERFILE = f"""\
FROM {{registry}}/{IMAGE}
COPY rootfs/ /
ADD more.tar /
COPY --chown=1000:1000 owned /home/web/owned
COPY replacement /usr/bin/tac
RUN set -e; mkdir -p /var/opt/app; echo x > /opt/app/x; /usr/bin/env true; echo web:x:1000:1000::/home/web:/bin/sh >> /etc/passwd
VOLUME /var/opt/app
WORKDIR /usr/src/app
USER 1000:1000
CMD ["x"]
"""

ADDED = {*FILES, *LINKS, "usr/share/more/f", "home/web/owned/o", "opt/app/x"}

# Every name of the image but those of the store, with its kind and its target.
LISTING = (
    "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /nix -o -path /run -o -path /tmp \\)"
    " -prune -o -printf '%P %y %l\\n'"
)

# They are of the runtime, or lead to its files.
OF_THE_RUNTIME = frozenset({".dockerenv", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"})


@dataclass(frozen=True)
class Builder:
    """A builder of images, and a client that runs them.

    Attributes:
        build: builds the image of a directory with a Dockerfile, and names it.
        run: runs a shell script in an image, as its user or as root.
        follows_links: copied directories write to the files that symlinks of the image lead to; other builders
            replace the symlinks.
    """

    build: Callable[[Path, str], Outcome]
    run: Callable[[str, str, bool], str]
    follows_links: bool = False


def _with_docker(docker: Docker, *, by_buildkit: bool) -> Builder:
    return Builder(
        lambda context, name: docker.build(context, name, by_buildkit=by_buildkit),
        lambda image, script, as_root: _run(docker, image, script, as_root=as_root),
    )


def _run(client: Docker | Podman, image: str, script: str, *, as_root: bool) -> str:
    if "/" in image:
        # Docker would print the progress of the pull together with the output of the script.
        client.pull(image).expect_success()
    options = ("--user=0:0",) if as_root else ()
    return client.run_with(options, image, "sh", "-c", script).expect_success()


@contextmanager
def _builder(name: str, directory: Path, port: int) -> Iterator[Builder]:
    match name:
        case "buildkit" | "docker":
            with running_docker(directory, port) as docker:
                yield _with_docker(docker, by_buildkit=name == "buildkit")
        case "podman":
            with running_podman(directory, port) as podman:
                yield Builder(podman.build, lambda *run: _run(podman, run[0], run[1], as_root=run[2]))
        case "kaniko":
            with running_podman(directory, port) as podman:
                yield Builder(
                    Kaniko(podman).build,
                    lambda *run: _run(podman, run[0], run[1], as_root=run[2]),
                    follows_links=True,
                )
        case _:
            # They share their storage.
            with running_buildah(directory, port) as buildah, running_podman(directory, port) as podman:
                yield Builder(buildah.build, lambda *run: _run(podman, run[0], run[1], as_root=run[2]))


@pytest.fixture(scope="module")
def builder(request: pytest.FixtureRequest, server: Server) -> Iterator[Builder]:
    with (
        short_lived_directory(f"nixery-{request.param}-") as directory,
        _builder(request.param, directory, server.port) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def docker(server: Server) -> Iterator[Docker]:
    with (
        short_lived_directory("nixery-docker-") as directory,
        running_docker(directory, server.port) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def podman(server: Server) -> Iterator[Podman]:
    with (
        short_lived_directory("nixery-podman-") as directory,
        running_podman(directory, server.port) as running,
    ):
        yield running


def write_rootfs(root: Path) -> None:
    """Write files to copy over an image, whose directories are all real."""
    for name in FILES + REPLACED:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PROGRAM if file.parent.name in ("bin", "sbin") else f"{name}\n")
        file.chmod(0o755)
    for name, target in LINKS.items():
        (root / name).symlink_to(target)


@pytest.fixture(scope="module")
def built(builder: Builder, tmp_path_factory: pytest.TempPathFactory, registry: str) -> str:
    """The name of an image that a builder made of another one."""
    tmp_path = tmp_path_factory.mktemp("context")
    write_rootfs(tmp_path / "rootfs")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.format(registry=registry))
    (tmp_path / "owned").mkdir()
    (tmp_path / "owned" / "o").touch()
    (tmp_path / "replacement").write_text(PROGRAM)
    (tmp_path / "replacement").chmod(0o755)
    added = tmp_path / "added" / "usr"
    (added / "share" / "more").mkdir(parents=True)
    (added / "share" / "more" / "f").touch()
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        archive.add(added, "usr")
    builder.build(tmp_path, "built").expect_success()
    return "built"


def names(listing: str) -> dict[str, str]:
    """Map names to kind and target."""
    lines = (line.partition(" ") for line in listing.splitlines())
    return {name: rest for name, _, rest in lines if name not in OF_THE_RUNTIME}


def test_an_image_keeps_its_files_below_copied_ones(builder: Builder, built: str, registry: str) -> None:
    before = names(builder.run(f"{registry}/{IMAGE}", LISTING, True))
    after = names(builder.run(built, LISTING, True))
    changed = {name for name in before if after.get(name) != before[name]}
    # Docker copies to the file that /usr/bin/tac leads to, Buildah replaces the symlink.
    assert changed - {"usr/bin/tac"} == (set() if builder.follows_links else set(REPLACED))
    new = {name for name in after.keys() - before.keys() if after[name] != "d "}
    # A new volume may have a copy of the image's files or not.
    assert new == ADDED


def test_programs_run_in_a_built_image(builder: Builder, built: str) -> None:
    for program in ("x", "v", "y", "z", "w", "shuf", "shred", "/usr/bin/shred", "tac"):
        assert builder.run(built, program, False) == "program\n", program
    prints = {
        "id -u; pwd": "1000\n/usr/src/app\n",
        "id -un": "web\n",
        "/usr/bin/env printf ok": "ok",
        # The locale.
        "bash -c 'letter=ä; echo ${#letter}'": "1\n",
        "cat /usr/bin/linked /opt/current/a": "opt/app/a\n" * 2,
        "stat -c %u:%g /home/web/owned /home/web/owned/o": "1000:1000\n" * 2,
        "cat /usr/share/git-core/templates/hooks/mine": "usr/share/git-core/templates/hooks/mine\n",
        "git init -q /tmp/r && cat /tmp/r/.git/HEAD": "ref: refs/heads/master\n",
    }
    for script, printed in prints.items():
        assert builder.run(built, script, False) == printed, script


def test_docker_copies_into_a_container(docker: Docker, tmp_path: Path, registry: str) -> None:
    write_rootfs(tmp_path)
    image = f"{registry}/{IMAGE}"
    docker.pull(image).expect_success()
    docker.copy_into(tmp_path, image, "copied")
    before, after = (names(_run(docker, name, LISTING, as_root=True)) for name in (image, "copied"))
    assert {name for name in before if after.get(name) != before[name]} == set(REPLACED)
    assert {name for name in after.keys() - before.keys() if after[name] != "d "} == {*FILES, *LINKS}


def test_an_archive_is_unpacked_over_a_running_container(
    docker: Docker, tmp_path: Path, registry: str
) -> None:
    """As ``kubectl cp`` does: with the image's own tar."""
    write_rootfs(tmp_path / "rootfs")
    with tarfile.open(tmp_path / "rootfs.tar", "w") as archive:
        for child in (tmp_path / "rootfs").iterdir():
            archive.add(child, child.name)
    image = f"{registry}/{IMAGE}"
    docker.pull(image).expect_success()
    before = names(_run(docker, image, LISTING, as_root=True))
    script = f"tar -xmf /mnt/rootfs.tar -C / && /usr/bin/env x >&2 && {LISTING}"
    listing = docker.run_with((f"--volume={tmp_path}:/mnt:ro",), image, "sh", "-c", script).expect_success()
    after = names(listing)
    assert {name for name in before if not name.startswith("mnt") and after.get(name) != before[name]} == set(
        REPLACED
    )


@pytest.mark.parametrize("options", [(), ("--read-only", "--tmpfs=/tmp", "--tmpfs=/run")])
@pytest.mark.parametrize("name", ["docker", "podman"])
def test_files_and_directories_are_mounted(
    request: pytest.FixtureRequest, tmp_path: Path, registry: str, name: str, options: tuple[str, ...]
) -> None:
    client: Docker | Podman = request.getfixturevalue(name)
    image = f"{registry}/{IMAGE}"
    client.pull(image).expect_success()
    (tmp_path / "f").write_text("mounted\n")
    tmp_path.chmod(0o755)
    directories = [
        *(
            "/etc/app",
            "/usr/local/app",
            "/opt/app",
            "/var/lib/app",
            "/home/web",
            "/srv/www",
            "/usr/share/app",
        ),
        *(
            "/usr/share/git-core/mine",
            "/usr/lib/app",
            "/lib/modules",
            "/media/disk",
            "/var/log/app",
            "/run/app",
        ),
        *("/etc/ssl/certs", "/usr/local/share/ca-certificates", "/var/spool/app", "/usr/src/app", "/mnt"),
    ]
    files = (
        "/etc/app.conf",
        "/etc/resolv.conf",
        "/usr/local/bin/y",
        "/usr/bin/tac",
        "/run/secrets/f",
        "/var/run/app.sock",
    )
    mounts = [f"--volume={tmp_path}:{place}:ro" for place in directories]
    mounts += [f"--volume={tmp_path / 'f'}:{place}:ro" for place in files]
    places = [*(f"{place}/f" for place in directories), *files]
    script = f"cat {' '.join(places)}; /usr/bin/env git --version >&2"
    outcome = client.run_with((*options, *mounts), image, "sh", "-c", script)
    assert outcome.expect_success().count("mounted\n") == len(places)


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_base_directories_are_there(request: pytest.FixtureRequest, registry: str, name: str) -> None:
    client: Docker | Podman = request.getfixturevalue(name)
    image = f"{registry}/{IMAGE}"
    client.pull(image).expect_success()
    # Runtimes mount over some of them.
    mounted = (b"dev", b"proc", b"run", b"sys", b"tmp")
    checked = [f"/{name.decode()}" for name in BASE_DIRECTORIES if name.split(b"/")[0] not in mounted]
    listing = client.run_with((), image, "stat", "-c", "%n %F %a %u %g", *checked).expect_success()
    modes = {f"/{name.decode()}": mode for name, mode in BASE_DIRECTORIES.items()}
    assert listing.splitlines() == [f"{name} directory {modes[name]:o} 0 0" for name in checked]
