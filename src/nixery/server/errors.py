"""The one table from domain errors to statuses and codes of the distribution specification ("Error Codes").

The specification defines codes for 4xx answers only; for 5xx answers, registries use ``UNKNOWN``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nixery.errors import (
    LONGEST_MESSAGE,
    AccessDenied,
    AnswerTooLarge,
    BinaryCacheFailed,
    BlobUnknown,
    BlobVerificationFailed,
    BuildCancelled,
    BuildDeadlineExceeded,
    BuildFailed,
    BuildNotAllowed,
    ClosureTooLarge,
    EvaluationFailed,
    InternalError,
    InvalidDigest,
    InvalidName,
    InvalidReference,
    IssuerUnreachable,
    LoginRequired,
    ManifestUnknown,
    NameUnknown,
    NarRefused,
    NixeryError,
    NixStoreFull,
    NixTimedOut,
    NixUnusable,
    NotIndexed,
    NotVisible,
    PackageSetChanged,
    PackagesUnavailable,
    PackageUnknown,
    PathsCollected,
    PlatformFailed,
    QuotaExceeded,
    ShuttingDown,
    SourceUnreachable,
    StorageError,
    StorageFull,
    StorePathUnknown,
    TagUnknown,
    TooBusy,
    UnsafeContents,
)
from nixery.plain_text import escaped, shortened
from nixery.server.http import ErrorResponse, json_content

# Every error that a request can end with has its own row. Others have the row of their nearest base.
STATUS_AND_CODE: Mapping[type[NixeryError], tuple[int, str]] = {
    NixeryError: (500, "UNKNOWN"),
    # The client.
    InvalidName: (400, "NAME_INVALID"),
    # The specification requires 404 for a tag that cannot exist, as for one that does not.
    InvalidReference: (404, "MANIFEST_UNKNOWN"),
    InvalidDigest: (400, "DIGEST_INVALID"),
    # Access.
    LoginRequired: (401, "UNAUTHORIZED"),
    AccessDenied: (403, "DENIED"),
    NotVisible: (404, "NAME_UNKNOWN"),
    BuildNotAllowed: (404, "MANIFEST_UNKNOWN"),
    NameUnknown: (404, "NAME_UNKNOWN"),
    BlobUnknown: (404, "BLOB_UNKNOWN"),
    StorePathUnknown: (404, "BLOB_UNKNOWN"),
    ManifestUnknown: (404, "MANIFEST_UNKNOWN"),
    TagUnknown: (404, "MANIFEST_UNKNOWN"),
    PackageUnknown: (404, "NAME_UNKNOWN"),
    PackagesUnavailable: (404, "MANIFEST_UNKNOWN"),
    # As for a failed build: there is no such manifest, and clients have to show the message.
    ClosureTooLarge: (422, "MANIFEST_UNKNOWN"),
    UnsafeContents: (422, "MANIFEST_UNKNOWN"),
    # The package set.
    EvaluationFailed: (500, "UNKNOWN"),
    # There is no such manifest, since it cannot be built. Not a 5xx: docker, podman, buildah and skopeo show
    # no message of a 5xx, and crane and containerd retry at once. Not UNKNOWN: podman and buildah would retry
    # three times. Not 404: containerd would show only the status, and a package that cannot be built is not a
    # missing one.
    BuildFailed: (422, "MANIFEST_UNKNOWN"),
    # Likewise; and a client that retries would start the build that was just ended.
    BuildCancelled: (422, "MANIFEST_UNKNOWN"),
    # The package set is the cause, as for a failed build.
    AnswerTooLarge: (422, "MANIFEST_UNKNOWN"),
    PackageSetChanged: (503, "UNKNOWN"),
    SourceUnreachable: (503, "UNKNOWN"),
    BinaryCacheFailed: (503, "UNKNOWN"),
    # A binary cache. As for a failed build: people have to see the message.
    NarRefused: (422, "MANIFEST_UNKNOWN"),
    NotIndexed: (422, "MANIFEST_UNKNOWN"),
    # Nix. As for a failed build: clients show nothing of a 504 but its number.
    NixTimedOut: (422, "MANIFEST_UNKNOWN"),
    BuildDeadlineExceeded: (422, "MANIFEST_UNKNOWN"),
    NixStoreFull: (507, "UNKNOWN"),
    NixUnusable: (500, "UNKNOWN"),
    PathsCollected: (503, "UNKNOWN"),
    # The storage.
    StorageError: (500, "UNKNOWN"),
    BlobVerificationFailed: (500, "UNKNOWN"),
    # RFC 4918, 11.5. The server is the cause and not the request, although docker and podman show no message
    # of a 5xx. containerd does not retry a 507 at once; a retry would need the room again.
    StorageFull: (507, "UNKNOWN"),
    # The server.
    InternalError: (500, "UNKNOWN"),
    TooBusy: (429, "TOOMANYREQUESTS"),
    QuotaExceeded: (429, "TOOMANYREQUESTS"),
    # Credentials that cannot be verified now are not wrong: a 401 would have clients ask for others.
    IssuerUnreachable: (503, "UNKNOWN"),
    # Not 503: podman, buildah and skopeo show no message of a 5xx, and retry none. After a 429 they wait as
    # Retry-After says, so that the next server serves the pull; docker shows the message.
    ShuttingDown: (429, "TOOMANYREQUESTS"),
}

# Headings of error pages, by status; the message below them says the rest.
_HEADING = "Something went wrong"
_HEADINGS = {
    400: "Not a valid image name",
    401: "Log in",
    403: "Not allowed",
    404: "No such image",
    422: "This image cannot be built",
    429: "The server is busy",
    503: "Not available at the moment",
    507: "The server is out of space",
}

# Errors for which the log of the build has more than the message.
_WITH_LOG = (BuildFailed, BuildCancelled, BuildDeadlineExceeded, NixTimedOut, EvaluationFailed)

# Characters. Some messages quote a path, which may be longer than any other error.
_LONGEST_MESSAGE = LONGEST_MESSAGE + 200

# Seconds after which a source may be reachable again; and after which a server that stops has a successor: it may
# take nine to end.
_RETRY_AFTER = "5"
_RETRY_AFTER_STOP = "10"
_TEMPORARY = 503


def status_and_code(error: NixeryError) -> tuple[int, str]:
    """Look up the row of an error, or of its nearest base that has one."""
    kinds = type(_cause(error)).__mro__
    return next(STATUS_AND_CODE[kind] for kind in kinds if kind in STATUS_AND_CODE)


def heading(error: NixeryError) -> str:
    """Return the heading of the page that shows an error."""
    if isinstance(error, PackageUnknown):
        return "No such package"
    if isinstance(_cause(error), NixTimedOut | BuildDeadlineExceeded):
        return "The build took too long"
    if isinstance(_cause(error), QuotaExceeded):
        return "Quota exceeded"
    if isinstance(_cause(error), BuildCancelled):
        return "The build was cancelled"
    status, _ = status_and_code(error)
    return _HEADINGS.get(status, _HEADING)


def error_response(error: NixeryError, server: str | None = None) -> ErrorResponse:
    """Answer with an error in the form of the specification; clients show its message to the user.

    Args:
        error: to answer with.
        server: base URL of the pages that have the logs of builds; ``None`` for no link to them.
    """
    cause = _cause(error)
    status, code = status_and_code(error)
    has_log = server and cause.build and isinstance(cause, _WITH_LOG)
    log = f"; its log: {server}/builds/{cause.build}" if has_log else ""
    answer = errors_body(status, code, f"{error}{log}", _detail(cause), retry_headers(error))
    answer.title = heading(error)
    return answer


def retry_headers(error: NixeryError) -> dict[str, str]:
    """Return ``Retry-After`` in seconds for a temporary error; no header for a permanent one."""
    cause = _cause(error)
    if isinstance(cause, TooBusy | QuotaExceeded):
        return {"Retry-After": str(cause.retry_after)}
    if isinstance(cause, ShuttingDown):
        return {"Retry-After": _RETRY_AFTER_STOP}
    status, _ = status_and_code(error)
    return {"Retry-After": _RETRY_AFTER} if status == _TEMPORARY else {}


def errors_body(
    status: int,
    code: str,
    message: str,
    detail: dict[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> ErrorResponse:
    """Answer with the ``errors`` document of the specification."""
    message = shortened(message, _LONGEST_MESSAGE)
    entry = {"code": code, "message": message, "detail": detail}
    # Clients print message and detail unescaped, so a message has to stay on one line.
    content = json_content({"errors": [entry]}, escaped)
    return ErrorResponse(
        status, content, {"Content-Type": "application/json", **(headers or {})}, escaped(message)
    )


def _cause(error: NixeryError) -> NixeryError:
    return error.error if isinstance(error, PlatformFailed) else error


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
