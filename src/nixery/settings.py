"""How the values of settings are read and checked.

What is logged and traced, and in which form.

What layers an image has, and how they are packed.

How Nix is run.

Where blobs and records are kept, and for how long.

Check URLs of package sources, so that no secret in them gets into a program's arguments.

Every user of a machine can read the arguments of all processes. User info is removed from a URL and passed to
git in the environment; this module refuses any secret that cannot be passed in that way, and says what to do
instead.

Where packages come from, and what their names stand for.

Where is listened, and what one request may cost.

What the environment says. Nothing else in nixery reads it.

The variables are Nixery's, with the same meaning; those that begin with ``NIXERY_`` and are not in its
documentation are ours. Each module has those of one subject.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from nixery.errors import SettingsError
from nixery.image.platform import Platform
from nixery.nix.environments import (
    build_environment,
    fetch_environment,
    git_environment,
    variable_names,
    withheld_variables,
    without_secrets,
)
from nixery.quantities import DiskMark, seconds, size
from nixery.source_location import SourceLocation
from nixery.sources.source import REACHABLE, CommitRule

# Seconds.
DAY = 24 * 3600


def existing_package_set(path: Path | None) -> Path | None:
    """Make the path of a package set absolute.

    Raises:
        ValueError: there is none.
    """
    if path is None:
        return None
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.is_dir() and not (path / "default.nix").is_file():
        raise ValueError(f"{path} has no default.nix; expected a Nix package set")
    # Not resolved: a symlink may be moved to the next version while the server runs.
    return path.absolute()


def _refuse_empty(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise ValueError("it is set, but empty")
    return value


NotEmpty = BeforeValidator(_refuse_empty)

Size = BeforeValidator(lambda value: size(value) if isinstance(value, str) else value)


def _platforms(value: object) -> object:
    if not isinstance(value, str):
        return value
    platforms = [Platform.parse(part.strip()) for part in value.split(",") if part.strip()]
    return tuple(dict.fromkeys(platforms))


def listed(value: object) -> object:
    """Split at commas."""
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def arguments(value: object) -> object:
    """Split as a shell does."""
    return tuple(shlex.split(value)) if isinstance(value, str) else value


# zstd's levels above 19 take more memory than packing is to have.
_LEVELS = {"gzip": range(4), "zstd": range(1, 20)}


def known_level(level: int | None, others: ValidationInfo) -> int | None:
    """Check that a compression has a level.

    Raises:
        ValueError: it has not.
    """
    name = others.data.get("compression")
    if level is not None and name is not None and level not in _LEVELS[name]:
        raise ValueError(f"the levels of {name} are {_LEVELS[name][0]} to {_LEVELS[name][-1]}")
    return level


Platforms = BeforeValidator(_platforms)


def _exporter(value: str) -> str:
    if value.strip() not in {"", "none", "otlp"}:
        raise ValueError(f"traces can be exported with otlp or none, not with {value!r}")
    return value.strip()


def _protocol(value: str) -> str:
    if value.strip() not in {"", "http/protobuf"}:
        raise ValueError(f"traces are sent with http/protobuf, not with {value!r}")
    return value.strip()


class LogSettings(BaseModel):
    """What is logged and traced, and in which form. OpenTelemetry's variables have its own meaning: empty is unset.

    Attributes:
        log_format: JSON for machines, lines for people, or what stderr is.
        log_level: the least that is logged.
    """

    log_format: Annotated[Literal["auto", "json", "console"], NotEmpty, Field(alias="NIXERY_LOG_FORMAT")] = (
        "auto"
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], NotEmpty, Field(alias="NIXERY_LOG_LEVEL")
    ] = "info"
    otel_disabled: Annotated[str, Field(alias="OTEL_SDK_DISABLED")] = ""
    otel_exporter: Annotated[str, AfterValidator(_exporter), Field(alias="OTEL_TRACES_EXPORTER")] = ""
    otel_endpoint: Annotated[str, Field(alias="OTEL_EXPORTER_OTLP_ENDPOINT")] = ""
    otel_traces_endpoint: Annotated[str, Field(alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")] = ""
    otel_protocol: Annotated[str, AfterValidator(_protocol), Field(alias="OTEL_EXPORTER_OTLP_PROTOCOL")] = ""
    otel_traces_protocol: Annotated[
        str, AfterValidator(_protocol), Field(alias="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    ] = ""

    @property
    def traces(self) -> bool:
        """Whether OpenTelemetry's variables ask for traces."""
        if self.otel_disabled.strip().lower() == "true" or self.otel_exporter == "none":
            return False
        return bool(self.otel_exporter or self.otel_endpoint or self.otel_traces_endpoint)


class LayerSettings(BaseModel):
    """What layers an image has, and how they are packed.

    Attributes:
        layer_budget: the most layers of an image, the last one with the root file system included; with 1, all store
            paths are one layer, and the root is another.
        popularity_url: http(s) or file URL, or a path, of a JSON object with reference counts.
        compression: of layers; zstd has no name in Docker's media types.
        compression_level: of that compression, from fast to small; ``None`` for its default.
        packing_workers: how many layers are packed at the same time.
    """

    # Docker's overlay2 stops at about 125 layers; what the default leaves is for those who build on top of our images.
    layer_budget: Annotated[int, NotEmpty, Field(alias="NIXERY_LAYER_BUDGET", ge=1, le=120)] = 94
    popularity_url: Annotated[str | None, NotEmpty, Field(alias="NIX_POPULARITY_URL")] = None
    compression: Annotated[Literal["gzip", "zstd"], NotEmpty, Field(alias="NIXERY_COMPRESSION")] = "gzip"
    compression_level: Annotated[
        int | None, NotEmpty, AfterValidator(known_level), Field(alias="NIXERY_COMPRESSION_LEVEL")
    ] = None
    packing_workers: Annotated[
        int,
        NotEmpty,
        Field(alias="NIXERY_PACKING_WORKERS", ge=1, le=256, default_factory=lambda: os.cpu_count() or 1),
    ]


# Nix does not take arbitrarily large numbers.
_WEEK = 7 * DAY


class NixSettings(BaseModel):
    """Settings for running Nix.

    Attributes:
        nix_timeout: seconds a builder may run.
        nix_arguments: added to all commands of Nix.
        nix_sandbox: whether builders run in Nix's sandbox; ``auto`` for Nix's own configuration.
        allow_ifd: whether an evaluation may build derivations, and then read them (import from derivation).
        evaluation_memory: limit of an evaluation in MiB; 0 for no limit.
        build_variables: names of variables that builders get in addition to those without secrets.
    """

    nix_timeout: Annotated[int, NotEmpty, Field(alias="NIX_TIMEOUT", ge=1, le=_WEEK)] = 60
    nix_arguments: Annotated[
        tuple[str, ...],
        NotEmpty,
        BeforeValidator(arguments),
        AfterValidator(without_secrets),
        Field(alias="NIXERY_NIX_OPTIONS"),
    ] = ()
    nix_sandbox: Annotated[Literal["auto", "on", "off"], NotEmpty, Field(alias="NIXERY_NIX_SANDBOX")] = "auto"
    allow_ifd: Annotated[bool, NotEmpty, Field(alias="NIXERY_ALLOW_IFD")] = False
    evaluation_memory: Annotated[int, NotEmpty, Field(alias="NIXERY_EVALUATION_MEMORY", ge=0, le=1 << 22)] = (
        4096
    )

    build_variables: Annotated[
        tuple[str, ...], NotEmpty, BeforeValidator(variable_names), Field(alias="NIXERY_BUILD_ENVIRONMENT")
    ] = ()

    # Not a setting, and kept out of sight: it may hold secrets.
    environment: Annotated[Mapping[str, str], Field(alias="", repr=False)] = {}

    @property
    def build_environment(self) -> Mapping[str, str]:
        """The environment of commands that build, or query Nix's store: only secrets that a setting names."""
        return build_environment(self.environment, self.build_variables)

    @property
    def withheld_variables(self) -> tuple[str, ...]:
        """Names of variables that builders usually get, but do not because they hold a secret."""
        return withheld_variables(self.environment, self.build_variables)

    @property
    def evaluation_environment(self) -> Mapping[str, str]:
        """The environment of evaluations that read variables or build: secrets only as builders get them."""
        return build_environment(self.environment, self.build_variables if self.allow_ifd else ())

    @property
    def fetch_environment(self) -> Mapping[str, str]:
        """The environment of Nix commands that fetch, and run no code of a package author: with logins."""
        return fetch_environment(self.environment)

    @property
    def git_environment(self) -> Mapping[str, str]:
        """The environment in which git contacts a package source: with logins."""
        return git_environment(self.environment)


# Which variable names the bucket, by backend.
BUCKETS = {"s3": "S3_BUCKET", "gcs": "GCS_BUCKET", "azure": "AZURE_CONTAINER_NAME"}

# Those that are not on a file system of this machine.
_ELSEWHERE = frozenset({*BUCKETS, "memory"})

_GIB = 1024**3
_STORAGE_WEEK = 7 * 24 * 3600

# Defaults, so that a storage does not fill its disk, or a trial the memory. A bucket has no default limit.
_HIGH = {"filesystem": "90%", "memory": "1GiB"}
_NO_MARK = "none"


def _of_this_backend(mark: DiskMark | None, others: ValidationInfo) -> DiskMark | None:
    backend = others.data.get("storage_backend")
    if mark is not None and mark.percent is not None and backend in _ELSEWHERE:
        raise ValueError(
            f"{backend} has no file system to take a percentage of; write a size, for example 500GiB"
        )
    return mark


def _below_high(low: DiskMark | None, others: ValidationInfo) -> DiskMark | None:
    high = others.data.get("storage_high")
    if low is not None and (high is None or not low.is_below(high)):
        raise ValueError("it has to be below NIXERY_STORAGE_HIGH, and in the same unit: percent or bytes")
    return low


def _mark(value: object) -> object:
    if not isinstance(value, str):
        return value
    return None if value.strip().lower() == _NO_MARK else DiskMark.parse(value)


_Mark = BeforeValidator(_mark)


class StorageSettings(BaseModel):
    """Location of blobs and records, and their retention.

    The library for buckets reads the SDKs' own variables for credentials, regions and endpoints.

    Attributes:
        storage_backend: where blobs are stored.
        storage_path: directory of the file system backend; for others, of copies of repositories and of
            blobs.
        blob_delivery: whether to redirect clients to the bucket; ``None`` to do so if possible.
        s3_prefix: of all keys in a bucket of any kind.
        s3_public_endpoint: where clients reach the bucket, if it differs from ours.
        cache_size: bytes of blobs that are cached in ``storage_path`` when the server delivers them.
        storage_grace: seconds for which anything used or stored is kept, whatever the other settings say.
        storage_high: high watermark, above which images are deleted; ``None`` for no limit, the default for a
            bucket. A percentage needs a file
            system, and applies to its bytes and to its inodes.
        storage_low: low watermark, at which deletion stops; ``None`` for nine tenths of ``storage_high``.
        scrub_rate: MiB a second that are read in the background to find broken blobs; 0 for none, the default
            for a bucket.
    """

    storage_backend: Annotated[
        Literal["filesystem", "s3", "gcs", "azure", "memory"], NotEmpty, Field(alias="NIXERY_STORAGE_BACKEND")
    ]
    storage_path: Annotated[Path, NotEmpty, AfterValidator(Path.absolute), Field(alias="STORAGE_PATH")]
    blob_delivery: Annotated[
        Literal["redirect", "proxy"] | None, NotEmpty, Field(alias="NIXERY_BLOB_DELIVERY")
    ] = None
    s3_bucket: Annotated[str | None, NotEmpty, Field(alias="S3_BUCKET")] = None
    s3_prefix: Annotated[str, Field(alias="S3_PREFIX")] = ""
    s3_public_endpoint: Annotated[str | None, NotEmpty, Field(alias="S3_PUBLIC_ENDPOINT")] = None
    gcs_bucket: Annotated[str | None, NotEmpty, Field(alias="GCS_BUCKET")] = None
    azure_container: Annotated[str | None, NotEmpty, Field(alias="AZURE_CONTAINER_NAME")] = None
    cache_size: Annotated[int, NotEmpty, Size, Field(alias="NIXERY_CACHE_SIZE", ge=0)] = 10 * _GIB
    storage_grace: Annotated[
        int, NotEmpty, BeforeValidator(seconds), Field(alias="NIXERY_STORAGE_GRACE", ge=1, le=_STORAGE_WEEK)
    ] = 7200
    storage_high: Annotated[
        DiskMark | None,
        NotEmpty,
        _Mark,
        AfterValidator(_of_this_backend),
        Field(alias="NIXERY_STORAGE_HIGH"),
    ] = None
    storage_low: Annotated[
        DiskMark | None, NotEmpty, _Mark, AfterValidator(_below_high), Field(alias="NIXERY_STORAGE_LOW")
    ] = None
    scrub_rate: Annotated[int, NotEmpty, Field(alias="NIXERY_SCRUB_RATE", ge=0, le=1 << 16)] = 1

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_the_backend(cls, given: Any) -> Any:  # noqa: ANN401 -- pydantic's
        if not isinstance(given, Mapping):
            return given
        backend = given.get("NIXERY_STORAGE_BACKEND")
        defaults: dict[str, object] = {}
        # With a bucket nothing on this machine has to last.
        if backend in _ELSEWHERE:
            cache = Path(given.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            # A bucket compares what it has with checksums of its own, and reading it all may cost money.
            defaults = {"STORAGE_PATH": str(cache / "nixery"), "NIXERY_SCRUB_RATE": 0}
        if backend in _HIGH:
            defaults["NIXERY_STORAGE_HIGH"] = _HIGH[backend]
        return {**defaults, **given}


def storage_problems(environment: Mapping[str, str]) -> list[str]:
    """Return a line for each setting that the chosen backend lacks."""
    backend = environment.get("NIXERY_STORAGE_BACKEND", "")
    variable = BUCKETS.get(backend)
    problems = []
    if variable is not None and variable not in environment:
        problems.append(
            f"{variable} is not set: the bucket where layers are kept (NIXERY_STORAGE_BACKEND={backend})"
        )
    if (
        backend == "azure"
        and not {"AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_USE_EMULATOR"} & environment.keys()
    ):
        problems.append("AZURE_STORAGE_ACCOUNT_NAME is not set: the account that has AZURE_CONTAINER_NAME")
    return problems


# Parameters of flake references that Nix knows; none of them is a secret.
_FLAKE_PARAMETERS = frozenset(
    [
        "dir",
        "ref",
        "rev",
        "allRefs",
        "host",
        "shallow",
        "narHash",
        "lastModified",
        "revCount",
        "exportIgnore",
        "lfs",
        "unpack",
        "name",
        "verifyCommit",
        "keytype",
        "publicKey",
        "publicKeys",
    ]
)
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_REMOTE_HELPER = re.compile(r"[a-zA-Z0-9]+::")
_NETRC = "a netrc file (netrc-file in nix.conf) or access-tokens in nix.conf"


def git_url(url: str | None) -> str | None:
    """Check the URL of a git repository.

    Raises:
        ValueError: git would need a secret in its arguments, or would run another program for the URL.
    """
    if url is None:
        return None
    if _REMOTE_HELPER.match(url):
        raise ValueError("git would run a program for this kind of URL; write https, ssh, git or file")
    if url.startswith("-"):
        raise ValueError("git would take it for an option")
    if "://" in url:
        _check(url)
        if re.search(r"[?#]", url):
            raise ValueError(
                "it has a query, which every user of this machine could read in git's arguments; write a token as user info "
                "(https://user:token@host/…), or give it to a credential helper of git's"
            )
    return url


def archive_url(url: str) -> str:
    """Check the URL of commits' archives, with a placeholder; a secret in it is never an argument.

    Raises:
        ValueError: the placeholder is missing, or this is not a URL.
    """
    if "{rev}" not in url:
        raise ValueError("it has no {rev}, in whose place the commit goes")
    _check(url)
    return url


def flake_url(reference: str | None) -> str | None:
    """Check a flake reference.

    Raises:
        ValueError: it may contain a secret, for which Nix has other places.
    """
    if reference is None or reference.startswith(("/", ".")):
        return reference
    if reference.startswith("-"):
        raise ValueError("Nix would take it for an option")
    if "://" in reference:
        _check(reference)
    user_info = re.match(r"([^:/?#]+)://([^/?#]*)@", reference)
    if user_info is not None and not (user_info[1].endswith("ssh") and ":" not in user_info[2]):
        raise ValueError(
            f"it has user info, which every user of this machine could read in Nix's arguments; use {_NETRC}"
        )
    parameters = dict(parse_qsl(urlsplit(reference).query, keep_blank_values=True))
    if "submodules" in parameters:
        raise ValueError(
            "submodules are fetched from wherever the repository says, files of this machine included; leave them out"
        )
    unknown = sorted(parameters.keys() - _FLAKE_PARAMETERS)
    if unknown:
        raise ValueError(
            f"it has a parameter that flakes do not have ({', '.join(unknown)}), and every user of this machine could read it in "
            f"Nix's arguments; for a token use {_NETRC}"
        )
    return reference


def _check(url: str) -> None:
    """Raise a ``ValueError`` for a URL that programs parse differently, or that git cannot accept."""
    location = SourceLocation.parse(url)
    if _CONTROL.search(url) or any(
        _CONTROL.search(text or "") for text in (location.username, location.password)
    ):
        raise ValueError("it has a space or a control character")
    try:
        parts = urlsplit(location.address.replace("{rev}", "0"))
        port = parts.port
    except ValueError:
        port = -1
        parts = urlsplit("")
    if port == -1 or (not parts.hostname and not parts.scheme.endswith("file")):
        raise ValueError("it has no valid host; is a character of the password not percent-encoded?")


_NIXPKGS = "https://github.com/NixOS/nixpkgs"
_ARCHIVES = f"{_NIXPKGS}/archive/{{rev}}.tar.gz"
_CHANNEL = r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$"

SOURCES = ("NIXERY_CHANNEL", "NIXERY_PKGS_REPO", "NIXERY_PKGS_PATH", "NIXERY_FLAKE")


class SourceSettings(BaseModel):
    """Package sources.

    Attributes:
        package_set: directory or file of a Nix package set; absolute. Exactly one of this and the next three is set.
        repository: git URL of a package set.
        channel: name or commit of nixpkgs.
        flake: reference of a flake with packages.
        channel_url: URL of a commit's archive, with ``{rev}`` in its place.
        channel_repository: git URL of the repository whose branches are the channels.
        channel_tags: patterns of the tags that select another channel; ``commits`` for commits.
        commits: the commits that a tag may name.
        public_source: whether clients may see the source's URL; ``None``: only in the annotations of images
            if it has no secret, and everywhere if it is nixpkgs' own.
        platforms: what a name stands for that does not begin with a platform, the first one for clients that know no
            indexes; empty for the one that Nix builds for.
        optional_platforms: those of them that may be missing from an index.
        pin_ttl: seconds for which a tag keeps its meaning; with 0, every request checks the package set.
    """

    package_set: Annotated[
        Path | None, NotEmpty, AfterValidator(existing_package_set), Field(alias="NIXERY_PKGS_PATH")
    ] = None
    repository: Annotated[str | None, NotEmpty, AfterValidator(git_url), Field(alias="NIXERY_PKGS_REPO")] = (
        None
    )
    channel: Annotated[str | None, NotEmpty, Field(alias="NIXERY_CHANNEL", pattern=_CHANNEL)] = None
    flake: Annotated[str | None, NotEmpty, AfterValidator(flake_url), Field(alias="NIXERY_FLAKE")] = None
    channel_url: Annotated[str, NotEmpty, AfterValidator(archive_url), Field(alias="NIXERY_CHANNEL_URL")] = (
        _ARCHIVES
    )
    channel_repository: Annotated[
        str, NotEmpty, AfterValidator(git_url), Field(alias="NIXERY_CHANNEL_REPO")
    ] = _NIXPKGS
    channel_tags: Annotated[
        tuple[str, ...], NotEmpty, BeforeValidator(listed), Field(alias="NIXERY_CHANNEL_TAGS")
    ] = ("nixos-*", "nixpkgs-*", "release-*", "commits")
    commits: Annotated[
        CommitRule,
        NotEmpty,
        BeforeValidator(lambda value: CommitRule.parse(value) if isinstance(value, str) else value),
        Field(alias="NIXERY_COMMITS"),
    ] = CommitRule.parse(REACHABLE)
    public_source: Annotated[bool | None, NotEmpty, Field(alias="NIXERY_PUBLIC_SOURCE")] = None
    platforms: Annotated[tuple[Platform, ...], NotEmpty, Platforms, Field(alias="NIXERY_PLATFORMS")] = ()
    optional_platforms: Annotated[
        tuple[Platform, ...], NotEmpty, Platforms, Field(alias="NIXERY_PLATFORMS_OPTIONAL")
    ] = ()
    pin_ttl: Annotated[int, NotEmpty, Field(alias="NIXERY_PIN_TTL", ge=0, le=DAY)] = 3600

    def shows(self, url: str) -> bool | None:
        """Whether clients may see a URL of the source; ``None`` if unset. See ``public_source``."""
        return True if self.public_source is None and url in {_NIXPKGS, _ARCHIVES} else self.public_source


def source_problems(variables: set[str]) -> list[str]:
    """Say what is wrong with the number of sources among the variables that are set."""
    given = [variable for variable in SOURCES if variable in variables]
    if not given:
        return [f"set one of {', '.join(SOURCES)}: where packages come from"]
    return [f"{' and '.join(given)} are set; packages come from one source"] if len(given) > 1 else []


# Connections to the public port: fewer would not let a client fetch layers in parallel.
_FEWEST_CONNECTIONS = 16

_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::\d{1,5})?", re.ASCII)


def _networks(value: object) -> object:
    parts = listed(value)
    if not isinstance(parts, tuple):
        return value
    networks = tuple(ip_network(part) if isinstance(part, str) else part for part in parts)
    if any(network.prefixlen == 0 for network in networks):
        raise ValueError("a network of all addresses would have every client believed; list the proxies' own")
    return networks


def _base_url(url: str | None) -> str | None:
    """Check that a URL is a registry's: without a path.

    Raises:
        ValueError: it is not.
    """
    if url is None:
        return None
    parts = urlsplit(url.strip())
    host = parts.netloc.lower()
    if parts.scheme not in {"http", "https"} or not _HOST.fullmatch(host):
        raise ValueError(
            f"{url!r} is no http(s) URL with a host; write for example https://registry.example.org"
        )
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"{url!r} has more than a host; a registry is at the root of its host")
    return f"{parts.scheme}://{host}"


def _another_port(port: int | None, others: ValidationInfo) -> int | None:
    if port is not None and port == others.data.get("port"):
        raise ValueError("it is the same as PORT; health and metrics have a port of their own")
    return port


class ServerSettings(BaseModel):
    """Listen addresses, and limits on requests.

    Attributes:
        host: address to bind. Nixery binds all addresses only if the operator sets that: it builds what
            clients ask for.
        port: TCP port to bind.
        admin_host: address of the listener for health and metrics.
        admin_port: its TCP port; ``None`` for no such listener.
        public_url: scheme and host by which clients reach the server, for links; ``None`` to use each
            request's own.
        trusted_proxies: addresses whose ``X-Forwarded-*``, ``X-Request-Id`` and ``traceparent`` are trusted.
        public_builds: whether every client may see which images are built, and the logs of their builds.
        max_builds: how many images are built at once, and how many tags are looked up at once.
        max_builds_per_client: of them, those of one client; ``None`` for all.
        max_queued: how many others may wait for that; more are rejected and told when to retry.
        max_queued_per_client: of them, those of one client; ``None`` for half of them.
        max_connections: connections to the public port.
        max_connections_per_client: of them, those from one address, unless it is a trusted proxy's.
        max_followers: streams of build events that are open at once.
        max_followers_per_client: of them, those of one client.
        max_packages: of one name. The grammar allows for 128.
        max_closure: bytes of an image's store paths; 0 for no limit.
        build_timeout: seconds for a whole image, once its build has begun.
        send_timeout: seconds after which a client that reads nothing is disconnected.
        failure_ttl: seconds for which a failed build is answered from memory, without a retry.
    """

    host: Annotated[str, NotEmpty, Field(alias="NIXERY_HOST")] = "127.0.0.1"
    port: Annotated[int, NotEmpty, Field(alias="PORT", ge=1, le=65535)]
    admin_host: Annotated[str, NotEmpty, Field(alias="NIXERY_ADMIN_HOST")] = "127.0.0.1"
    admin_port: Annotated[
        int | None, NotEmpty, AfterValidator(_another_port), Field(alias="NIXERY_ADMIN_PORT", ge=1, le=65535)
    ] = None
    public_url: Annotated[
        str | None, NotEmpty, AfterValidator(_base_url), Field(alias="NIXERY_PUBLIC_URL")
    ] = None
    trusted_proxies: Annotated[
        tuple[IPv4Network | IPv6Network, ...],
        BeforeValidator(_networks),
        NotEmpty,  # pydantic applies the last one first
        Field(alias="NIXERY_TRUSTED_PROXIES"),
    ] = ()
    public_builds: Annotated[bool, NotEmpty, Field(alias="NIXERY_PUBLIC_BUILDS")] = True
    failure_ttl: Annotated[int, NotEmpty, Field(alias="NIXERY_FAILURE_TTL", ge=0, le=DAY)] = 30
    max_builds: Annotated[
        int,
        NotEmpty,
        Field(alias="NIXERY_MAX_BUILDS", ge=1, le=1024, default_factory=lambda: os.cpu_count() or 1),
    ]
    max_builds_per_client: Annotated[
        int | None, NotEmpty, Field(alias="NIXERY_MAX_BUILDS_PER_CLIENT", ge=1, le=1024)
    ] = None
    max_queued: Annotated[int, NotEmpty, Field(alias="NIXERY_MAX_QUEUED", ge=0, le=100_000)] = 100
    max_queued_per_client: Annotated[
        int | None, NotEmpty, Field(alias="NIXERY_MAX_QUEUED_PER_CLIENT", ge=0, le=100_000)
    ] = None
    max_connections: Annotated[
        int, NotEmpty, Field(alias="NIXERY_MAX_CONNECTIONS", ge=_FEWEST_CONNECTIONS, le=1 << 16)
    ] = 1024
    max_connections_per_client: Annotated[
        int, NotEmpty, Field(alias="NIXERY_MAX_CONNECTIONS_PER_CLIENT", ge=1, le=1 << 16)
    ] = 256
    max_followers: Annotated[int, NotEmpty, Field(alias="NIXERY_MAX_FOLLOWERS", ge=0, le=10_000)] = 200
    max_followers_per_client: Annotated[
        int, NotEmpty, Field(alias="NIXERY_MAX_FOLLOWERS_PER_CLIENT", ge=0, le=10_000)
    ] = 50
    max_packages: Annotated[int, NotEmpty, Field(alias="NIXERY_MAX_PACKAGES", ge=1, le=128)] = 100
    max_closure: Annotated[int, NotEmpty, Size, Field(alias="NIXERY_MAX_CLOSURE", ge=0)] = 20 * 1024**3
    build_timeout: Annotated[int, NotEmpty, Field(alias="NIXERY_BUILD_TIMEOUT", ge=1, le=7 * DAY)] = 3600
    send_timeout: Annotated[int, NotEmpty, Field(alias="NIXERY_SEND_TIMEOUT", ge=1, le=DAY)] = 300

    @property
    def queued_per_client(self) -> int:
        """The places in the queue for one client."""
        # Rounded up, since a queue of one place needs to admit a client.
        half = (self.max_queued + 1) // 2
        return half if self.max_queued_per_client is None else self.max_queued_per_client


__all__ = ["Settings", "storage_settings"]

_WHAT_IT_IS = {
    "PORT": "the TCP port to listen on, for example 8080",
    "NIXERY_STORAGE_BACKEND": "where layers are kept; filesystem, s3, gcs, azure or memory",
    "STORAGE_PATH": "the directory where layers are kept",
}


# Pydantic puts the fields of the last base first, and errors are told in that order.
class Settings(LogSettings, LayerSettings, NixSettings, StorageSettings, SourceSettings, ServerSettings):
    """All settings, checked; made from a mapping such as the process environment."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Check an environment.

        Raises:
            SettingsError: with a line for every setting that is missing or wrong.
        """
        problems = source_problems(set(environment)) + storage_problems(environment)
        try:
            settings = cls.model_validate(environment)
        except ValidationError as error:
            problems += [_problem(str(e["loc"][0]), e["type"], e["msg"]) for e in error.errors()]
        else:
            if not problems:
                return settings.model_copy(update={"environment": dict(environment)})
        raise SettingsError(tuple(problems))


def storage_settings(environment: Mapping[str, str]) -> StorageSettings:
    """Check what of an environment is about the store alone.

    Raises:
        SettingsError: with a line for every setting of the store that is missing or wrong.
    """
    problems = storage_problems(environment)
    try:
        settings = StorageSettings.model_validate(environment)
    except ValidationError as error:
        problems += [_problem(str(e["loc"][0]), e["type"], e["msg"]) for e in error.errors()]
    else:
        if not problems:
            return settings
    raise SettingsError(tuple(problems))


def _problem(variable: str, kind: str, message: str) -> str:
    if kind == "missing":
        return f"{variable} is not set: {_WHAT_IT_IS[variable]}"
    reason = message.removeprefix("Value error, ")
    return f"{variable} is wrong: {reason[:1].lower() + reason[1:]}"
