"""The data path, top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from nixery.closure.graph import Closure
from nixery.errors import BuildError, RequestError
from nixery.image.request import ImageRequest
from nixery.layering.grouping import group_into_layers
from nixery.layering.popularity import Popularity
from nixery.nix.builder import Contents, NixBuilder, Package
from nixery.oci.docker import docker_manifest
from nixery.oci.image import ExecutionParameters, Layer, image_config, image_manifest
from nixery.packing.root_filesystem import InstalledOutput, RootFilesystem, plan_root_filesystem
from nixery.packing.user_files import add_user_files
from nixery.pipeline.evaluator import Evaluator
from nixery.pipeline.events import Evaluated, Grouped, LayersComplete, NamesClashed, Realised, Stored
from nixery.pipeline.execution import execution_parameters
from nixery.pipeline.image import Image
from nixery.pipeline.image_annotations import image_annotations
from nixery.pipeline.layer_publisher import LayerPublisher, Observe
from nixery.sources.source import Pin
from nixery.storage.store import BlobStore


class ImageBuilder:
    """Builds images, whatever is there already.

    Args:
        layer_budget: the most layers of an image whose definition does not say; the one with the root file system
            counts.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        nix: NixBuilder,
        layers: LayerPublisher,
        blobs: BlobStore,
        popularity: Popularity,
        layer_budget: int,
    ) -> None:
        self._evaluator = evaluator
        self._nix = nix
        self._layers = layers
        self._blobs = blobs
        self._popularity = popularity
        self._layer_budget = layer_budget

    async def build(self, request: ImageRequest, pin: Pin, observe: Observe) -> Image:
        """Build and store an image.

        Raises:
            PackagesUnavailable: with every package that cannot be had.
            PackageSetChanged: while it was looked at.
            BuildError: Nix cannot build it.
            StorageError: it cannot be stored.
        """
        try:
            return await self._build(request, pin, observe)
        except (RequestError, BuildError):
            # What is missing or broken may be remembered from a while ago, and may have been put right since.
            await self._evaluator.confirm(pin)
            raise

    async def _build(self, request: ImageRequest, pin: Pin, observe: Observe) -> Image:
        contents = await self._evaluator.contents(request, pin)
        packages = contents.packages
        observe(Evaluated(packages))

        requested = contents.store_paths
        async with self._nix.realise(contents.installables, observe):
            closure = await self._nix.closure(requested)
            observe(Realised(len(closure), sum(info.nar_size for info in closure)))

            budget = self._store_layers(contents)
            groups = await asyncio.to_thread(group_into_layers, closure, self._popularity, budget)
            root = await asyncio.to_thread(_plan_root, request, contents, closure)
            observe(Grouped(len(groups) + 1))
            if root.clashes:
                observe(NamesClashed(root.clashes))

            # The root comes last: it alone is this image's own, all before it can be shared.
            layers = await self._layers.publish(groups, closure, observe)
            layers.append(await self._layers.publish_root(root, _installed(packages), observe))
            observe(LayersComplete())
            execution = execution_parameters(request, contents, root.tree)
        image = await self._store_image(request, pin, packages, execution, layers)
        observe(Stored(image.manifest.descriptor.digest, len(layers)))
        return image

    def _store_layers(self, contents: Contents) -> int:
        layers = (contents.definition and contents.definition.layers) or self._layer_budget
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
        labelled = replace(execution, labels={**said, **execution.labels})
        config = image_config(request.platform.architecture, labelled, layers, pin.created)
        image = Image(image_manifest(config, layers, said), docker_manifest(config, layers))
        # The manifests last: what is there under a manifest's digest is complete.
        await self._blobs.put(config.descriptor.digest, config.content)
        await asyncio.gather(*(self._blobs.put(m.descriptor.digest, m.content) for m in image.manifests))
        return image


def _plan_root(request: ImageRequest, contents: Contents, closure: Closure) -> RootFilesystem:
    outputs = {
        InstalledOutput(
            path, package.name, package.priority, package.requested_name in request.optional_packages
        )
        for package in contents.packages
        for path in package.outputs.values()
    }
    root = plan_root_filesystem(outputs, [info.path for info in closure])
    if contents.definition is not None:
        defined = contents.definition.execution
        add_user_files(root.tree, defined.user, defined.working_directory, defined.volumes)
    return root


def _installed(packages: Sequence[Package]) -> list[str]:
    return sorted({path.name for package in packages for path in package.outputs.values()})
