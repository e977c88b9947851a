"""The settings: frozen, checked, and described for the reference page.

This is the only package that gives environment variables a meaning; the command line passes the environment
in. Each subject has a class, with its variables as fields, and ``Settings`` has them all. Variables of the
original Nixery keep its names; new ones begin with ``NIXERY_``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SkipValidation,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from nixery.builds.creation_date import CreationDate
from nixery.errors import SettingsError
from nixery.image.platform import Platform
from nixery.nix.configuration import VARIABLE, PackageConfiguration
from nixery.nix.environments import (
    build_environment,
    fetch_environment,
    git_environment,
    variable_names,
    withheld_variables,
    without_secrets,
)
from nixery.nix.processes import MARK
from nixery.quantities import DiskMark, seconds, size
from nixery.settings import values
from nixery.sources.source import REACHABLE, CommitRule
from nixery.storage.options import Backend, StorageOptions

_DAY = 24 * 3600
_WEEK = 7 * _DAY
_GIB = 1024**3

_NIXPKGS = "https://github.com/NixOS/nixpkgs"
_ARCHIVES = f"{_NIXPKGS}/archive/{{rev}}.tar.gz"
_CHANNEL = r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$"

# The variables of which exactly one is set.
_SOURCES = ("NIXERY_CHANNEL", "NIXERY_PKGS_REPO", "NIXERY_PKGS_PATH", "NIXERY_FLAKE")

# The variable that names the bucket, by backend.
_BUCKETS = {"s3": "S3_BUCKET", "gcs": "GCS_BUCKET", "azure": "AZURE_CONTAINER_NAME"}

# Backends that are not on a file system of this machine.
_DISKLESS_BACKENDS = frozenset({*_BUCKETS, "memory"})

# Default high watermarks: a server must not fill its disk, nor a trial its memory. A bucket has none.
_HIGH = {"filesystem": "90%", "memory": "1GiB"}


@dataclass(frozen=True, slots=True)
class Doc:
    """Facts for the reference page that the type of a field does not express.

    Attributes:
        unit: of a number; empty for a count.
        default: the default in words, where it is not a constant.
        may_be_empty: whether an empty text is a value, and no mistake.
    """

    unit: str = ""
    default: str = ""
    may_be_empty: bool = False


def _text(parse: Callable[[str], object]) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


_MAY_BE_EMPTY = Doc(may_be_empty=True)

# Types of values, with their units.
_Seconds = Annotated[int, Doc(unit="seconds")]
_Duration = Annotated[int, _text(seconds), Doc(unit="seconds, or a number with s, m, h, d or w")]
_Size = Annotated[int, _text(size), Doc(unit="bytes, or a number with a unit such as MB or GiB")]
_Mebibytes = Annotated[int, Doc(unit="MiB")]
_Workers = Annotated[int, Doc(default="number of CPUs")]
_Watermark = Annotated[DiskMark | None, BeforeValidator(values.watermark)]
_Names = Annotated[tuple[str, ...], BeforeValidator(values.comma_separated), _MAY_BE_EMPTY]
_Platforms = Annotated[tuple[Platform, ...], BeforeValidator(values.platforms), _MAY_BE_EMPTY]
# OpenTelemetry specifies that an empty variable is like an unset one.
_Text = Annotated[str, _MAY_BE_EMPTY]
_TraceProtocol = Annotated[_Text, AfterValidator(values.trace_protocol)]


def _cpus() -> int:
    return os.cpu_count() or 1


def _lower_case(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() else sentence


class _Variables(PydanticBaseSettingsSource):
    """The variables of the mapping that a group of settings is made from."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the value, ``None`` if the variable is unset; its key; and that it is not JSON."""
        environment = self.current_state.get("environment", {})
        return environment.get(field.alias or ""), field.alias or field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the variables that are set, by name."""
        fields = self.settings_cls.model_fields.items()
        found = (self.get_field_value(field, name) for name, field in fields)
        return {key: value for value, key, _ in found if value is not None}


class _Group(BaseSettings):
    """Settings of one subject.

    Attributes:
        environment: the mapping that the settings were read from. Not a setting, and not shown: it may hold
            secrets.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", validate_default=False, use_attribute_docstrings=True
    )

    # Not validated: an unrelated variable may hold bytes that are not UTF-8.
    environment: Annotated[Mapping[str, str], SkipValidation] = Field({}, repr=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- only the command line reads the environment
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- likewise
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the given mapping, and not the environment of the process."""
        return init_settings, _Variables(settings_cls)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Check an environment.

        Raises:
            SettingsError: with a line for every setting that is missing or wrong.
        """
        problems = cls._missing(environment)
        try:
            settings = cls.model_validate({"environment": dict(environment)})
        except ValidationError as error:
            problems += [cls._problem(str(e["loc"][0]), e["type"], e["msg"]) for e in error.errors()]
        else:
            if not problems:
                return settings
        raise SettingsError(tuple(problems))

    @classmethod
    def _missing(cls, environment: Mapping[str, str]) -> list[str]:  # noqa: ARG003 -- for groups with such variables
        """Return a line for each variable that others require, or contradict."""
        return []

    @classmethod
    def _problem(cls, variable: str, kind: str, message: str) -> str:
        if kind == "missing":
            field = next(field for field in cls.model_fields.values() if field.alias == variable)
            meaning = " ".join((field.description or "").partition(".")[0].replace("`", "").split())
            return f"{variable} is not set: {_lower_case(meaning)}"
        return f"{variable} is wrong: {_lower_case(message.removeprefix('Value error, '))}"

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: object, info: ValidationInfo) -> object:
        docs = cls.model_fields[info.field_name or ""].metadata
        may_be_empty = any(isinstance(doc, Doc) and doc.may_be_empty for doc in docs)
        return value if may_be_empty else values.not_empty(value)


# The last words of the variables for TLS.
_TLS = ("CERTIFICATE", "KEY", "CLIENT_CA")


class ServerSettings(_Group):
    """Addresses to listen on, and limits."""

    model_config = SettingsConfigDict(title="Server")

    # Nixery builds what clients ask for; so only the operator opens it to a network.
    host: str = Field("127.0.0.1", alias="NIXERY_HOST")
    """Address to listen on; `0.0.0.0` for all addresses."""
    port: int = Field(alias="PORT", ge=1, le=65535)
    """TCP port to listen on, for example 8080."""
    admin_host: str = Field("127.0.0.1", alias="NIXERY_ADMIN_HOST")
    """Address of the listener for health and metrics."""
    admin_port: int | None = Field(None, alias="NIXERY_ADMIN_PORT", ge=1, le=65535)
    """TCP port of a separate listener for `/healthz`, `/readyz` and `/metrics`. Without it, the server
    shows metrics and the details of `/readyz` only on a loopback address.
    """
    public_url: Annotated[
        Annotated[str, AfterValidator(values.base_url)] | None, Doc(default="from each request")
    ] = Field(None, alias="NIXERY_PUBLIC_URL")
    """Scheme and host at which clients reach the server, such as `https://registry.example.org`; it
    appears in links and pull commands.
    """
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(values.networks)] = (
        Field((), alias="NIXERY_TRUSTED_PROXIES")
    )
    """Addresses or networks of proxies, separated by commas. The server ignores `X-Forwarded-*`,
    `X-Request-Id` and `traceparent` from any other address.
    """
    access: Path | None = Field(None, alias="NIXERY_ACCESS")
    """The [access file](access.md): who may pull, who may have images built, and how much. Without it, everybody may do
    everything.
    """
    tls_certificate: Annotated[Path | None, Doc(default="no TLS")] = Field(
        None, alias="NIXERY_TLS_CERTIFICATE"
    )
    """PEM file with the certificate of the server, followed by those of its intermediate authorities. It turns
    TLS on for `PORT`. The server notices a changed file within seconds, and keeps the previous certificate if
    it cannot use the new one.
    """
    tls_key: Path | None = Field(None, alias="NIXERY_TLS_KEY")
    """PEM file with the private key of the certificate, without a password: ECDSA with P-256 or P-384, Ed25519,
    or RSA with 2048 to 4096 bits.
    """
    tls_client_ca: Annotated[Path | None, Doc(default="clients need no certificate")] = Field(
        None, alias="NIXERY_TLS_CLIENT_CA"
    )
    """PEM file with authorities of client certificates. With it, the server accepts only connections with a
    certificate of one of them. A certificate admits a connection, and identifies no user; behind a proxy, [it
    can](access.md#client-certificates).
    """
    public_builds: bool = Field(True, alias="NIXERY_PUBLIC_BUILDS")
    """Whether every client may see which images are built, and the logs of builds. With `0`, pages and
    API show neither, nor tags and commits that other clients asked for, errors link to no log, and
    `_catalog` and `tags/list` answer 403.
    """
    serve_cache: bool = Field(False, alias="NIXERY_SERVE_CACHE")
    """Whether the server is also a [binary cache](../how-to/debug-an-image-as-a-nix-closure.md) of Nix, below
    `/nix-cache/`, for the store paths of its images.
    """
    cache_key_file: Annotated[Path | None, Doc(default="a key in the storage")] = Field(
        None, alias="NIXERY_CACHE_KEY_FILE"
    )
    """File with the secret key that signs the paths of the binary cache, as `nix-store
    --generate-binary-cache-key` writes it. Without it, the first server writes a key to the storage, and all
    servers of the storage share it.
    """
    failure_ttl: _Seconds = Field(30, alias="NIXERY_FAILURE_TTL", ge=0, le=_DAY)
    """Time for which the server remembers a failed build, or a failed listing of a package set, and
    answers the failure without another attempt; clients retry at once.
    """
    max_builds: _Workers = Field(alias="NIXERY_MAX_BUILDS", ge=1, le=1024, default_factory=_cpus)
    """Number of images that are built at once, and of tags that are looked up at once."""
    max_builds_per_client: Annotated[int | None, Doc(default="`NIXERY_MAX_BUILDS`")] = Field(
        None, alias="NIXERY_MAX_BUILDS_PER_CLIENT", ge=1, le=1024
    )
    """Number of images that are built at once for one client. A lower number keeps slots free for other
    clients.
    """
    max_queued: int = Field(100, alias="NIXERY_MAX_QUEUED", ge=0, le=100_000)
    """Number of builds that may wait; the server answers more of them with 429 and `Retry-After`."""
    max_queued_per_client: Annotated[int | None, Doc(default="half of `NIXERY_MAX_QUEUED`")] = Field(
        None, alias="NIXERY_MAX_QUEUED_PER_CLIENT", ge=0, le=100_000
    )
    """Number of builds of one client that may wait."""
    # With fewer connections, a client could not fetch layers in parallel.
    max_connections: int = Field(1024, alias="NIXERY_MAX_CONNECTIONS", ge=16, le=1 << 16)
    """Number of connections to the public port. To admit more, the server closes those that have been
    idle the longest.
    """
    max_connections_per_client: int = Field(256, alias="NIXERY_MAX_CONNECTIONS_PER_CLIENT", ge=1, le=1 << 16)
    """Number of connections from one address, unless it is a trusted proxy's."""
    max_followers: int = Field(200, alias="NIXERY_MAX_FOLLOWERS", ge=0, le=10_000)
    """Number of streams of build events that are open at once."""
    max_followers_per_client: int = Field(50, alias="NIXERY_MAX_FOLLOWERS_PER_CLIENT", ge=0, le=10_000)
    """Number of streams of build events that one client may have open."""
    max_packages: int = Field(100, alias="NIXERY_MAX_PACKAGES", ge=1, le=128)
    """Number of packages that one name may ask for; the grammar of names ends at 128."""
    max_closure: Annotated[_Size, Doc(default="`20GiB`")] = Field(20 * _GIB, alias="NIXERY_MAX_CLOSURE", ge=0)
    """Size of all store paths of an image (NAR size); `0` for no limit."""
    build_timeout: _Seconds = Field(7200, alias="NIXERY_BUILD_TIMEOUT", ge=1, le=_WEEK)
    """Time limit of a whole image, without its time in the queue."""
    drain_timeout: _Seconds = Field(0, alias="NIXERY_DRAIN_TIMEOUT", ge=0, le=_WEEK)
    """Time for which running builds may go on after SIGTERM, while the server starts no new ones; the
    platform has to wait for ten seconds longer before it kills the server.
    """
    send_timeout: _Seconds = Field(300, alias="NIXERY_SEND_TIMEOUT", ge=1, le=_DAY)
    """Time after which the server disconnects a client that reads nothing of its response."""

    @field_validator("admin_port")
    @classmethod
    def _another_port(cls, port: int | None, info: ValidationInfo) -> int | None:
        if port is not None and port == info.data.get("port"):
            raise ValueError("it is the same as PORT; health and metrics need a separate port")
        return port

    @classmethod
    def _missing(cls, environment: Mapping[str, str]) -> list[str]:
        problems = super()._missing(environment)
        certificate, key, client_ca = (environment.get(f"NIXERY_TLS_{name}") for name in _TLS)
        if bool(certificate) != bool(key):
            missing, present = ("KEY", "CERTIFICATE") if certificate else ("CERTIFICATE", "KEY")
            problems.append(
                f"NIXERY_TLS_{missing} is not set, but NIXERY_TLS_{present} is: set both, or neither"
            )
        elif client_ca and not certificate:
            problems.append(
                "NIXERY_TLS_CLIENT_CA is set without NIXERY_TLS_CERTIFICATE and NIXERY_TLS_KEY: set them too"
            )
        return problems

    @property
    def queued_per_client(self) -> int:
        """The places in the queue for one client."""
        # Rounded up, since a queue of one place has to admit a client.
        half = (self.max_queued + 1) // 2
        return half if self.max_queued_per_client is None else self.max_queued_per_client


# Sets of packages that nixpkgs does not mark, or that have several names; and the definitions of images, as the
# documentation names them. Sets that a package set does not have are left out.
_SETS = (
    "images,python3Packages,perlPackages,nodePackages,haskellPackages,rubyPackages,rPackages,luaPackages,"
    "ocamlPackages,phpPackages,phpExtensions,beamPackages,elmPackages,coqPackages,emacsPackages,vimPlugins,"
    "gnome,kdePackages,xorg,linuxPackages,texlive.combined"
)


class SourceSettings(_Group):
    """Package sources, and what names and tags stand for."""

    model_config = SettingsConfigDict(title="Package source")

    package_set: Annotated[
        Annotated[Path, AfterValidator(values.package_set)] | None, Doc(default="*one source is required*")
    ] = Field(None, alias="NIXERY_PKGS_PATH")
    """Package source: a directory with a `default.nix`, or a Nix file."""
    repository: Annotated[
        Annotated[str, AfterValidator(values.git_url)] | None, Doc(default="*one source is required*")
    ] = Field(None, alias="NIXERY_PKGS_REPO")
    """Package source: URL of a git repository with a `default.nix`."""
    channel: Annotated[str | None, Doc(default="*one source is required*")] = Field(
        None, alias="NIXERY_CHANNEL", pattern=_CHANNEL
    )
    """Package source: nixpkgs, at a channel such as `nixos-26.05` or at a commit."""
    flake: Annotated[
        Annotated[str, AfterValidator(values.flake_reference)] | None, Doc(default="*one source is required*")
    ] = Field(None, alias="NIXERY_FLAKE")
    """Package source: reference of a flake with packages."""
    channel_url: Annotated[str, AfterValidator(values.archive_url)] = Field(
        _ARCHIVES, alias="NIXERY_CHANNEL_URL"
    )
    """URL of the archive of a commit of nixpkgs, with `{rev}` in place of the commit."""
    channel_repository: Annotated[str, AfterValidator(values.git_url)] = Field(
        _NIXPKGS, alias="NIXERY_CHANNEL_REPO"
    )
    """URL of the git repository whose branches are the channels."""
    channel_tags: _Names = Field(
        ("nixos-*", "nixpkgs-*", "release-*", "commits"), alias="NIXERY_CHANNEL_TAGS"
    )
    """Patterns, separated by commas, of the tags that select another channel; `commits` stands for
    commits.
    """
    commits: Annotated[CommitRule, _text(CommitRule.parse), Doc(default="`reachable`")] = Field(
        CommitRule.parse(REACHABLE), alias="NIXERY_COMMITS"
    )
    """Commits that a tag may name: ancestors of any branch or tag (`reachable`), ancestors of those
    that match patterns (`main,release-*`), `any`, or `none`.
    """
    public_source: Annotated[bool | None, Doc(default="only in images, and only a URL without a secret")] = (
        Field(None, alias="NIXERY_PUBLIC_SOURCE")
    )
    """Where clients see the URL of the source: in errors and images (`1`), or nowhere (`0`)."""
    package_configuration: Annotated[
        PackageConfiguration | None,
        _text(PackageConfiguration.parse),
        Doc(default="the package set's own", may_be_empty=True),
    ] = Field(None, alias="NIXERY_NIXPKGS_CONFIG")
    """Configuration of the package set: a Nix attribute set such as `{ allowUnfree = true; }`, the same in
    JSON, or the path of a `.nix` or `.json` file, which the server reads once at the start. Its keys are
    those of nixpkgs' `config`, and `overlays`; in JSON, `allowUnfreePredicate` is a list of package names.
    """
    platforms: Annotated[_Platforms, Doc(default="the platform that Nix builds for")] = Field(
        (), alias="NIXERY_PLATFORMS"
    )
    """Platforms of a name that begins with no platform, such as `linux/amd64,linux/arm64`. Several make
    an index; clients that do not understand indexes get the first.
    """
    optional_platforms: _Platforms = Field((), alias="NIXERY_PLATFORMS_OPTIONAL")
    """Platforms of `NIXERY_PLATFORMS` that an index omits if they cannot be built."""
    index: bool = Field(True, alias="NIXERY_INDEX")
    """Whether the server evaluates all packages of the states that its tags stand for, in the background.
    With `0`, searches know names alone, and every first request for a package waits for its evaluation.
    """
    index_sets: Annotated[
        tuple[tuple[str, ...], ...],
        _text(values.attribute_paths),
        Doc(default="`images`, and the sets of packages of nixpkgs"),
    ] = Field(values.attribute_paths(_SETS), alias="NIXERY_INDEX_SETS")
    """Sets whose packages are indexed, separated by commas, besides the package set itself and the sets
    that it marks with `recurseForDerivations`.
    """
    index_derivations: Annotated[
        bool | None, Doc(default="only of package sets with at most 2000 attributes")
    ] = Field(None, alias="NIXERY_INDEX_DERIVATIONS")
    """Whether indexing also writes derivations to the Nix store, so that even the first build of a
    package starts no evaluation. For all of Debian that takes a gigabyte and 120,000 files for each
    state, and some more time.
    """
    pin_ttl: _Seconds = Field(3600, alias="NIXERY_PIN_TTL", ge=0, le=_DAY)
    """Time for which a tag keeps its meaning; with `0`, every request asks the source."""

    def is_public(self, url: str) -> bool | None:
        """Whether clients may see a URL of the source; ``None``: in images alone, if it has no secret."""
        return True if self.public_source is None and url in {_NIXPKGS, _ARCHIVES} else self.public_source

    @classmethod
    def _missing(cls, environment: Mapping[str, str]) -> list[str]:
        problems = super()._missing(environment)
        given = [variable for variable in _SOURCES if variable in environment]
        if not given:
            problems.append(f"no package source: set one of {', '.join(_SOURCES)}")
        if len(given) > 1:
            problems.append(f"{' and '.join(given)} are set; set only one package source")
        if environment.get(VARIABLE, "").strip() and given == ["NIXERY_FLAKE"]:
            problems.append(
                f"{VARIABLE} is set, but the packages of NIXERY_FLAKE take no configuration; unset it, and have the "
                "flake import nixpkgs with its own config and overlays"
            )
        return problems


class StorageSettings(_Group):
    """Location of blobs and records, and their retention.

    The library for buckets reads the SDKs' own variables for credentials, regions and endpoints.
    """

    model_config = SettingsConfigDict(title="Storage")

    storage_backend: Backend = Field(alias="NIXERY_STORAGE_BACKEND")
    """Place of blobs and records: `filesystem`, `s3`, `gcs`, `azure`, or `memory` for a trial."""
    storage_path: Annotated[
        Path,
        AfterValidator(Path.absolute),
        Doc(default="*required* for `filesystem`; for the others `~/.cache/nixery`"),
    ] = Field(alias="STORAGE_PATH")
    """Directory of the storage; the server creates it. With another backend than `filesystem`, it holds
    caches and temporary files.
    """
    blob_delivery: Annotated[Literal["redirect", "proxy"] | None, Doc(default="`redirect`, if possible")] = (
        Field(None, alias="NIXERY_BLOB_DELIVERY")
    )
    """Whether clients fetch layers from the bucket (`redirect`), or through the server (`proxy`)."""
    s3_bucket: Annotated[str | None, Doc(default="*required* for `s3`")] = Field(None, alias="S3_BUCKET")
    """Name of the bucket of the backend `s3`."""
    s3_prefix: _Text = Field("", alias="S3_PREFIX")
    """Prefix of all keys in the bucket, for every kind of bucket."""
    s3_public_endpoint: Annotated[str | None, Doc(default="the server's endpoint")] = Field(
        None, alias="S3_PUBLIC_ENDPOINT"
    )
    """URL at which clients reach S3, if it differs from the one that the server uses."""
    gcs_bucket: Annotated[str | None, Doc(default="*required* for `gcs`")] = Field(None, alias="GCS_BUCKET")
    """Name of the bucket of the backend `gcs`."""
    azure_container: Annotated[str | None, Doc(default="*required* for `azure`")] = Field(
        None, alias="AZURE_CONTAINER_NAME"
    )
    """Name of the container of the backend `azure`, which needs `AZURE_STORAGE_ACCOUNT_NAME` as well."""
    cache_size: Annotated[_Size, Doc(default="`10GiB`")] = Field(10 * _GIB, alias="NIXERY_CACHE_SIZE", ge=0)
    """Size of the cache in `STORAGE_PATH` of blobs that the server delivers out of a bucket (`proxy`);
    `0` for no cache.
    """
    storage_grace: Annotated[_Duration, Doc(default="`2h`")] = Field(
        7200, alias="NIXERY_STORAGE_GRACE", ge=1, le=_WEEK
    )
    """Time for which garbage collection keeps everything that was stored or used; it has to be longer
    than a pull or a build takes.
    """
    storage_high: Annotated[_Watermark, Doc(default="`90%`; `memory`: `1GiB`; a bucket: `none`")] = Field(
        None, alias="NIXERY_STORAGE_HIGH"
    )
    """High watermark, above which the server deletes images, least recently used first: `90%` of the
    bytes or inodes of the file system, or `50GiB` of blobs (a bucket takes no percentage); `none` for
    no limit.
    """
    storage_low: Annotated[_Watermark, Doc(default="nine tenths of `NIXERY_STORAGE_HIGH`")] = Field(
        None, alias="NIXERY_STORAGE_LOW"
    )
    """Low watermark, at which the server stops deleting images; in the unit of `NIXERY_STORAGE_HIGH`."""
    scrub_rate: Annotated[int, Doc("MiB a second", "`1`; with a bucket or `memory` `0`")] = Field(
        1, alias="NIXERY_SCRUB_RATE", ge=0, le=1 << 16
    )
    """Rate at which the server reads stored blobs in the background to find broken ones; `0` for none."""

    audit_log: Path | None = Field(None, alias="NIXERY_AUDIT_LOG")
    """File to which the server, and `nixery token`, append the [audit log](access.md#audit-log); `-` for the
    standard output of the server. Without it, there is none.
    """

    @property
    def storage_options(self) -> StorageOptions:
        """The values that opening the storage needs."""
        buckets = {"s3": self.s3_bucket, "gcs": self.gcs_bucket, "azure": self.azure_container}
        return StorageOptions(
            self.storage_backend,
            self.storage_path,
            bucket=buckets.get(self.storage_backend) or "",
            prefix=self.s3_prefix,
            public_endpoint=self.s3_public_endpoint,
            redirects=self.blob_delivery != "proxy",
            cache_size=self.cache_size,
        )

    @model_validator(mode="before")
    @classmethod
    def _add_backend_defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        backend = given.get("NIXERY_STORAGE_BACKEND")
        defaults: dict[str, object] = {}
        if backend in _DISKLESS_BACKENDS:
            # No file on this machine has to be kept. A bucket verifies its own checksums, and reading all of
            # it may cost money.
            caches = given.get("environment", {}).get("XDG_CACHE_HOME") or Path.home() / ".cache"
            defaults = {"STORAGE_PATH": str(Path(caches) / "nixery"), "NIXERY_SCRUB_RATE": 0}
        if backend in _HIGH:
            defaults["NIXERY_STORAGE_HIGH"] = _HIGH[backend]
        return {**defaults, **given}

    @field_validator("storage_high")
    @classmethod
    def _check_watermark_unit(cls, mark: DiskMark | None, info: ValidationInfo) -> DiskMark | None:
        backend = info.data.get("storage_backend")
        if mark is not None and mark.percent is not None and backend in _DISKLESS_BACKENDS:
            raise ValueError(
                f"{backend} has no file system to take a percentage of; write a size, for example 500GiB"
            )
        return mark

    @field_validator("storage_low")
    @classmethod
    def _below_high(cls, low: DiskMark | None, info: ValidationInfo) -> DiskMark | None:
        if low is None or "storage_high" not in info.data:
            return low
        high = info.data["storage_high"]
        if high is None or not low.is_below(high):
            raise ValueError("it has to be below NIXERY_STORAGE_HIGH, and in the same unit: percent or bytes")
        return low

    @classmethod
    def _missing(cls, environment: Mapping[str, str]) -> list[str]:
        problems = super()._missing(environment)
        backend = environment.get("NIXERY_STORAGE_BACKEND", "")
        variable = _BUCKETS.get(backend)
        if variable is not None and variable not in environment:
            problems.append(f"{variable} is not set: name of the bucket (NIXERY_STORAGE_BACKEND={backend})")
        if (
            backend == "azure"
            and not {"AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_USE_EMULATOR"} & environment.keys()
        ):
            problems.append("AZURE_STORAGE_ACCOUNT_NAME is not set: account of AZURE_CONTAINER_NAME")
        return problems


_PREFIX = "NIXERY_"

# Variables of a Kubernetes service called "nixery", and of services whose names begin so (Kubernetes
# documentation, "Accessing the Service"); NIXERY_PORT itself has the URL of the service.
_OF_A_SERVICE = re.compile(
    r"\w+_(?:SERVICE_(?:HOST|PORT)(?:_\w+)?=.*|PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?=.*|PORT=(?:tcp|udp|sctp)://.*)"
)

# Seconds. Builders compile, which takes as long as it takes; an evaluation of all of nixpkgs takes some seconds for a name.
_EVALUATION_TIMEOUT = 60


class NixSettings(_Group):
    """How Nix is run."""

    model_config = SettingsConfigDict(title="Nix")

    # Nix does not accept arbitrarily large numbers.
    nix_timeout: _Seconds = Field(3600, alias="NIX_TIMEOUT", ge=1, le=_WEEK)
    """Time limit of a builder."""
    longest_evaluation: Annotated[
        _Seconds | None, Doc(default="`NIX_TIMEOUT` if that is set, otherwise `60`", unit="seconds")
    ] = Field(None, alias="NIXERY_EVALUATION_TIMEOUT", ge=1, le=_WEEK)
    """Time limit of an evaluation."""
    nix_arguments: Annotated[
        tuple[str, ...], BeforeValidator(values.shell_words), AfterValidator(without_secrets), _MAY_BE_EMPTY
    ] = Field((), alias="NIXERY_NIX_OPTIONS")
    """Options that are added to evaluations and builds, such as `--option cores 4`."""
    nix_sandbox: Literal["auto", "on", "off"] = Field("auto", alias="NIXERY_NIX_SANDBOX")
    """Whether builders run in Nix's sandbox: `on`, `off`, or as Nix's configuration says (`auto`). If
    builders could take over the server, it listens on other addresses than loopback only with `off`.
    """
    substitute: Literal["nix", "direct"] = Field("nix", alias="NIXERY_SUBSTITUTE")
    """How store paths come from the [binary caches](../explanation/binary-caches.md) of Nix's configuration:
    with `nix`, Nix fetches them into its store; with `direct`, the server reads them without a store, and
    fetches nothing for layers that are stored already. Images are the same to the byte.
    """
    allow_ifd: bool = Field(False, alias="NIXERY_ALLOW_IFD")
    """Whether an evaluation may build derivations and read them (import from derivation)."""
    evaluation_memory: _Mebibytes = Field(4096, alias="NIXERY_EVALUATION_MEMORY", ge=0, le=1 << 22)
    """Memory limit of an evaluation, and of fetching a channel or a flake; `0` for no limit."""
    build_variables: Annotated[tuple[str, ...], BeforeValidator(variable_names), _MAY_BE_EMPTY] = Field(
        (), alias="NIXERY_BUILD_ENVIRONMENT"
    )
    """Names of variables, separated by commas, that builders get in addition to those without secrets;
    for example `SSH_AUTH_SOCK`.
    """

    @property
    def evaluation_timeout(self) -> int:
        """Seconds for an evaluation. A server that sets ``NIX_TIMEOUT`` alone limits evaluations by it, as before."""
        if self.longest_evaluation is not None:
            return self.longest_evaluation
        return self.nix_timeout if "nix_timeout" in self.model_fields_set else _EVALUATION_TIMEOUT

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

    @property
    def evaluation_bytes(self) -> int | None:
        """Memory limit of an evaluation in bytes; ``None`` for no limit."""
        return self.evaluation_memory * 1024 * 1024 or None


class LayerSettings(_Group):
    """Layers of images, and how they are packed."""

    model_config = SettingsConfigDict(title="Layers")

    # Docker's overlay2 stops at about 125 layers; the default leaves some for images that are built on top.
    layer_budget: int = Field(94, alias="NIXERY_LAYER_BUDGET", ge=1, le=120)
    """Largest number of layers of an image, the last one with the root file system included; an image
    definition may set another. With 1, all store paths share a layer, and the root file system has
    another.
    """
    created: Annotated[CreationDate, _text(CreationDate.parse), Doc(default="`source`")] = Field(
        CreationDate(), alias="NIXERY_CREATED"
    )
    """Date of images, which engines and registries show as `created`, and by which they delete old ones: the
    commit's (`source`), a fixed one such as `2026-01-31T12:00:00Z` or in seconds since the epoch, or the
    time of the build (`build`), with which another build of the same image has another digest.
    """
    popularity_url: str | None = Field(None, alias="NIX_POPULARITY_URL")
    """Reference counts, a JSON object by package name: an `http(s)://` or `file://` URL, or a path. The
    server fetches it at the start; if that fails, it uses its copy of the last time.
    """
    compression: Literal["gzip", "zstd"] = Field("gzip", alias="NIXERY_COMPRESSION")
    """Compression of layers: `gzip`, or `zstd`, which is smaller and needs newer clients."""
    compression_level: Annotated[int | None, Doc(default="`2`, with `zstd` `3`")] = Field(
        None, alias="NIXERY_COMPRESSION_LEVEL"
    )
    """Level of the compression, from fast to small: 0 to 3 for `gzip`, 1 to 19 for `zstd`."""
    packing_workers: _Workers = Field(alias="NIXERY_PACKING_WORKERS", ge=1, le=256, default_factory=_cpus)
    """Number of layers that are packed at the same time; it changes no byte of an image."""

    @field_validator("compression_level")
    @classmethod
    def _check_compression_level(cls, level: int, info: ValidationInfo) -> int:
        compression = info.data.get("compression")
        return level if compression is None else values.compression_level(level, compression)


class LogSettings(_Group):
    """Logs and traces. For traces, OpenTelemetry's own variables have OpenTelemetry's meaning: empty is unset."""

    model_config = SettingsConfigDict(title="Logs and traces")

    log_format: Literal["auto", "json", "console"] = Field("auto", alias="NIXERY_LOG_FORMAT")
    """Format of the log: `json`, `console` for people, or `auto`: `console` if stderr is a terminal,
    `json` otherwise.
    """
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", alias="NIXERY_LOG_LEVEL")
    """Lowest level that is logged: `debug`, `info`, `warning` or `error`. With `debug`, every request
    has a line.
    """
    otel_disabled: _Text = Field("", alias="OTEL_SDK_DISABLED")
    """`true` turns traces off."""
    otel_exporter: Annotated[_Text, AfterValidator(values.trace_exporter)] = Field(
        "", alias="OTEL_TRACES_EXPORTER"
    )
    """Exporter of traces: `otlp` or `none`. If it is unset, an endpoint turns traces on."""
    otel_endpoint: _Text = Field("", alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    """URL of the collector for all signals."""
    otel_traces_endpoint: _Text = Field("", alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    """URL to which traces are sent, if it differs from that for all signals."""
    otel_protocol: _TraceProtocol = Field("", alias="OTEL_EXPORTER_OTLP_PROTOCOL")
    """Protocol for all signals: `http/protobuf` only."""
    otel_traces_protocol: _TraceProtocol = Field("", alias="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    """Protocol for traces: `http/protobuf` only."""

    @property
    def traces(self) -> bool:
        """Whether OpenTelemetry's variables ask for traces."""
        if self.otel_disabled.strip().lower() == "true" or self.otel_exporter == "none":
            return False
        return bool(self.otel_exporter or self.otel_endpoint or self.otel_traces_endpoint)


# Pydantic orders fields from the last base to the first, and reports problems in that order.
class Settings(LogSettings, LayerSettings, NixSettings, StorageSettings, SourceSettings, ServerSettings):
    """All settings of a server or a command."""

    @property
    def unknown_variables(self) -> Mapping[str, str]:
        """Variables that begin like a setting and are none, each with the most similar setting, or an empty string.

        In a cluster with a service called ``nixery``, Kubernetes sets variables of that service, which are
        left out.
        """
        known = [str(field.alias) for field in type(self).model_fields.values()]
        # Without what all of them have in common, which would make any two of them similar.
        words = [name.removeprefix(_PREFIX) for name in known if name.startswith(_PREFIX)]
        unknown = sorted(
            name
            for name, value in self.environment.items()
            if name.startswith(_PREFIX)
            and name not in {*known, MARK}
            and not _OF_A_SERVICE.fullmatch(f"{name}={value}")
        )
        near = {name: get_close_matches(name.removeprefix(_PREFIX), words, 1) for name in unknown}
        return {name: _PREFIX + words[0] if words else "" for name, words in near.items()}
