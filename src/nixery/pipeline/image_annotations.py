"""What an image says about itself (image specification, annotations.md): the same in the manifest and in the config's labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from nixery.image.request import ALWAYS_INCLUDED, SHELL_PACKAGES, ImageRequest
from nixery.nix.builder import Package
from nixery.plain_text import escaped, escaped_lines
from nixery.sources.location import COMMIT
from nixery.sources.source import Pin

# Characters of an annotation; a longer one is left out. containerd and registries accept manifests and
# configs up to 4 MiB, and both contain each annotation.
_LONGEST = 256 * 1024

_PREFIX = "org.opencontainers.image"

# Our own: the specification has no word for what is inside.
PACKAGES = "dev.nixery.packages"

# SPDX specification, annex D: an "idstring".
_NO_IDENTIFIER = re.compile(r"[^a-zA-Z0-9.-]+")


def image_annotations(request: ImageRequest, packages: Sequence[Package], pin: Pin) -> Mapping[str, str]:
    """Describe an image, by what it was made from and by nothing else; what is not known is left out."""
    versions = {(package.name, package.version) for package in packages}
    found = {
        f"{_PREFIX}.title": "/".join([*(["shell"] if request.shell else []), *_asked_for(request)]) or "base",
        f"{_PREFIX}.version": _version(request, packages),
        f"{_PREFIX}.licenses": _licences(packages),
        f"{_PREFIX}.source": pin.url,
        f"{_PREFIX}.revision": pin.revision if pin.url or COMMIT.match(pin.revision) else None,
        PACKAGES: ", ".join(f"{name} {version}".strip() for name, version in sorted(versions)),
    }
    return {name: escaped_lines(value) for name, value in found.items() if value and len(value) <= _LONGEST}


def readable_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Return a definition's annotations with unsafe characters escaped, since clients show them."""
    return {escaped(name): escaped_lines(value) for name, value in sorted(labels.items())}


def _asked_for(request: ImageRequest) -> Sequence[str]:
    """The packages that make the image what it is: all names of the same image have to say the same here."""
    understood = {*ALWAYS_INCLUDED, *(SHELL_PACKAGES if request.shell else ())}
    return [package for package in request.requested if package not in understood] or request.requested


def _version(request: ImageRequest, packages: Sequence[Package]) -> str | None:
    asked_for = _asked_for(request)
    found = [package for package in packages if package.requested_name in asked_for[:1]]
    return found[0].version if len(asked_for) == len(found) == 1 else None


def _licences(packages: Sequence[Package]) -> str:
    """An SPDX expression. All of them hold, since all of the packages are inside."""
    identifiers = set()
    for licence in {licence for package in packages for licence in package.licences}:
        plain = _NO_IDENTIFIER.sub("-", licence).strip("-")
        identifiers.add(licence if licence and plain == licence else f"LicenseRef-{plain or 'unknown'}")
    return " AND ".join(sorted(identifiers))
