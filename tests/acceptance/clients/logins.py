"""Clients with credentials: how each one logs in, pulls, and lists tags and repositories."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Protocol

from tests.acceptance.clients.buildah import Buildah
from tests.acceptance.clients.client import COMMAND, PULL, Client, Outcome, Shell
from tests.acceptance.clients.containerd import Containerd
from tests.acceptance.clients.crane import PROGRAM as CRANE
from tests.acceptance.clients.crane import Crane
from tests.acceptance.clients.docker import Docker
from tests.acceptance.clients.podman import Podman
from tests.acceptance.clients.skopeo import Skopeo

ORAS, REGCTL = CRANE.with_name("oras"), CRANE.with_name("regctl")


@dataclass(frozen=True)
class Credentials:
    """A user name and a password, which may be a token."""

    user: str
    password: str

    @property
    def colon_separated(self) -> str:
        return f"{self.user}:{self.password}"

    @property
    def encoded(self) -> str:
        return base64.b64encode(self.colon_separated.encode()).decode()

    @property
    def authorization(self) -> str:
        """The value of the header field."""
        return f"Basic {self.encoded}"


class Case(StrEnum):
    """Credentials with which a pull fails."""

    WRONG = "wrong password"
    EXPIRED = "expired token"
    FOREIGN = "token of another registry"
    UNRELATED = "user without the right"
    MISSING = "no credentials"


class Commands(Protocol):
    """The commands of a client. Each returns ``None`` if the client has no such command.

    Most clients read the same files of credentials, which ``LoginClient`` writes; ``ctr`` has an option instead.

    Attributes:
        name: of the client.
        shows: cases in which the client shows the server's message.
        login_shows: whether its failed login does.
        login_asks: whether its login asks the registry.
        asks_first: whether it asks ``/v2/`` for the way to log in before each pull.
    """

    name: ClassVar[str]
    shows: ClassVar[AbstractSet[Case]]
    login_shows: ClassVar[bool]
    login_asks: ClassVar[bool]
    asks_first: ClassVar[bool]

    @property
    def shell(self) -> Shell: ...

    def pull(self, reference: str, copy: Path, credentials: Credentials | None) -> Sequence[str]: ...

    def login(self, host: str, credentials: Credentials) -> Sequence[str] | None: ...

    def tags(self, repository: str) -> Sequence[str] | None: ...

    def catalog(self, host: str) -> Sequence[str] | None: ...


@dataclass(frozen=True)
class DockerCommands:
    """docker: the command line sends the credentials to the daemon, which logs in and pulls."""

    shell: Shell
    command: tuple[str, ...]
    name: ClassVar[str] = "docker"
    shows: ClassVar[AbstractSet[Case]] = frozenset(Case) - {Case.MISSING}
    login_shows: ClassVar[bool] = True
    login_asks: ClassVar[bool] = True
    asks_first: ClassVar[bool] = True

    def pull(self, reference: str, copy: Path, credentials: Credentials | None) -> Sequence[str]:  # noqa: ARG002
        return (*self.command, "pull", reference)

    def login(self, host: str, credentials: Credentials) -> Sequence[str] | None:
        return (*self.command, "login", "-u", credentials.user, "-p", credentials.password, host)

    def tags(self, repository: str) -> Sequence[str] | None:  # noqa: ARG002 -- it lists none
        return None

    def catalog(self, host: str) -> Sequence[str] | None:  # noqa: ARG002 -- it lists none
        return None


@dataclass(frozen=True)
class ContainerdCommands:
    """ctr: it has no login; the credentials are an option of the pull."""

    shell: Shell
    command: tuple[str, ...]
    name: ClassVar[str] = "ctr"
    shows: ClassVar[AbstractSet[Case]] = frozenset()
    login_shows: ClassVar[bool] = False
    login_asks: ClassVar[bool] = False
    asks_first: ClassVar[bool] = False

    def pull(self, reference: str, copy: Path, credentials: Credentials | None) -> Sequence[str]:  # noqa: ARG002
        user = () if credentials is None else ("--user", credentials.colon_separated)
        options = ("--plain-http", "--snapshotter", "overlayfs", *user)
        return (*self.command, "images", "pull", *options, reference)

    def login(self, host: str, credentials: Credentials) -> Sequence[str] | None:  # noqa: ARG002
        return None

    def tags(self, repository: str) -> Sequence[str] | None:  # noqa: ARG002 -- it lists none
        return None

    def catalog(self, host: str) -> Sequence[str] | None:  # noqa: ARG002 -- it lists none
        return None


@dataclass(frozen=True)
class PodmanCommands:
    """podman or buildah."""

    shell: Shell
    command: tuple[str, ...]
    name: ClassVar[str] = "podman"
    shows: ClassVar[AbstractSet[Case]] = frozenset(Case)
    login_shows: ClassVar[bool] = False
    login_asks: ClassVar[bool] = True
    asks_first: ClassVar[bool] = True

    def pull(self, reference: str, copy: Path, credentials: Credentials | None) -> Sequence[str]:  # noqa: ARG002
        # buildah asks the registry for no image that it has, unless it is told to.
        always = () if self.name == "podman" else ("--policy=always",)
        return (*self.command, "pull", "--tls-verify=false", *always, reference)

    def login(self, host: str, credentials: Credentials) -> Sequence[str] | None:
        given = ("-u", credentials.user, "-p", credentials.password)
        return (*self.command, "login", "--tls-verify=false", *given, host)

    def tags(self, repository: str) -> Sequence[str] | None:
        search = ("search", "--list-tags", "--limit=1000", "--format={{.Tag}}", "--tls-verify=false")
        return (*self.command, *search, repository) if self.name == "podman" else None

    def catalog(self, host: str) -> Sequence[str] | None:
        return (*self.command, "search", "--tls-verify=false", f"{host}/") if self.name == "podman" else None


class BuildahCommands(PodmanCommands):
    """buildah, which lists nothing."""

    name: ClassVar[str] = "buildah"


@dataclass(frozen=True)
class SkopeoCommands:
    """skopeo, which copies into OCI layouts."""

    shell: Shell
    name: ClassVar[str] = "skopeo"
    shows: ClassVar[AbstractSet[Case]] = frozenset(Case)
    login_shows: ClassVar[bool] = False
    login_asks: ClassVar[bool] = True
    asks_first: ClassVar[bool] = True

    def pull(self, reference: str, copy: Path, credentials: Credentials | None) -> Sequence[str]:  # noqa: ARG002
        options = ("copy", "--src-tls-verify=false", "--override-os=linux")
        return ("skopeo", *options, f"docker://{reference}", f"oci:{copy}:image")

    def login(self, host: str, credentials: Credentials) -> Sequence[str] | None:
        given = ("-u", credentials.user, "-p", credentials.password)
        return ("skopeo", "login", "--tls-verify=false", *given, host)

    def tags(self, repository: str) -> Sequence[str] | None:
        return ("skopeo", "list-tags", "--tls-verify=false", f"docker://{repository}")

    def catalog(self, host: str) -> Sequence[str] | None:  # noqa: ARG002 -- it lists none
        return None


@dataclass(frozen=True)
class CraneCommands:
    """crane, whose login writes a file and asks no registry; kaniko and ko use the same library."""

    shell: Shell
    name: ClassVar[str] = "crane"
    shows: ClassVar[AbstractSet[Case]] = frozenset(Case)
    login_shows: ClassVar[bool] = False
    login_asks: ClassVar[bool] = False
    asks_first: ClassVar[bool] = True

    def pull(self, reference: str, copy: Path, credentials: Credentials | None) -> Sequence[str]:  # noqa: ARG002
        return (str(CRANE), "pull", "--format=oci", reference, str(copy))

    def login(self, host: str, credentials: Credentials) -> Sequence[str] | None:
        return (str(CRANE), "auth", "login", "-u", credentials.user, "-p", credentials.password, host)

    def tags(self, repository: str) -> Sequence[str] | None:
        return (str(CRANE), "ls", repository)

    def catalog(self, host: str) -> Sequence[str] | None:
        return (str(CRANE), "catalog", host)


@dataclass(frozen=True)
class OrasCommands:
    """oras, which copies into OCI layouts."""

    shell: Shell
    name: ClassVar[str] = "oras"
    shows: ClassVar[AbstractSet[Case]] = frozenset(Case) - {Case.UNRELATED}
    login_shows: ClassVar[bool] = True
    login_asks: ClassVar[bool] = True
    asks_first: ClassVar[bool] = False

    def versions(self) -> Mapping[str, str]:
        return {"oras": self.shell.ask(str(ORAS), "version").split()[1]}

    def pull(self, reference: str, copy: Path, credentials: Credentials | None) -> Sequence[str]:  # noqa: ARG002
        options = ("copy", "--no-tty", "--from-plain-http", "--to-oci-layout")
        return (str(ORAS), *options, reference, f"{copy}:image")

    def login(self, host: str, credentials: Credentials) -> Sequence[str] | None:
        return (str(ORAS), "login", "--plain-http", "-u", credentials.user, "-p", credentials.password, host)

    def tags(self, repository: str) -> Sequence[str] | None:
        return (str(ORAS), "repo", "tags", "--plain-http", repository)

    def catalog(self, host: str) -> Sequence[str] | None:
        return (str(ORAS), "repo", "ls", "--plain-http", host)


@dataclass(frozen=True)
class RegctlCommands:
    """regctl, which copies into OCI layouts."""

    shell: Shell
    name: ClassVar[str] = "regctl"
    shows: ClassVar[AbstractSet[Case]] = frozenset({Case.UNRELATED})
    login_shows: ClassVar[bool] = False
    login_asks: ClassVar[bool] = True
    asks_first: ClassVar[bool] = False

    def versions(self) -> Mapping[str, str]:
        return {"regctl": self.shell.ask(str(REGCTL), "version", "--format", "{{.VCSTag}}")}

    def pull(self, reference: str, copy: Path, credentials: Credentials | None) -> Sequence[str]:  # noqa: ARG002
        return self._at(reference.partition("/")[0], "image", "copy", reference, f"ocidir://{copy}:image")

    def login(self, host: str, credentials: Credentials) -> Sequence[str] | None:
        given = ("-u", credentials.user, "-p", credentials.password)
        return self._at(host, "registry", "login", *given, host)

    def tags(self, repository: str) -> Sequence[str] | None:
        return self._at(repository.partition("/")[0], "tag", "ls", repository)

    def catalog(self, host: str) -> Sequence[str] | None:
        return self._at(host, "repo", "ls", host)

    def _at(self, host: str, *arguments: str) -> Sequence[str]:
        return (str(REGCTL), "--host", f"reg={host},tls=disabled", *arguments)


COMPILED: dict[str, type[OrasCommands | RegctlCommands]] = {"oras": OrasCommands, "regctl": RegctlCommands}


def commands_of(client: Client) -> Commands:
    """Return the commands of a running client."""
    match client:
        case Docker():
            return DockerCommands(client.shell, client.command)
        case Containerd():
            return ContainerdCommands(client.shell, client.command)
        case Podman():
            return PodmanCommands(client.shell, client.podman)
        case Buildah():
            return BuildahCommands(client.shell, client.buildah)
        case Skopeo():
            return SkopeoCommands(client.shell)
        case Crane():
            return CraneCommands(client.shell)
        case _:
            raise AssertionError(f"{client.name} has no commands with credentials")


class LoginClient:
    """A client with credentials for one registry, or without any.

    Args:
        commands: of the client.
        versions: of its programs.
        host: the registry, ``host:port``.
    """

    def __init__(self, commands: Commands, versions: Mapping[str, str], host: str) -> None:
        self.commands = commands
        self.name = commands.name
        self.versions = versions
        self._host = host
        self._calls = 0

    def login(self, credentials: Credentials) -> Outcome | None:
        """Log in, with a file of credentials that is empty before; ``None`` if the client has no login."""
        command = self.commands.login(self._host, credentials)
        return None if command is None else self._call(command, None, COMMAND)

    def pull(self, name: str, credentials: Credentials | None) -> Outcome:
        """Pull an image with stored credentials, as after a login that was right at its time."""
        copy = self.commands.shell.directory / f"copy-{self._calls}"
        command = self.commands.pull(f"{self._host}/{name}", copy, credentials)
        return self._call(command, credentials, PULL)

    def tags(self, name: str, credentials: Credentials | None) -> Outcome | None:
        """List the tags of an image; ``None`` if the client cannot."""
        command = self.commands.tags(f"{self._host}/{name}")
        return None if command is None else self._call(command, credentials, COMMAND)

    def catalog(self, credentials: Credentials | None) -> Outcome | None:
        """List the images of the registry; ``None`` if the client cannot."""
        command = self.commands.catalog(self._host)
        return None if command is None else self._call(command, credentials, COMMAND)

    def _call(self, command: Sequence[str], credentials: Credentials | None, seconds: float) -> Outcome:
        self._calls += 1
        directory = self.commands.shell.directory / f"credentials-{self._calls}"
        directory.mkdir()
        auths = {} if credentials is None else {self._host: {"auth": credentials.encoded}}
        file = directory / "config.json"
        file.write_text(json.dumps({"auths": auths}))
        where = (
            *(f"DOCKER_CONFIG={directory}", f"REGISTRY_AUTH_FILE={file}"),
            f"REGCTL_CONFIG={directory / 'regctl.json'}",
        )
        return self.commands.shell.call(("env", *where, *command), seconds)
