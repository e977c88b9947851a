"""Everything that can go wrong in nixery's own terms; no HTTP in here.

::

    NixeryError
    ├── RequestError                  the client asked for something that cannot be
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
    ├── BuildError                    the request is fine, making the image failed
    │   ├── EvaluationFailed
    │   ├── AnswerTooLarge            Nix, or git, wrote more than is read
    │   ├── BuildFailed               with the derivation and the end of its log
    │   ├── BuildTimedOut             a builder, or Nix
    │   ├── BuildTookTooLong          all of it together
    │   ├── NixStoreFull
    │   ├── NixUnusable               Nix is not there, or does not answer as Nix does
    │   ├── PathsCollected            by Nix's garbage collector, in between
    │   ├── SourceUnreachable         where the packages come from
    │   └── PackageSetChanged
    ├── PlatformFailed                one of several platforms: holds one of the above
    ├── StorageError
    │   ├── BlobVerificationFailed    what was written is not what was meant
    │   ├── StorageFull
    │   └── CollectionRunning
    ├── InternalError                 whatever was not raised on purpose
    ├── PushFailed                    another registry does not take the image
    ├── TooBusy                       says when to come back
    ├── ShuttingDown
    └── SettingsError                 every problem of the environment at once

Errors carry data. What status and code they become is the business of
``server/registry/errors.py`` alone; a test walks this tree and requires a row there.
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
