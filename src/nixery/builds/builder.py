"""How a container of an image starts.

The data path, top to bottom.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from nixery.builds.descriptions import image_annotations, readable_labels
from nixery.builds.evaluation_cache import Evaluator
from nixery.builds.events import Evaluated, Grouped, LayersComplete, NamesClashed, Realised, Stored
from nixery.builds.image import Image
from nixery.builds.layers import LayerPublisher, Observe
from nixery.closure import Closure, StorePath
from nixery.errors import (
    AnswerTooLarge,
    BuildError,
    BuildFailed,
    ClosureTooLarge,
    PackagesUnavailable,
    PathsCollected,
    Reason,
    RequestError,
    StorageError,
    UnavailablePackage,
)
from nixery.image.name import ImageRequest
from nixery.layering.grouping import group_into_layers
from nixery.layering.popularity import Popularity
from nixery.nix.packages import Contents, NixBuilder, Package
from nixery.oci.documents import ExecutionParameters, Layer, docker_manifest, image_config, image_manifest
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.root_filesystem import (
    CA_BUNDLE,
    LOCALE_ARCHIVE,
    ZONEINFO,
    InstalledOutput,
    Link,
    RootFilesystem,
    Tree,
    plan_root_filesystem,
)
from nixery.packing.user_files import add_user_files
from nixery.sources.source import Pin
from nixery.storage.blobs import BlobStore, are_there
from nixery.storage.leases import Leases

# Stable names instead of store paths, so that they can be replaced by a mounted file. In the config rather than in
# a shell's start-up file, so that `exec` has them as well.
_CERTIFICATES = f"/{CA_BUNDLE.decode()}"
_ENV = (
    "PATH=/bin:/usr/bin:/sbin:/usr/sbin",
    f"SSL_CERT_FILE={_CERTIFICATES}",
    f"NIX_SSL_CERT_FILE={_CERTIFICATES}",
    f"GIT_SSL_CAINFO={_CERTIFICATES}",
    "LANG=C.UTF-8",
)

# Only where the image has them: a C library that is told of a place looks nowhere else.
_ENV_FOR_FILES = (("TZDIR", ZONEINFO), ("LOCALE_ARCHIVE", LOCALE_ARCHIVE))


def execution_parameters(request: ImageRequest, contents: Contents, tree: Tree) -> ExecutionParameters:
    """Derive how containers of an image start.

    What a definition says comes first. Without one there is never an ``Entrypoint``, so that ``docker run IMAGE COMMAND``
    works.

    Args:
        request: an image with a shell starts it.
        contents: of the image; if the client asked for one package only, its main program is started.
        tree: the image's root, which has to have the program.
    """
    env = (
        *_ENV,
        *(f"{variable}=/{name.decode()}" for variable, name in _ENV_FOR_FILES if tree.get(name) is not None),
    )
    if contents.definition is None:
        return ExecutionParameters(env=env, cmd=_command(request, contents.packages, tree))
    defined = contents.definition.execution
    command = defined.cmd
    if command is None and not defined.entrypoint:
        command = _command(request, contents.packages, tree)
    return replace(defined, env=_merged(env, defined.env), cmd=command)


def _command(request: ImageRequest, packages: Sequence[Package], tree: Tree) -> tuple[str, ...]:
    if request.shell:
        return ("bash",)
    if len(request.requested) == 1:
        # A list of packages has no main program, unless it is a list of one.
        found = [package for package in packages if package.requested_name == request.requested[0]]
        package = found[0] if len(found) == 1 else None
        candidates = (package.main_program, package.name, package.requested_name) if package else ()
        for program in candidates:
            if program and isinstance(tree.get(b"bin/" + program.encode()), Link):
                return (program,)
    return ()


def _merged(ours: Sequence[str], defined: Sequence[str]) -> tuple[str, ...]:
    """Our variables, but for those that a definition sets itself, and then the definition's."""
    names = {entry.partition("=")[0] for entry in defined}
    return (*(entry for entry in ours if entry.partition("=")[0] not in names), *defined)


First = TypeVar("First")
Second = TypeVar("Second")

# How often a build begins anew because blobs that it was going to use were deleted under it. What it stored itself stays.
_ATTEMPTS_TO_STORE = 3


# How often is evaluated what Nix's garbage collector takes before it is realised.
_ATTEMPTS_TO_REALISE = 6

# So many paths are named if there are too many of them.
_NAMED = 5


# Bytes. containerd and Docker accept no larger config or manifest (4 MiB); a manifest of ours is always the
# smaller one.
_LARGEST_CONFIG = 4 * 1024 * 1024


class _BlobsLost(Exception):
    """Blobs that the image consists of were deleted while it was built."""


@dataclass(frozen=True, slots=True)
class ImageBounds:
    """How large an image may be.

    Attributes:
        layers: the most layers of an image whose definition does not say; the one with the root file system counts.
        closure: bytes of its store paths (NAR size); ``None`` for any number.
    """

    layers: int
    closure: int | None = None


class ImageBuilder:
    """Builds images, whatever is there already.

    Args:
        bounds: of every image.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- the whole data path comes together here
        self,
        evaluator: Evaluator,
        nix: NixBuilder,
        layers: LayerPublisher,
        blobs: BlobStore,
        uses: Leases,
        popularity: Popularity,
        bounds: ImageBounds,
    ) -> None:
        self._evaluator = evaluator
        self._nix = nix
        self._layers = layers
        self._blobs = blobs
        self._uses = uses
        self._popularity = popularity
        self._bounds = bounds

    async def build(self, request: ImageRequest, pin: Pin, observe: Observe) -> Image:
        """Build and store an image.

        Raises:
            PackagesUnavailable: with every unavailable package.
            PackageSetChanged: it changed during the build.
            ClosureTooLarge: the image would exceed the limit.
            UnsafeContents: a package holds files that no image may have.
            BuildError: Nix cannot build it.
            StorageError: it cannot be stored.
        """
        try:
            for _ in range(_ATTEMPTS_TO_STORE):
                with suppress(_BlobsLost):
                    return await self._build_anyhow(request, pin, observe)
            raise StorageError(
                "what is stored goes again; files of the storage are deleted while images are built"
            )
        except (RequestError, BuildError):
            # What is missing or broken may be remembered from a while ago, and may have been put right since.
            await self._evaluator.confirm(pin)
            raise

    async def _build_anyhow(self, request: ImageRequest, pin: Pin, observe: Observe) -> Image:
        # Nobody can protect a derivation before it is written, and the process that writes it protects it only until it ends. In
        # the hundredths of a second until the next one does, Nix's garbage collector may take it.
        try:
            return await self._build(request, pin, observe, lambda: None)
        except (PathsCollected, BuildFailed) as failure:
            # A builder, too, can lose what it writes (seen with Nix 2.8). If the reason is its own, the next attempt tells it.
            if isinstance(failure, BuildFailed) and not failure.disturbed:
                raise
        for _ in range(_ATTEMPTS_TO_REALISE - 2):
            with suppress(PathsCollected):  # there is no having it wait
                return await self._build_uncollected(request, pin, observe)
        return await self._build_uncollected(request, pin, observe)

    async def _build_uncollected(self, request: ImageRequest, pin: Pin, observe: Observe) -> Image:
        async with self._nix.collector_paused() as on_begun:
            return await self._build(request, pin, observe, on_begun)

    async def _build(
        self, request: ImageRequest, pin: Pin, observe: Observe, on_begun: Callable[[], None]
    ) -> Image:
        contents = await self._evaluator.contents(request, pin)
        packages = contents.packages
        observe(Evaluated(packages))

        requested = contents.store_paths
        async with self._nix.realise(contents.installables, observe, on_begun) as provided:
            on_begun()
            _require(contents, provided)
            closure = await self._nix.closure(requested)
            size = sum(info.nar_size for info in closure)
            observe(Realised(len(closure), size))
            if self._bounds.closure is not None and size > self._bounds.closure:
                raise ClosureTooLarge(size, self._bounds.closure, _largest(closure))

            budget = self._store_layers(contents)
            groups = await asyncio.to_thread(group_into_layers, closure, self._popularity, budget)
            observe(Grouped(len(groups) + 1))

            # The root file system is planned while the first layers are packed. It comes last: it alone is this image's own, all before
            # it can be shared.
            planning = asyncio.to_thread(_plan_root, request, contents, closure)
            layers, root = await _both(self._layers.publish(groups, closure, observe), planning)
            if root.clashes:
                observe(NamesClashed(root.clashes))
            layers.append(await self._layers.publish_root(root, _installed(packages), observe))
            observe(LayersComplete())
            execution = execution_parameters(request, contents, root.tree)
        image = await self._store_image(request, pin, packages, execution, layers)
        await self._evaluator.keep(request, pin)
        observe(Stored(image.manifest.descriptor.digest, len(layers)))
        return image

    def _store_layers(self, contents: Contents) -> int:
        layers = (contents.definition and contents.definition.layers) or self._bounds.layers
        # Store paths and root have a layer each at least: with a budget of 1, too.
        return max(1, layers - 1)

    async def _store_image(
        self,
        request: ImageRequest,
        pin: Pin,
        packages: Sequence[Package],
        execution: ExecutionParameters,
        layers: Sequence[Layer],
    ) -> Image:
        said = image_annotations(request, packages, pin)
        # A definition's own labels win.
        labelled = replace(execution, labels={**said, **readable_labels(execution.labels)})
        config = image_config(request.platform.architecture, labelled, layers, pin.created)
        if len(config.content) > _LARGEST_CONFIG:
            raise AnswerTooLarge(
                "the config of the image, whose history names each store path,", _LARGEST_CONFIG
            )
        image = Image(image_manifest(config, layers, said), docker_manifest(config, layers))
        # The manifests last: what is there under a manifest's digest is complete.
        await self._blobs.put(config.descriptor.digest, config.content)
        await asyncio.gather(*(self._blobs.put(m.descriptor.digest, m.content) for m in image.manifests))
        # A layer that was reused, or a document that was there, may have been garbage to a collector until now.
        await self._uses.acquire(image.digests, (digest for digest, _ in image.parts))
        if not await are_there(self._blobs, image.parts):
            raise _BlobsLost
        return image


async def _both(first: Awaitable[First], second: Awaitable[Second]) -> tuple[First, Second]:
    """Wait for two things, for the second one too if the first fails: the store paths are kept for as long as anybody reads them."""
    one, other = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(one, BaseException):
        raise one
    if isinstance(other, BaseException):
        raise other
    return one, other


def _require(contents: Contents, provided: Collection[StorePath]) -> None:
    """Reject store paths that Nix has not just provided for this package set: others may be private."""
    for package in contents.packages:
        for path in package.outputs.values():
            if path not in provided:
                raise _not_an_output(package.requested_name, package.attribute, path)
    definition = contents.definition
    for path in definition.store_paths if definition else ():
        if definition and path not in provided:
            raise _not_an_output(definition.requested_name, definition.attribute, path)


def _not_an_output(name: str, attribute: str, path: StorePath) -> PackagesUnavailable:
    explanation = f"{attribute} names {path}, which none of its derivations builds"
    return PackagesUnavailable((UnavailablePackage(name, Reason.NOT_A_PACKAGE, explanation),))


def _largest(closure: Closure) -> tuple[tuple[str, int], ...]:
    infos = sorted(closure, key=lambda info: (-info.nar_size, info.path.base_name))
    return tuple((info.path.base_name, info.nar_size) for info in infos[:_NAMED])


def _plan_root(request: ImageRequest, contents: Contents, closure: Closure) -> RootFilesystem:
    outputs = {
        InstalledOutput(
            path, package.name, package.priority, package.requested_name in request.optional_packages
        )
        for package in contents.packages
        for path in package.outputs.values()
    }
    with ClosureFiles(info.path for info in closure) as files:
        root = plan_root_filesystem(outputs, files)
        if contents.definition is not None:
            defined = contents.definition.execution
            add_user_files(root.tree, files, defined.user, defined.working_directory, defined.volumes)
    return root


def _installed(packages: Sequence[Package]) -> list[str]:
    return sorted({path.name for package in packages for path in package.outputs.values()})
