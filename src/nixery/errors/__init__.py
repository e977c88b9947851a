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
    │   └── PackagesUnavailable       missing, broken, unfree, ... : names them all
    ├── BuildError                    the request is fine, making the image failed
    │   ├── EvaluationFailed
    │   ├── BuildFailed               with the derivation and the end of its log
    │   ├── BuildTimedOut
    │   ├── NixUnusable               Nix is not there, or does not answer as Nix does
    │   ├── SourceUnreachable         where the packages come from
    │   └── PackageSetChanged
    ├── PlatformFailed                one of several platforms: holds one of the above
    ├── StorageError
    │   └── BlobVerificationFailed    what was written is not what was meant
    ├── PushFailed                    another registry does not take the image
    ├── ShuttingDown
    └── SettingsError                 every problem of the environment at once

Errors carry data. What status and code they become is the business of
``server/registry/errors.py`` alone; a test walks this tree and requires a row there.
"""

from __future__ import annotations

from nixery.errors.base import (
    BlobVerificationFailed,
    NixeryError,
    PushFailed,
    SettingsError,
    ShuttingDown,
    StorageError,
)
from nixery.errors.build import (
    BuildError,
    BuildFailed,
    BuildTimedOut,
    EvaluationFailed,
    NixUnusable,
    PackageSetChanged,
    PlatformFailed,
    SourceUnreachable,
)
from nixery.errors.request import (
    BlobUnknown,
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
)

__all__ = [
    "BlobUnknown",
    "BlobVerificationFailed",
    "BuildError",
    "BuildFailed",
    "BuildTimedOut",
    "EvaluationFailed",
    "InvalidDigest",
    "InvalidName",
    "InvalidReference",
    "ManifestUnknown",
    "NameUnknown",
    "NixUnusable",
    "NixeryError",
    "PackageSetChanged",
    "PackagesUnavailable",
    "PlatformFailed",
    "PushFailed",
    "Reason",
    "RequestError",
    "SettingsError",
    "ShuttingDown",
    "SourceUnreachable",
    "StorageError",
    "TagUnknown",
    "UnavailablePackage",
]
