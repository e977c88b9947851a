"""What a rule costs: every node pulls its images, then again after each round of updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nixery.closure.graph import Closure, PathInfo
from nixery.closure.store_path import StorePath
from scripts.bench_layers.fleet import Fleet, FleetImage

# Groups the closure of an image that refers to the given paths; the last argument is the number of layers.
Rule = Callable[[Closure, Sequence[StorePath], int], Iterable[Sequence[StorePath]]]


@dataclass(frozen=True, slots=True)
class Score:
    """Bytes, uncompressed.

    Attributes:
        pulled: by all nodes.
        stored: by the registry, which deletes nothing.
    """

    pulled: int
    stored: int


class _Layers:
    """Numbers for layers, and their sizes: a layer is what paths it holds."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[StorePath, ...], int] = {}
        self.sizes: list[int] = []

    def number(self, paths: Iterable[StorePath], closure: Closure) -> int:
        key = tuple(sorted(paths))
        if key not in self._numbers:
            self._numbers[key] = len(self.sizes)
            self.sizes.append(sum(closure[path].nar_size for path in key))
        return self._numbers[key]


def simulate(rule: Rule, budget: int, fleet: Fleet, states: Sequence[Sequence[PathInfo]]) -> Score:
    """Play the fleet's life through.

    Args:
        rule: what groups paths.
        budget: the most layers of an image, without the one that is the image's own.
        fleet: who runs what.
        states: the store path of each derivation, at the beginning and after each round of updates.
    """
    layers = _Layers()
    held: list[set[int]] = [set() for _ in fleet.nodes]
    pulled = 0
    known: dict[int, tuple[tuple[StorePath, ...], list[int]]] = {}
    for infos in states:
        for node, images in zip(held, fleet.nodes, strict=True):
            for image in images:
                requested = tuple(infos[number].path for number in fleet.images[image].requested)
                # A path's hash covers what it depends on: where no requested path changed, nothing did.
                if image not in known or known[image][0] != requested:
                    known[image] = requested, _grouped(rule, budget, fleet.images[image], infos, layers)
                for layer in known[image][1]:
                    if layer not in node:
                        node.add(layer)
                        pulled += layers.sizes[layer]
    return Score(pulled, sum(layers.sizes))


def _grouped(
    rule: Rule, budget: int, image: FleetImage, infos: Sequence[PathInfo], layers: _Layers
) -> list[int]:
    closure = Closure(infos[number] for number in image.closure)
    requested = [infos[number].path for number in image.requested]
    return [layers.number(paths, closure) for paths in rule(closure, requested, budget)]
