"""The names of images: repository names and references (tags and digests).

The path components of a repository name are the contents of the image. ``shell``, ``amd64`` and ``arm64`` have their
meaning at the beginning of a name; after the first package they are names like any other. So ``shell/git`` is git in
an image with a shell, and ``git/shell`` is the packages *git* and *shell*. ``meta_packages.py`` has names that stand
for several packages at any place. ``spelling.py``
has the rule by which a component selects an attribute of a package set.

Source: distribution specification, "Pulling manifests".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nixery.errors import InvalidName, InvalidReference
from nixery.image.meta_packages import SHELL
from nixery.image.platform import AMD64, ARM64, Platform
from nixery.oci.digest import Digest

# The specification bounds host name and repository name together to 255 characters.
LONGEST_NAME = 255

# In every image, if the package set has them: TLS roots, and the names of protocols and services.
ALWAYS_INCLUDED = ("cacert", "iana-etc")

# Between slashes: the packages.
COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{COMPONENT}(?:/{COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)

# Tools for signatures, referrers and attestations look for tags of this form on every image; it never means
# an image (referrers tag schema of the distribution specification, cosign's naming).
_DERIVED_FROM_DIGEST = re.compile(r"sha256-[0-9a-f]{64}(\.(sig|att|sbom))?", re.ASCII)

# Docker asks a mirror for `hello` as `library/hello`, which has two components.
_OFFICIAL = 2

_PLATFORMS = {"amd64": AMD64, "arm64": ARM64}

# At the beginning of a name, these are no packages.
PREFIXES = frozenset({"shell", *_PLATFORMS})


@dataclass(frozen=True, slots=True)
class Tag:
    """A valid tag; the package source decides what it selects."""

    name: str

    @property
    def is_derived_from_digest(self) -> bool:
        """Whether it names an artifact of an image rather than an image: ``sha256-<hex>[.sig]``."""
        return _DERIVED_FROM_DIGEST.fullmatch(self.name) is not None

    def __str__(self) -> str:
        return self.name


def parse_reference(text: str) -> Tag | Digest:
    """Parse the reference of a manifest.

    Raises:
        InvalidDigest: it has a colon, like a digest, but is not a supported digest.
        InvalidReference: it is neither a tag nor a digest.
    """
    if ":" in text:
        return Digest.parse(text)
    if _TAG.fullmatch(text) is None:
        raise InvalidReference(text)
    return Tag(text)


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """The image that a name asks for, in the form that all names of the same image share.

    Attributes:
        packages: names from the client, and ``meta_packages.SHELL`` for a shell; sorted and unique.
        optional_packages: the same, but left out if the package set does not have them.
        requested: the names from the client alone.
        platform: to build for.
        shell: whether the image is for interactive use.
    """

    packages: tuple[str, ...]
    optional_packages: tuple[str, ...]
    requested: tuple[str, ...]
    platform: Platform
    shell: bool

    @property
    def name(self) -> str:
        """The shortest name of the image, without its platform; of an image without packages, the name of its platform."""
        components = [*(["shell"] if self.shell else []), *self.requested]
        return "/".join(components) or self.platform.architecture.name


def validate_name(name: str) -> None:
    """Check a repository name against the grammar.

    Raises:
        InvalidName: with the reason.
    """
    if len(name) > LONGEST_NAME:
        raise InvalidName(name[:LONGEST_NAME], f"it is longer than {LONGEST_NAME} characters")
    if _NAME.fullmatch(name) is None:
        raise InvalidName(
            name,
            "each component between slashes has lower-case letters and digits, "
            "separated by single '.', '_', '__' or any number of '-'; '__' and two hexadecimal digits are any other "
            "character, so 'g__2b__2b' is 'g++'",
        )


def parse_image_name(name: str, default_platform: Platform = AMD64) -> ImageRequest:
    """Parse a repository name such as ``shell/git/htop`` or ``arm64/hello``.

    Raises:
        InvalidName: it does not match the grammar, or asks for two platforms.
    """
    return requests_for(name, (default_platform,))[0]


def requests_for(name: str, default_platforms: Sequence[Platform]) -> tuple[ImageRequest, ...]:
    """Parse a repository name into a request for each platform: the one it begins with, or else the default ones.

    Raises:
        InvalidName: as ``parse_image_name``.
    """
    validate_name(name)
    components = name.split("/")
    if len(components) == _OFFICIAL and components[0] == "library":
        del components[0]
    first_package = next(
        (i for i, component in enumerate(components) if component not in PREFIXES),
        len(components),
    )
    meta_packages, requested = components[:first_package], _canonical(components[first_package:])
    named = {_PLATFORMS[meta] for meta in meta_packages if meta in _PLATFORMS}
    if len(named) > 1:
        raise InvalidName(name, "it asks for amd64 and arm64 at once; use one of them, or neither")
    shell = "shell" in meta_packages
    request = ImageRequest(
        packages=_canonical([*requested, *((SHELL,) if shell else ())]),
        optional_packages=tuple(p for p in ALWAYS_INCLUDED if p not in requested),
        requested=requested,
        platform=default_platforms[0],
        shell=shell,
    )
    return tuple(replace(request, platform=platform) for platform in named or default_platforms)


def canonical_name(name: str) -> str:
    """Return the canonical name of an image: each package once, in order.

    Raises:
        InvalidName: as ``requests_for``.
    """
    # With all platforms, so that a name with a platform prefix gives one request, and any other name several.
    requests = requests_for(name, tuple(_PLATFORMS.values()))
    return _name_of(requests[0], with_platform=len(requests) == 1)


def canonical_names(request: ImageRequest) -> tuple[str, ...]:
    """Return the canonical names that a request may be from: without and with its platform."""
    is_named = bool(request.requested or request.shell)
    return tuple(
        _name_of(request, with_platform=with_platform) for with_platform in (False, True)[not is_named :]
    )


def _name_of(request: ImageRequest, *, with_platform: bool) -> str:
    platform = [request.platform.architecture.name] if with_platform else []
    shell = ["shell"] if request.shell else []
    # A package with the name of a meta-package must follow another package; `library` must not come before a
    # single one.
    packages = sorted(request.requested, key=lambda package: (package in PREFIXES, package))
    components = [*platform, *shell, *packages]
    if components[0] == "library" and len(components) == _OFFICIAL:
        components.insert(0, "library")
    return "/".join(components)


def _canonical(packages: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(packages)))
