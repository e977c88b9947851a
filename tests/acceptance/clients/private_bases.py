"""Builders whose base image needs credentials, and containerd as Kubernetes uses it: all but the last build an image of
one line ``FROM``, and each finds its credentials where its users put them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.acceptance.clients.buildah import running_buildah
from tests.acceptance.clients.client import BUILD, Shell
from tests.acceptance.clients.containerd import running_containerd
from tests.acceptance.clients.crane import PROGRAM as CRANE
from tests.acceptance.clients.docker import running_docker
from tests.acceptance.clients.kaniko import Kaniko
from tests.acceptance.clients.logins import Case, Commands, Credentials
from tests.acceptance.clients.podman import running_podman

CRICTL = CRANE.with_name("crictl")

# The programs that run a pod of Kubernetes send the credentials of its `imagePullSecrets` with the pull.
_POD = {"metadata": {"name": "pod", "namespace": "team", "uid": "1"}}


class _WithoutLists:
    """Commands of programs that pull, and neither log in nor list."""

    login_shows: ClassVar[bool] = False
    login_asks: ClassVar[bool] = False

    def login(self, host: str, credentials: Credentials) -> Sequence[str] | None:  # noqa: ARG002
        return None

    def tags(self, repository: str) -> Sequence[str] | None:  # noqa: ARG002
        return None

    def catalog(self, host: str) -> Sequence[str] | None:  # noqa: ARG002
        return None


def _context(directory: Path, base: str) -> Path:
    """Write a directory with a Dockerfile."""
    context = directory / "context"
    context.mkdir(parents=True)
    (context / "Dockerfile").write_text(f"FROM {base}\nLABEL from={base}\n")
    return context


@dataclass(frozen=True)
class DockerBuildCommands(_WithoutLists):
    """``docker build`` by the classic builder of the daemon, which gets all credentials of ``config.json``."""

    shell: Shell
    command: tuple[str, ...]
    name: ClassVar[str] = "docker-build"
    shows: ClassVar[AbstractSet[Case]] = frozenset(Case) - {Case.MISSING}
    asks_first: ClassVar[bool] = True
    by_buildkit: ClassVar[bool] = False

    def pull(self, reference: str, copy: Path, credentials: Credentials | None) -> Sequence[str]:  # noqa: ARG002
        environment = ("env", f"DOCKER_BUILDKIT={int(self.by_buildkit)}")
        options = ("--network=none", "--pull", "--no-cache", str(_context(copy, reference)))
        return (*environment, *self.command, "build", *options)


class BuildKitCommands(DockerBuildCommands):
    """``docker build`` by BuildKit, for which the command line gets the tokens."""

    name: ClassVar[str] = "buildkit"
    shows: ClassVar[AbstractSet[Case]] = frozenset()
    asks_first: ClassVar[bool] = False
    by_buildkit: ClassVar[bool] = True


@dataclass(frozen=True)
class PodmanBuildCommands(_WithoutLists):
    """``podman build``."""

    shell: Shell
    command: tuple[str, ...]
    name: ClassVar[str] = "podman-build"
    shows: ClassVar[AbstractSet[Case]] = frozenset(Case)
    asks_first: ClassVar[bool] = True

    def pull(self, reference: str, copy: Path, credentials: Credentials | None) -> Sequence[str]:  # noqa: ARG002
        options = ("--pull-always", "--no-cache", str(_context(copy, reference)))
        return (*self.command, "build", *BUILD, *options)


class BuildahBuildCommands(PodmanBuildCommands):
    """``buildah build``."""

    name: ClassVar[str] = "buildah-build"


@dataclass(frozen=True)
class KanikoCommands(_WithoutLists):
    """kaniko, whose container has a ``config.json``, as from a secret of Kubernetes."""

    shell: Shell
    kaniko: Kaniko
    name: ClassVar[str] = "kaniko"
    shows: ClassVar[AbstractSet[Case]] = frozenset(Case)
    asks_first: ClassVar[bool] = True

    def pull(self, reference: str, copy: Path, credentials: Credentials | None) -> Sequence[str]:
        secret = copy / "secret"
        context = _context(copy, reference)
        secret.mkdir()
        host = reference.partition("/")[0]
        auths = {} if credentials is None else {host: {"auth": credentials.encoded}}
        (secret / "config.json").write_text(json.dumps({"auths": auths}))
        return self.kaniko.command(copy, context, "built", {secret: "/kaniko/.docker:ro"})


@dataclass(frozen=True)
class CriCommands(_WithoutLists):
    """crictl, which asks containerd for what the kubelet asks it for."""

    shell: Shell
    command: tuple[str, ...]
    name: ClassVar[str] = "crictl"
    shows: ClassVar[AbstractSet[Case]] = frozenset()
    asks_first: ClassVar[bool] = False

    def pull(self, reference: str, copy: Path, credentials: Credentials | None) -> Sequence[str]:
        copy.mkdir()
        pod = copy / "pod.json"
        pod.write_text(json.dumps(_POD))
        given = () if credentials is None else ("--creds", credentials.colon_separated)
        return (*self.command, "pull", *given, "--pod-config", str(pod), reference)


@contextmanager
def running_builder(name: str, directory: Path, port: int) -> Iterator[tuple[Commands, Mapping[str, str]]]:
    """Run a builder or the CRI; returns its commands and the versions of its programs."""
    match name:
        case "docker-build" | "buildkit":
            kind = BuildKitCommands if name == "buildkit" else DockerBuildCommands
            with running_docker(directory, port) as docker:
                yield kind(docker.shell, docker.command), docker.versions()
        case "podman-build":
            with running_podman(directory, port) as podman:
                yield PodmanBuildCommands(podman.shell, podman.podman), podman.versions()
        case "buildah-build":
            with running_buildah(directory, port) as buildah:
                yield BuildahBuildCommands(buildah.shell, buildah.buildah), buildah.versions()
        case "kaniko":
            with running_podman(directory, port) as podman:
                yield KanikoCommands(podman.shell, Kaniko(podman)), {"kaniko": Kaniko.version()}
        case _:
            with running_containerd(directory, port, for_kubernetes=True) as containerd:
                command = containerd.cri_command(CRICTL)
                version = CRICTL.with_suffix(".version").read_text().strip().rpartition("@")[2]
                yield (
                    CriCommands(containerd.shell, command),
                    {"crictl": version, "containerd": containerd.versions()["containerd"]},
                )
