"""The one table from domain errors to statuses and codes of the distribution specification ("Error Codes").

Codes bind 4xx answers; for failures of ours the specification has none, and ``UNKNOWN`` is what registries use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nixery.errors import (
    LONGEST_MESSAGE,
    AnswerTooLarge,
    BlobUnknown,
    BlobVerificationFailed,
    BuildDeadlineExceeded,
    BuildError,
    BuildFailed,
    ClosureTooLarge,
    CollectionRunning,
    EvaluationFailed,
    InternalError,
    InvalidDigest,
    InvalidName,
    InvalidReference,
    ManifestUnknown,
    NameUnknown,
    NixeryError,
    NixStoreFull,
    NixTimedOut,
    NixUnusable,
    PackageSetChanged,
    PackagesUnavailable,
    PathsCollected,
    PlatformFailed,
    PushFailed,
    RequestError,
    SettingsError,
    ShuttingDown,
    SourceUnreachable,
    StorageError,
    StorageFull,
    TagUnknown,
    TooBusy,
    UnsafeContents,
)
from nixery.plain_text import escaped, shortened
from nixery.server.http import BytesResponse, json_content

# Every class of errors.py stands here itself: a new one has to be thought about.
STATUS_AND_CODE: Mapping[type[NixeryError], tuple[int, str]] = {
    NixeryError: (500, "UNKNOWN"),
    RequestError: (400, "UNSUPPORTED"),
    InvalidName: (400, "NAME_INVALID"),
    # The specification wants 404 for a tag that cannot exist, as for one that does not.
    InvalidReference: (404, "MANIFEST_UNKNOWN"),
    InvalidDigest: (400, "DIGEST_INVALID"),
    NameUnknown: (404, "NAME_UNKNOWN"),
    BlobUnknown: (404, "BLOB_UNKNOWN"),
    ManifestUnknown: (404, "MANIFEST_UNKNOWN"),
    TagUnknown: (404, "MANIFEST_UNKNOWN"),
    PackagesUnavailable: (404, "MANIFEST_UNKNOWN"),
    # As with a build that fails: there is no such manifest, and the message has to be seen.
    ClosureTooLarge: (422, "MANIFEST_UNKNOWN"),
    UnsafeContents: (422, "MANIFEST_UNKNOWN"),
    BuildError: (500, "UNKNOWN"),
    EvaluationFailed: (500, "UNKNOWN"),
    # There is no such manifest, since it cannot be made. Not a 500: docker, podman, buildah and skopeo show no message of a
    # 5xx, crane and containerd ask again at once. Not UNKNOWN: with that, podman and buildah ask three times more. Not 404:
    # containerd shows nothing but the status, and a package that cannot be built is not one that is not there.
    BuildFailed: (422, "MANIFEST_UNKNOWN"),
    # The package set causes it, as it causes a failed build.
    AnswerTooLarge: (422, "MANIFEST_UNKNOWN"),
    NixTimedOut: (504, "UNKNOWN"),
    BuildDeadlineExceeded: (504, "UNKNOWN"),
    NixStoreFull: (507, "UNKNOWN"),
    NixUnusable: (500, "UNKNOWN"),
    SourceUnreachable: (503, "UNKNOWN"),
    PackageSetChanged: (503, "UNKNOWN"),
    PathsCollected: (503, "UNKNOWN"),
    PlatformFailed: (500, "UNKNOWN"),  # never used: the error in it counts
    StorageError: (500, "UNKNOWN"),
    # RFC 4918, 11.5. It is our fault and not the request's, though docker and podman show no message of a 5xx; none of the statuses
    # with which containerd asks again at once, which needs the room once more.
    StorageFull: (507, "UNKNOWN"),
    CollectionRunning: (503, "UNKNOWN"),  # never used: no request collects
    BlobVerificationFailed: (500, "UNKNOWN"),
    InternalError: (500, "UNKNOWN"),
    TooBusy: (429, "TOOMANYREQUESTS"),
    PushFailed: (500, "UNKNOWN"),  # never used: a server pushes nothing
    ShuttingDown: (503, "UNKNOWN"),
    SettingsError: (500, "UNKNOWN"),
}

# What a log says more about than the message does.
_WITH_LOG = (BuildFailed, NixTimedOut, EvaluationFailed)

# Characters. Some messages quote a path, which may be longer than any other error.
_LONGEST_MESSAGE = LONGEST_MESSAGE + 200

# Seconds after which a client may find a successor of a server that stops, or a source that can be reached.
_RETRY_AFTER = "5"
_WORTH_A_RETRY = 503


def error_response(error: NixeryError, server: str | None = None) -> BytesResponse:
    """Answer an error in the registry's own form, which clients show to the person at the terminal.

    Args:
        error: what is the matter.
        server: our URL, where there is a page with the log of each build.
    """
    cause = error.error if isinstance(error, PlatformFailed) else error
    status, code = STATUS_AND_CODE[type(cause)]
    log = (
        f"; its log: {server}/builds/{cause.build}"
        if server and cause.build and isinstance(cause, _WITH_LOG)
        else ""
    )
    return errors_body(status, code, f"{error}{log}", _detail(cause), retry_headers(cause))


def retry_headers(error: NixeryError) -> dict[str, str]:
    """Return ``Retry-After`` in seconds for a temporary error; no header for a permanent one."""
    if isinstance(error, TooBusy):
        return {"Retry-After": str(error.retry_after)}
    status, _ = STATUS_AND_CODE[type(error)]
    return {"Retry-After": _RETRY_AFTER} if status == _WORTH_A_RETRY else {}


def errors_body(
    status: int,
    code: str,
    message: str,
    detail: dict[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> BytesResponse:
    """Write the ``errors`` document."""
    entry = {"code": code, "message": shortened(message, _LONGEST_MESSAGE), "detail": detail}
    # Clients print both unescaped, so a message has to stay one line.
    content = json_content({"errors": [entry]}, escaped)
    return BytesResponse(status, content, {"Content-Type": "application/json", **(headers or {})})


def _detail(error: NixeryError) -> dict[str, Any] | None:
    match error:
        case PackagesUnavailable(packages=packages):
            return {
                "packages": [
                    {
                        "name": package.name,
                        "reason": package.reason,
                        "explanation": package.explanation,
                        "did_you_mean": package.near_names,
                    }
                    for package in packages
                ]
            }
        case (
            BuildFailed(derivation=derivation, log_tail=log)
            | NixTimedOut(derivation=derivation, log_tail=log)
        ):
            return {"derivation": derivation, "log": log}
        case ClosureTooLarge(size=size, limit=limit, largest=paths):
            largest = [{"path": path, "size": its_own} for path, its_own in paths]
            return {"size": size, "limit": limit, "largest": largest}
        case EvaluationFailed(log_tail=log):
            return {"log": log}
        case _:
            return None
