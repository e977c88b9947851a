"""Images: their documents, the start of their containers, and their annotations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nixery.closure import StorePath
from nixery.image.meta_packages import SHELL
from nixery.image.name import ALWAYS_INCLUDED, ImageRequest
from nixery.nix.packages import Contents, Package
from nixery.oci.digest import Digest
from nixery.oci.documents import Document, ExecutionParameters, referenced_blobs
from nixery.packing.root_filesystem import Link, Tree
from nixery.packing.system_files import CA_BUNDLE, JAVA_KEYSTORE, LOCALE_ARCHIVE, ZONEINFO
from nixery.plain_text import escaped, escaped_lines
from nixery.source_location import COMMIT
from nixery.sources.source import Pin

# The annotation with the packages of an image. The specification defines none for them.
PACKAGES = "dev.nixery.packages"

_PREFIX = "org.opencontainers.image"

# Characters of an annotation; a longer one is left out. containerd and registries accept manifests and
# configs up to 4 MiB, and both contain each annotation.
_LONGEST = 256 * 1024

# SPDX specification, annex D: an "idstring".
_NO_IDENTIFIER = re.compile(r"[^a-zA-Z0-9.-]+")

# Stable names instead of store paths, so that they can be replaced by a mounted file. In the config rather
# than in a shell's start-up file, so that `exec` has them as well.
_CERTIFICATES = f"/{CA_BUNDLE.decode()}"
_ENV = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    f"SSL_CERT_FILE={_CERTIFICATES}",
    f"NIX_SSL_CERT_FILE={_CERTIFICATES}",
    f"GIT_SSL_CAINFO={_CERTIFICATES}",
    "LANG=C.UTF-8",
)

# Only for images with these files: a C library that has one of the first two looks nowhere else, nor does
# Nix's Java with the last one, which other Javas ignore.
_ENV_FOR_FILES = (
    ("TZDIR", b"usr/" + ZONEINFO),
    ("LOCALE_ARCHIVE", b"usr/" + LOCALE_ARCHIVE),
    ("JAVAX_NET_SSL_TRUSTSTORE", JAVA_KEYSTORE),
)


@dataclass(frozen=True, slots=True)
class Image:
    """A stored image for one platform: the same config and layers under two manifests.

    Attributes:
        manifest: in OCI's media types.
        docker_manifest: in Docker's; ``None`` if they have no name for the compression of the layers.
    """

    manifest: Document
    docker_manifest: Document | None

    @property
    def manifests(self) -> tuple[Document, ...]:
        """All manifests, OCI's last."""
        return (self.docker_manifest, self.manifest) if self.docker_manifest else (self.manifest,)

    @property
    def digests(self) -> tuple[Digest, ...]:
        """The digests of the manifests."""
        return tuple(manifest.descriptor.digest for manifest in self.manifests)

    @property
    def parts(self) -> tuple[tuple[Digest, int], ...]:
        """Digest and size of all blobs, including the manifests."""
        documents = (document.descriptor for document in self.manifests)
        return (
            *referenced_blobs(self.manifest.content),
            *((descriptor.digest, descriptor.size) for descriptor in documents),
        )


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """A stored index of images for several platforms.

    Attributes:
        index: in OCI's media types.
        docker_index: in Docker's; ``None`` if an image has no manifest in them.
        first: the image for clients that do not understand an index.
    """

    index: Document
    docker_index: Document | None
    first: Image

    @property
    def indexes(self) -> tuple[Document, ...]:
        """All indexes, OCI's last."""
        return (self.docker_index, self.index) if self.docker_index else (self.index,)

    @property
    def digests(self) -> tuple[Digest, ...]:
        """The digests of the indexes."""
        return tuple(index.descriptor.digest for index in self.indexes)


def execution_parameters(request: ImageRequest, contents: Contents, tree: Tree) -> ExecutionParameters:
    """Derive how containers of an image start.

    A definition takes precedence. Without one there is never an ``Entrypoint``, so that ``docker run IMAGE
    COMMAND`` works.

    Args:
        request: if it names a single package, its main program is started.
        contents: of the image; the command of a meta-package is started.
        tree: the image's root, which must contain the program.
    """
    env = (
        *_ENV,
        *(f"{variable}=/{name.decode()}" for variable, name in _ENV_FOR_FILES if tree.get(name) is not None),
    )
    if contents.definition is None:
        return ExecutionParameters(env=env, cmd=_command(request, contents, tree))
    defined = contents.definition.execution
    command = defined.cmd
    if command is None and not defined.entrypoint:
        command = _command(request, contents, tree)
    return replace(defined, env=_merged(env, defined.env), cmd=command)


def image_annotations(request: ImageRequest, packages: Sequence[Package], pin: Pin) -> Mapping[str, str]:
    """Describe an image by its packages and its source (image specification, annotations.md); omit unknown values.

    The manifest's annotations and the config's labels are the same.
    """
    versions = {(package.name, package.version) for package in packages}
    found = {
        f"{_PREFIX}.title": "/".join(
            [*(["shell"] if request.shell else []), *_requested_names(request, packages)]
        )
        or "base",
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


def _command(request: ImageRequest, contents: Contents, tree: Tree) -> tuple[str, ...]:
    if contents.command:
        return contents.command
    if len(request.requested) == 1:
        # A list of packages has no main program, unless it is a list of one.
        found = [package for package in contents.packages if package.requested_name == request.requested[0]]
        package = found[0] if len(found) == 1 else None
        candidates = (package.main_program, package.name, package.requested_name) if package else ()
        for program in candidates:
            if program and isinstance(tree.get(b"bin/" + program.encode()), Link):
                return (program,)
    return ()


def _merged(ours: Sequence[str], defined: Sequence[str]) -> tuple[str, ...]:
    """The default variables, except those that a definition sets itself, followed by the definition's."""
    names = {entry.partition("=")[0] for entry in defined}
    return (*(entry for entry in ours if entry.partition("=")[0] not in names), *defined)


def _requested_names(request: ImageRequest, packages: Sequence[Package]) -> Sequence[str]:
    """The packages that distinguish the image: all names of the same image must give the same annotations."""
    of_shell = {
        path for package in packages if package.requested_name == SHELL for path in package.outputs.values()
    }
    outputs: dict[str, set[StorePath]] = {}
    for package in packages:
        outputs.setdefault(package.requested_name, set()).update(package.outputs.values())
    understood = {*ALWAYS_INCLUDED, *(name for name, paths in outputs.items() if paths <= of_shell)}
    return [name for name in request.requested if name not in understood] or request.requested


def _version(request: ImageRequest, packages: Sequence[Package]) -> str | None:
    requested = _requested_names(request, packages)
    found = [package for package in packages if package.requested_name in requested[:1]]
    return found[0].version if len(requested) == len(found) == 1 else None


def _licences(packages: Sequence[Package]) -> str:
    """An SPDX expression; empty if it would be too long. All licences apply, since the image has all of the packages."""
    licences = {licence for package in packages for licence in package.licences}
    if sum(map(len, licences)) > _LONGEST:
        return ""  # before any is searched: authors may have written 80 MB, which takes seconds
    identifiers = set()
    for licence in licences:
        plain = _NO_IDENTIFIER.sub("-", licence).strip("-")
        identifiers.add(licence if licence and plain == licence else f"LicenseRef-{plain or 'unknown'}")
    return " AND ".join(sorted(identifiers))
