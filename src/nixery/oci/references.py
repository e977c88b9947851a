"""What manifests and indexes point to."""

from __future__ import annotations

import json

from nixery.errors import InvalidDigest
from nixery.oci.digest import Digest


def described_by(document: bytes) -> tuple[tuple[Digest, int], ...]:
    """Return digest and size of everything that a manifest or an index points to; nothing for any other bytes."""
    try:
        properties = json.loads(document)
        if not isinstance(properties, dict):
            return ()
        config = [properties["config"]] if "layers" in properties else []
        descriptors = (*config, *properties.get("layers", ()), *properties.get("manifests", ()))
        return tuple((Digest.parse(d["digest"]), _size(d["size"])) for d in descriptors)
    except (ValueError, KeyError, TypeError, RecursionError, InvalidDigest):
        return ()


def _size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"no size: {value!r}")
    return value


def is_image_manifest(document: bytes, media_type: str) -> bool:
    """Whether a document is an image manifest, by the media type that it declares."""
    try:
        properties = json.loads(document)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(properties, dict)
        and properties.get("mediaType") == media_type
        and {"config", "layers"} <= properties.keys()
        and bool(described_by(document))
    )


def is_index(document: bytes) -> bool:
    """Whether a document points to manifests, which point to other things in turn."""
    try:
        properties = json.loads(document)
    except (ValueError, RecursionError):
        return False
    return isinstance(properties, dict) and "manifests" in properties
