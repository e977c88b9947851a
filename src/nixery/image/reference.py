"""References to a manifest: a tag or a digest (distribution specification, "Pulling manifests")."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nixery.errors import InvalidReference
from nixery.oci.digest import Digest

_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)

# cosign, referrers' fallback and attestation tools probe for tags of this shape on every image they see;
# an image is never meant by it (referrers tag schema of the distribution specification, cosign's naming).
_DERIVED_FROM_DIGEST = re.compile(r"sha256-[0-9a-f]{64}(\.(sig|att|sbom))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tag:
    """A valid tag. What it selects is up to the package source."""

    name: str

    @property
    def is_derived_from_digest(self) -> bool:
        """Whether it names artifacts attached to an image rather than an image: ``sha256-<hex>[.sig]``."""
        return _DERIVED_FROM_DIGEST.fullmatch(self.name) is not None

    def __str__(self) -> str:
        return self.name


def parse_reference(text: str) -> Tag | Digest:
    """Read what stands after ``/manifests/``.

    Raises:
        InvalidDigest: it has a colon, as only digests have, but is none we know.
        InvalidReference: it is neither.
    """
    if ":" in text:
        return Digest.parse(text)
    if _TAG.fullmatch(text) is None:
        raise InvalidReference(text)
    return Tag(text)
