"""The data path, top to bottom: ``ImageBuilder.build`` has each step of a build in order.

``Images.get`` pins the tag, and ``BuildCoordinator`` looks for a finished image before it starts a build.
From there: evaluate, realise, closure, layers, pack, store, manifest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

from nixery.builds.creation_date import CreationDate
from nixery.builds.evaluator import Evaluator
from nixery.builds.events import (
    Evaluated,
    Grouped,
    LayersComplete,
    NamesClashed,
    Observe,
    Realised,
    Stored,
)
from nixery.builds.image import Image, execution_parameters, image_annotations, readable_labels
from nixery.builds.image_closure import ImageClosure, ImageClosures
from nixery.builds.layers import LayerPublisher
from nixery.builds.provision import Provider, Provision, WrongDeriver
from nixery.builds.substitution import WrongNames
from nixery.closure import Closure
from nixery.errors import (
    AnswerTooLarge,
    BuildError,
    BuildFailed,
    ClosureTooLarge,
    PathsCollected,
    RequestError,
    StorageError,
)
from nixery.image.name import ImageRequest
from nixery.layering.grouping import group_into_layers
from nixery.layering.popularity import Popularity
from nixery.nix.packages import DEFAULT_PRIORITY, Contents, Package
from nixery.oci.documents import (
    Document,
    ExecutionParameters,
    Layer,
    docker_manifest,
    image_config,
    image_manifest,
)
from nixery.packing.accounts import add_passwords
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.companions import copy_programs_beside_their_files
from nixery.packing.declared_accounts import add_declared_accounts
from nixery.packing.dpkg_database import add_dpkg_database
from nixery.packing.foreign_programs import add_loader
from nixery.packing.nix_database import add_nix_database
from nixery.packing.root_filesystem import (
    InstalledOutput,
    RootFilesystem,
    complete_below_usr,
    plan_root_filesystem,
)
from nixery.packing.system_files import add_system_files
from nixery.packing.user_files import add_user_files
from nixery.sources.source import PackageSource, Pin
from nixery.storage.blobs import BlobStore, are_there
from nixery.storage.leases import Leases

First = TypeVar("First")
Second = TypeVar("Second")

# Attempts at a build whose blobs are deleted while it runs. Blobs that it stored itself remain for the next
# one.
_STORE_ATTEMPTS = 3

# Attempts at a build whose derivations Nix's garbage collector deletes before they are realised.
_REALISE_ATTEMPTS = 6

# Paths that the error about a closure that is too large names.
_MOST_NAMED_PATHS = 5

# Bytes. containerd and Docker accept no larger config or manifest (4 MiB); nixery's manifests are always
# smaller than the config.
_LARGEST_CONFIG = 4 * 1024 * 1024


class _BlobsLostError(Exception):
    """Blobs of the image were deleted while it was built."""


@dataclass(frozen=True, slots=True)
class ImageBounds:
    """Limits of an image.

    Attributes:
        layers: of an image whose definition sets no number; includes the layer with the root file system.
        closure: bytes of its store paths (NAR size); ``None`` for no limit.
    """

    layers: int
    closure: int | None = None

    def require(self, closure: Closure) -> int:
        """Return the size of a closure in bytes (NAR size).

        Raises:
            ClosureTooLarge: it exceeds the limit.
        """
        size = sum(info.nar_size for info in closure)
        if self.closure is not None and size > self.closure:
            raise ClosureTooLarge(size, self.closure, _largest(closure))
        return size


class ImageBuilder:
    """Builds images; the caller checks the cache first."""

    def __init__(  # noqa: PLR0913, PLR0917 -- the whole data path comes together here
        self,
        evaluator: Evaluator,
        provider: Provider,
        layers: LayerPublisher,
        blobs: BlobStore,
        leases: Leases,
        closures: ImageClosures,
        popularity: Popularity,
        bounds: ImageBounds,
        creation_date: CreationDate,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._evaluator = evaluator
        self._provider = provider
        self._layers = layers
        self._blobs = blobs
        self._leases = leases
        self._closures = closures
        self._popularity = popularity
        self._bounds = bounds
        self._creation_date = creation_date
        self._clock = clock

    async def build(self, request: ImageRequest, pin: Pin, observe: Observe) -> Image:
        """Build and store an image; try again if something that it needs is deleted meanwhile.

        Raises:
            PackagesUnavailable: with every unavailable package.
            PackageSetChanged: it changed during the build.
            ClosureTooLarge: the image would exceed the limit.
            UnsafeContents: a package holds files that no image may have.
            BuildError: Nix cannot build it.
            StorageError: it cannot be stored.
        """
        retries = _Retries(self._provider, self._evaluator.source, pin)
        while True:
            try:
                async with retries.collector_paused() as resume_collector:
                    contents = await self._evaluator.contents(request, pin, indexed=retries.may_use_index)
                    packages = contents.packages
                    retries.relies_on_index = any(package.is_realised for package in packages)
                    observe(Evaluated(packages))

                    async with self._provider.provide(contents, observe, resume_collector) as provided:
                        closure = provided.closure
                        observe(Realised(len(closure), sum(info.nar_size for info in closure)))
                        self._bounds.require(closure)

                        budget = (contents.definition and contents.definition.layers) or self._bounds.layers
                        # The root file system takes one layer; even with a budget of 1, store paths have
                        # another one.
                        budget = max(1, budget - 1)
                        groups = await asyncio.to_thread(group_into_layers, closure, self._popularity, budget)
                        observe(Grouped(len(groups) + 1))

                        # The root file system is planned while the first layers are packed. It comes last,
                        # since it is the only layer that no other image shares.
                        publishing = asyncio.ensure_future(
                            self._layers.publish(groups, closure, provided.contents, observe)
                        )
                        planning = self._planned(request, contents, provided, publishing)
                        layers, root = await _both(publishing, planning)
                        await provided.keep_names()
                        if root.clashes:
                            observe(NamesClashed(root.clashes))
                        layers.append(await self._layers.publish_root(root, _installed(packages), observe))
                        observe(LayersComplete())

                    execution = execution_parameters(request, contents, root.tree)
                    # Side by side, since the client waits for all of them.
                    image, described = await _both(
                        self._store(request, pin, packages, execution, layers),
                        asyncio.to_thread(ImageClosure.of, request, contents, closure, groups),
                    )
                    digest = image.manifest.descriptor.digest
                    await _both(self._closures.keep(digest, described), self._evaluator.keep(request, pin))
                    observe(Stored(digest, len(layers)))
                    return image
            except (_BlobsLostError, WrongDeriver, WrongNames, RequestError, BuildError) as error:
                await retries.handle(error)

    async def _planned(
        self,
        request: ImageRequest,
        contents: Contents,
        provided: Provision,
        publishing: asyncio.Future[list[Layer]],
    ) -> RootFilesystem:
        outputs = await asyncio.to_thread(_outputs, request, contents, provided.closure)
        if not await provided.have_names(output.path for output in outputs):
            # They come with the contents of layers. If these fail, so does the image.
            await asyncio.wait((publishing,))
            publishing.result()
        return await asyncio.to_thread(_plan_root, request, contents, provided, outputs)

    async def _store(
        self,
        request: ImageRequest,
        pin: Pin,
        packages: Sequence[Package],
        execution: ExecutionParameters,
        layers: Sequence[Layer],
    ) -> Image:
        created = self._creation_date.of(pin, self._clock())
        # Off the event loop: package authors wrote most of it.
        config, image = await asyncio.to_thread(
            _documents, request, pin, packages, execution, layers, created
        )
        # The manifests last: the image of a stored manifest is complete.
        await self._blobs.put(config.descriptor.digest, config.content)
        await asyncio.gather(*(self._blobs.put(m.descriptor.digest, m.content) for m in image.manifests))
        # Until now, a collector may have seen reused layers and documents as garbage.
        await self._leases.acquire(image.digests, (digest for digest, _ in image.parts))
        if not await are_there(self._blobs, image.parts):
            raise _BlobsLostError
        return image


def _documents(
    request: ImageRequest,
    pin: Pin,
    packages: Sequence[Package],
    execution: ExecutionParameters,
    layers: Sequence[Layer],
    created: int | None,
) -> tuple[Document, Image]:
    """Write the config and the manifests of an image.

    Raises:
        AnswerTooLarge: clients would not accept the config.
    """
    annotations = image_annotations(request, packages, pin)
    # A definition's own labels take precedence.
    labelled = replace(execution, labels={**annotations, **readable_labels(execution.labels)})
    config = image_config(request.platform.architecture, labelled, layers, created)
    if len(config.content) > _LARGEST_CONFIG:
        raise AnswerTooLarge("the config of the image, whose history names each store path,", _LARGEST_CONFIG)
    return config, Image(image_manifest(config, layers, annotations), docker_manifest(config, layers))


class _Retries:
    """Decides whether a build is tried again after an error.

    A new derivation is protected only while the process that wrote it runs. Nix's garbage collector may
    delete it in the hundredths of a second before the next process; then the next attempt pauses the
    collector.

    Attributes:
        may_use_index: whether the package index may name outputs without their derivation.
        relies_on_index: whether this attempt uses such outputs. If it fails, the next one evaluates.
    """

    def __init__(self, provider: Provider, source: PackageSource, pin: Pin) -> None:
        self._provider = provider
        self._source = source
        self._pin = pin
        self._collected = self._lost = 0
        self._wrong = False
        self.may_use_index = True
        self.relies_on_index = False

    def collector_paused(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        """Pause Nix's garbage collector if it has disturbed an attempt; the context yields what resumes it."""
        return self._provider.collector_paused() if self._collected else nullcontext(lambda: None)

    async def handle(
        self, error: _BlobsLostError | WrongDeriver | WrongNames | RequestError | BuildError
    ) -> None:
        """Return if the build is to be tried again; raise the error, or one that explains it, otherwise."""
        if self.relies_on_index and isinstance(error, WrongDeriver | PathsCollected | BuildFailed):
            self.may_use_index = self.relies_on_index = False
            return
        match error:
            case WrongNames() if not self._wrong:
                self._wrong = True
                return
            case WrongNames():
                raise StorageError(
                    "names of store paths in the storage are wrong again; does another process change its records?"
                ) from None
            case PathsCollected() if self._collected + 1 < _REALISE_ATTEMPTS:
                self._collected += 1
                return
            # A builder, too, can lose its output (seen with Nix 2.8); otherwise the next attempt fails alike.
            case BuildFailed(disturbed=True) if not self._collected:
                self._collected += 1
                return
            case _BlobsLostError() if self._lost + 1 < _STORE_ATTEMPTS:
                self._lost += 1
                return
            case _BlobsLostError():
                raise StorageError(
                    "stored blobs keep disappearing; is another process deleting files in the storage?"
                ) from None
            case WrongDeriver():
                raise AssertionError("an attempt without the index has no outputs of it")
        # The cause may have been cached, or fixed since the source was read.
        await self._source.confirm(self._pin)
        raise error


async def _both(first: Awaitable[First], second: Awaitable[Second]) -> tuple[First, Second]:
    """Wait for two results, for both even if one fails: store paths stay protected as long as one is read."""
    one, other = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(one, BaseException):
        raise one
    if isinstance(other, BaseException):
        raise other
    return one, other


def _largest(closure: Closure) -> tuple[tuple[str, int], ...]:
    infos = sorted(closure, key=lambda info: (-info.nar_size, info.path.base_name))
    return tuple((info.path.base_name, info.nar_size) for info in infos[:_MOST_NAMED_PATHS])


def _outputs(request: ImageRequest, contents: Contents, closure: Closure) -> set[InstalledOutput]:
    """The outputs at the image's root: of its packages, and of dependencies that packages expect there."""
    installed, expectant = set(), []
    for package in contents.packages:
        implicit = package.requested_name in request.optional_packages
        for path in package.outputs.values():
            installed.add(InstalledOutput(path, package.name, package.priority, implicit))
            if package.fhs and not implicit:
                expectant.append(path)
    dependencies = closure.reachable(expectant) - {output.path for output in installed}
    return installed | {
        InstalledOutput(path, path.package_name, DEFAULT_PRIORITY, implicit=True) for path in dependencies
    }


def _plan_root(
    request: ImageRequest, contents: Contents, provided: Provision, outputs: Collection[InstalledOutput]
) -> RootFilesystem:
    files = ClosureFiles((info.path for info in provided.closure), provided.contents)
    root = plan_root_filesystem(outputs, files)
    if any(package.fhs for package in contents.packages):
        copy_programs_beside_their_files(root.tree, files)
    add_system_files(root.tree, files, contents.os_release)
    add_dpkg_database(root.tree, files)
    add_declared_accounts(root.tree, files)
    add_loader(root.tree, files, request.platform)
    user = (0, 0)
    if contents.definition is not None:
        defined = contents.definition.execution
        user = add_user_files(root.tree, files, defined.user, defined.working_directory, defined.volumes)
    add_passwords(root.tree)
    add_nix_database(root.tree, files, provided.closure, contents.store_paths, user)
    complete_below_usr(root.tree)
    return root


def _installed(packages: Sequence[Package]) -> list[str]:
    return sorted({path.name for package in packages for path in package.outputs.values()})
