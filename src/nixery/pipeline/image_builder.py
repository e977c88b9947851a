"""The data path, top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from nixery.closure.graph import Closure
from nixery.errors import NixeryError
from nixery.image.request import ImageRequest
from nixery.layering.grouping import group_into_layers
from nixery.layering.popularity import Popularity
from nixery.nix.builder import NixBuilder, Package
from nixery.oci.docker import docker_manifest
from nixery.oci.image import Document, Layer, image_config, image_manifest
from nixery.packing.root_filesystem import InstalledOutput, RootFilesystem, plan_root_filesystem
from nixery.pipeline.events import BuildObserver, Evaluated, Failed, NamesClashed, Realised, Stored
from nixery.pipeline.execution import execution_parameters
from nixery.pipeline.layer_publisher import LayerPublisher, Observe
from nixery.pipeline.single_flight import SingleFlight
from nixery.storage.store import BlobStore

# Layers in an image, the one with the root file system included. Docker's overlay2 stops at about 125; the rest is
# for those who build on top of our images.
LAYER_BUDGET = 94


@dataclass(frozen=True, slots=True)
class Image:
    """A stored image: the same config and layers under two manifests.

    Attributes:
        manifest: in OCI's media types.
        docker_manifest: in Docker's.
    """

    manifest: Document
    docker_manifest: Document


class ImageBuilder:
    """Builds images; identical requests at the same time share one build."""

    def __init__(
        self,
        nix: NixBuilder,
        layers: LayerPublisher,
        blobs: BlobStore,
        popularity: Popularity,
        observer: BuildObserver,
    ) -> None:
        self._nix = nix
        self._layers = layers
        self._blobs = blobs
        self._popularity = popularity
        self._observer = observer
        self._in_flight: SingleFlight[ImageRequest, Image] = SingleFlight()

    async def image(self, request: ImageRequest) -> Image:
        """Return the requested image, after everything in it is stored.

        The build goes on if the caller is cancelled.

        Raises:
            PackagesUnavailable: with every package that cannot be had.
            BuildError: Nix cannot build it.
            StorageError: it cannot be stored.
            ShuttingDown: the builder was closed before the build ended.
        """
        return await self._in_flight.run(request, partial(self._observed_build, request))

    async def close(self) -> None:
        """End all builds, and the Nix processes they started."""
        await asyncio.gather(self._layers.close(), self._in_flight.close())

    async def _observed_build(self, request: ImageRequest) -> Image:
        try:
            return await self._build(request, partial(self._observer.observe, request))
        except NixeryError as error:
            self._observer.observe(request, Failed(error))
            raise

    async def _build(self, request: ImageRequest, observe: Observe) -> Image:
        packages = await self._nix.evaluate(request)
        observe(Evaluated(packages))

        requested = sorted({path for package in packages for path in package.outputs.values()})
        async with self._nix.realise(packages):
            closure = await self._nix.closure(requested)
            observe(Realised(len(closure), sum(info.nar_size for info in closure)))

            groups = await asyncio.to_thread(
                group_into_layers, closure, requested, self._popularity, LAYER_BUDGET - 1
            )
            root = await asyncio.to_thread(_plan_root, packages, closure)
            if root.clashes:
                observe(NamesClashed(root.clashes))

            # The root comes last: it alone is this image's own, all before it can be shared.
            layers = await self._layers.publish(groups, closure, observe)
            layers.append(await self._layers.publish_root(root, _installed(packages), observe))
        return await self._store_image(request, packages, root, layers, observe)

    async def _store_image(
        self,
        request: ImageRequest,
        packages: Sequence[Package],
        root: RootFilesystem,
        layers: Sequence[Layer],
        observe: Observe,
    ) -> Image:
        execution = execution_parameters(request, packages, root.tree)
        config = image_config(request.platform.architecture, execution, layers)
        image = Image(image_manifest(config, layers), docker_manifest(config, layers))
        # The manifests last: what is there under a manifest's digest is complete.
        for document in (config, image.docker_manifest, image.manifest):
            await self._blobs.put(document.descriptor.digest, document.content)
        observe(Stored(image.manifest.descriptor.digest, len(layers)))
        return image


def _plan_root(packages: Sequence[Package], closure: Closure) -> RootFilesystem:
    outputs = {
        InstalledOutput(path, package.name, package.priority)
        for package in packages
        for path in package.outputs.values()
    }
    return plan_root_filesystem(outputs, [info.path for info in closure])


def _installed(packages: Sequence[Package]) -> list[str]:
    return sorted({path.name for package in packages for path in package.outputs.values()})
