"""Renders the reference of settings from the fields of ``Settings``."""

from __future__ import annotations

from collections.abc import Mapping

from nixery.settings import Settings
from nixery.sources.commits import CommitRule

MEANINGS: Mapping[str, str] = {
    "PORT": "TCP port to listen on",
    "NIXERY_HOST": "address to listen on; `0.0.0.0` for all",
    "NIXERY_ADMIN_PORT": "port of a separate listener for `/healthz`, `/readyz` and `/metrics`. Without it, the "
    "server shows metrics and the details of `/readyz` [only on a loopback address](../how-to/monitor-a-server.md)",
    "NIXERY_ADMIN_HOST": "address of the admin listener",
    "NIXERY_PUBLIC_URL": "scheme and host at which clients reach the server, such as `https://registry.example.org`; "
    "used in links and pull lines. Default: from the request",
    "NIXERY_TRUSTED_PROXIES": "addresses or networks of proxies, separated by commas. The server ignores "
    "`X-Forwarded-*`, `X-Request-Id` and `traceparent` from any other address",
    "NIXERY_CHANNEL": "[package source](sources.md): a channel of nixpkgs, or a commit; exactly one of the four "
    "sources is required",
    "NIXERY_PKGS_REPO": "[package source](sources.md): a git repository with a `default.nix`",
    "NIXERY_PKGS_PATH": "[package source](sources.md): a directory with a `default.nix`, or a Nix file",
    "NIXERY_FLAKE": "[package source](sources.md): a flake",
    "NIXERY_STORAGE_BACKEND": "where the server stores images: `filesystem`, `s3`, `gcs`, `azure`, or `memory` for a "
    "trial; see [storage](storage.md)",
    "STORAGE_PATH": "directory of the storage, created if missing. With a bucket: directory for caches and temporary "
    "files, by default `~/.cache/nixery`",
    "S3_BUCKET": "name of the bucket, for `s3`; [credentials and endpoints](../how-to/store-images-in-a-bucket.md) "
    "come from the SDK's own variables",
    "GCS_BUCKET": "name of the bucket, for `gcs`",
    "AZURE_CONTAINER_NAME": "name of the container, for `azure`; `AZURE_STORAGE_ACCOUNT_NAME` is required too",
    "S3_PREFIX": "prefix of all keys in the bucket, for every kind of bucket",
    "S3_PUBLIC_ENDPOINT": "URL at which clients reach S3, if it differs from the server's",
    "NIXERY_CACHE_SIZE": "bytes of copies in `STORAGE_PATH` of blobs that the server delivers itself (`proxy`); `0` "
    "for none",
    "NIXERY_BLOB_DELIVERY": "whether clients get layers from the bucket (`redirect`) or through the server (`proxy`). "
    "Default: `redirect`",
    "NIXERY_STORAGE_GRACE": "seconds, or a duration such as `2h`, for which the collector keeps everything that was "
    "stored or used; longer than a pull or a build takes",
    "NIXERY_STORAGE_HIGH": "high watermark, above which the server deletes images, least recently used first: `90%` "
    "of the file system's bytes or inodes, or a size such as `50GiB`; `none` for no limit. Default: `90%`; `memory`: "
    "`1GiB`; a bucket: `none`, and no percentage",
    "NIXERY_STORAGE_LOW": "low watermark, at which the server stops deleting. Default: nine tenths of "
    "`NIXERY_STORAGE_HIGH`",
    "NIXERY_SCRUB_RATE": "MiB a second that the server reads in the background to find broken blobs; `0` for none. "
    "Default with a bucket: `0`",
    "NIXERY_PIN_TTL": "seconds for which a tag keeps its meaning, at most 86400; with `0`, every pull asks the source",
    "NIXERY_COMMITS": "commits that a tag may name: `reachable` from a branch or tag, from those that match patterns "
    "(`main,release-*`), `any`, or `none`; see [commits](sources.md#commits)",
    "NIXERY_PUBLIC_SOURCE": "where clients see the source's URL: in errors and images (`1`), nowhere (`0`), or in "
    "images if the URL holds no secret (unset)",
    "NIXERY_CHANNEL_TAGS": "tags that select another channel or commit; see [channels](sources.md#channels)",
    "NIXERY_CHANNEL_REPO": "git repository whose branches are the channels",
    "NIXERY_CHANNEL_URL": "URL of a commit's archive, with `{rev}` for the commit",
    "NIXERY_NIX_SANDBOX": "whether Nix's sandbox is on: `on`, `off`, or as Nix's configuration says (`auto`). On any "
    "address but loopback, only `off` accepts builders that [could take over the "
    "server](../explanation/deployments.md)",
    "NIXERY_NIX_OPTIONS": "options added to evaluations and builds, such as `--option cores 4`",
    "NIXERY_BUILD_ENVIRONMENT": "variables that builders get in addition to [those without "
    "secrets](sources.md#environment), such as `SSH_AUTH_SOCK`",
    "NIXERY_ALLOW_IFD": "whether an evaluation may build derivations and read them (import from derivation)",
    "NIXERY_EVALUATION_MEMORY": "MiB that an evaluation, or fetching a channel or a flake, may use; `0` for no limit",
    "NIXERY_PLATFORMS": "platforms of a name without one, such as `linux/amd64,linux/arm64`; several make an index, "
    "whose first is for clients that know no index. Default: Nix's own",
    "NIXERY_PLATFORMS_OPTIONAL": "platforms among `NIXERY_PLATFORMS` that an index omits if they cannot be built",
    "NIXERY_PUBLIC_BUILDS": "whether pages, API and listings show [names, logs and "
    "digests](pages-and-api.md#what-is-public)",
    "NIXERY_MAX_BUILDS": "builds that run at once. Default: number of CPUs",
    "NIXERY_MAX_BUILDS_PER_CLIENT": "builds of one client that run at once. A lower value keeps slots free for other "
    "clients. Default: `NIXERY_MAX_BUILDS`",
    "NIXERY_MAX_QUEUED": "builds that may wait; the server answers further requests with 429 and `Retry-After`",
    "NIXERY_MAX_QUEUED_PER_CLIENT": "builds of one client that may wait. Default: half of `NIXERY_MAX_QUEUED`",
    "NIXERY_MAX_CONNECTIONS": "open connections; the server closes those idle the longest to admit new ones",
    "NIXERY_MAX_CONNECTIONS_PER_CLIENT": "open connections from one address, unless it is a trusted proxy's",
    "NIXERY_MAX_FOLLOWERS": "open streams of build events",
    "NIXERY_MAX_FOLLOWERS_PER_CLIENT": "open streams of build events of one client",
    "NIXERY_MAX_PACKAGES": "packages that one name may ask for",
    "NIXERY_MAX_CLOSURE": "bytes of store paths that an image may have, such as `500M`; `0` for no limit",
    "NIXERY_BUILD_TIMEOUT": "seconds that an image may take in all, without its time in the queue",
    "NIXERY_SEND_TIMEOUT": "seconds after which the server cuts off a client that accepts no data",
    "NIXERY_FAILURE_TTL": "seconds for which the server repeats the error of a failed build or listing instead of "
    "trying again",
    "NIX_TIMEOUT": "seconds that one builder, or an evaluation, may take",
    "NIX_POPULARITY_URL": "reference counts of packages, fetched at the start: an `http(s)://` or `file://` URL, or a "
    "path; see [popularity](../how-to/count-popularity.md)",
    "NIXERY_LAYER_BUDGET": "layers of an image at most, 1 to 120; an image definition may override it. With 1, all "
    "store paths share a layer, and the links have another. See [layering](../explanation/layering.md)",
    "NIXERY_COMPRESSION": "compression of layers: `gzip`, or `zstd`, which is smaller and [for newer clients "
    "only](../how-to/set-up-clients.md#zstd)",
    "NIXERY_COMPRESSION_LEVEL": "`gzip` 0 to 3, default 2; `zstd` 1 to 19, default 3. Only gzip's 1 and 2 were "
    "measured to give the same bytes on all processors",
    "NIXERY_PACKING_WORKERS": "layers that are packed at the same time; does not change any byte. Default: number of "
    "CPUs",
    "NIXERY_LOG_FORMAT": "`json`, `console` for people, or `auto`: `console` if stderr is a terminal",
    "NIXERY_LOG_LEVEL": "`debug`, `info`, `warning` or `error`; with `debug` every request has a line",
    "OTEL_SDK_DISABLED": "OpenTelemetry's own: `true` turns traces off",
    "OTEL_TRACES_EXPORTER": "OpenTelemetry's own: `otlp` turns traces on, `none` off",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "OpenTelemetry's own: where to send traces; turns them on",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "OpenTelemetry's own: the same, with the path",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "OpenTelemetry's own: `http/protobuf` only",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "OpenTelemetry's own: `http/protobuf` only",
}


def _text(default: object) -> str:
    if isinstance(default, CommitRule):
        return f"`{default.setting}`"
    if isinstance(default, tuple):
        return f"`{','.join(default)}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def render() -> str:
    """Return docs/reference/settings.md."""
    rows = []
    for field in Settings.model_fields.values():
        if not field.alias:
            continue
        if field.is_required():
            default = "*required*"
        elif field.default_factory is not None or field.default is None or field.default in {"", ()}:
            default = ""
        else:
            default = _text(field.default)
        rows.append(f"| `{field.alias}` | {default} | {MEANINGS[field.alias]} |")
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])
