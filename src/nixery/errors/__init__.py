"""All errors of nixery's domain; no HTTP in here.

::

    NixeryError
    ├── RequestError                  the client asked for something impossible
    │   ├── InvalidName
    │   ├── InvalidReference
    │   ├── InvalidDigest
    │   ├── NameUnknown
    │   ├── BlobUnknown
    │   ├── ManifestUnknown
    │   ├── TagUnknown                the package source has no such branch, commit, ...
    │   ├── ClosureTooLarge           names the largest store paths
    │   ├── UnsafeContents            names the file of a package
    │   └── PackagesUnavailable       missing, broken, unfree, ... : names them all
    ├── BuildError                    the request is valid, making the image failed
    │   ├── EvaluationFailed
    │   ├── AnswerTooLarge            Nix, or git, wrote more than its limit
    │   ├── BuildFailed               with the derivation and the end of its log
    │   ├── BuildTimedOut             a builder, or Nix
    │   ├── BuildTookTooLong          the whole build timed out
    │   ├── NixStoreFull
    │   ├── NixUnusable               Nix is missing, or gives unexpected answers
    │   ├── PathsCollected            Nix's garbage collector deleted paths in use
    │   ├── SourceUnreachable         the package source does not answer
    │   └── PackageSetChanged
    ├── PlatformFailed                one of several platforms: holds one of the above
    ├── StorageError
    │   ├── BlobVerificationFailed    written bytes do not match their digest
    │   ├── StorageFull
    │   └── CollectionRunning
    ├── InternalError                 any unexpected exception
    ├── PushFailed                    another registry does not accept the image
    ├── TooBusy                       says when to retry
    ├── ShuttingDown
    └── SettingsError                 every problem of the environment at once

Errors carry data. Only ``server/registry/errors.py`` maps them to a status and a code;
a test walks this tree and requires a row there.
"""

from __future__ import annotations

from nixery.errors.base import (
    LONGEST_MESSAGE,
    BlobVerificationFailed,
    CollectionRunning,
    InternalError,
    NixeryError,
    PushFailed,
    SettingsError,
    ShuttingDown,
    StorageError,
    StorageFull,
    TooBusy,
    readable_size,
    shown,
    storage_error,
)
from nixery.errors.build import (
    AnswerTooLarge,
    BuildError,
    BuildFailed,
    BuildTimedOut,
    BuildTookTooLong,
    EvaluationFailed,
    NixStoreFull,
    NixUnusable,
    PackageSetChanged,
    PathsCollected,
    PlatformFailed,
    SourceUnreachable,
)
from nixery.errors.request import (
    BlobUnknown,
    ClosureTooLarge,
    InvalidDigest,
    InvalidName,
    InvalidReference,
    ManifestUnknown,
    NameUnknown,
    PackagesUnavailable,
    Reason,
    RequestError,
    TagUnknown,
    UnavailablePackage,
    UnsafeContents,
)

__all__ = [
    "LONGEST_MESSAGE",
    "AnswerTooLarge",
    "BlobUnknown",
    "BlobVerificationFailed",
    "BuildError",
    "BuildFailed",
    "BuildTimedOut",
    "BuildTookTooLong",
    "ClosureTooLarge",
    "CollectionRunning",
    "EvaluationFailed",
    "InternalError",
    "InvalidDigest",
    "InvalidName",
    "InvalidReference",
    "ManifestUnknown",
    "NameUnknown",
    "NixStoreFull",
    "NixUnusable",
    "NixeryError",
    "PackageSetChanged",
    "PackagesUnavailable",
    "PathsCollected",
    "PlatformFailed",
    "PushFailed",
    "Reason",
    "RequestError",
    "SettingsError",
    "ShuttingDown",
    "SourceUnreachable",
    "StorageError",
    "StorageFull",
    "TagUnknown",
    "TooBusy",
    "UnavailablePackage",
    "UnsafeContents",
    "readable_size",
    "shown",
    "storage_error",
]
