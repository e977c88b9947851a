"""How an image is divided into layers, by the rule that the package ``nixery.layering`` explains."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.conftest import Pull, StartServer
from tests.support.pulled_image import LayerBlob, PulledImage
from tests.validator.image_validator import validate


def packages(layer: LayerBlob) -> set[str]:
    """Names of the store paths in a layer, without hash and version."""
    names = (member.name for member in layer.members() if member.name.count("/") == 2)
    return {name.split("-", 1)[1].rpartition("-")[0] for name in names if name.startswith("nix/store/")}


def store_layers(image: PulledImage) -> list[set[str]]:
    return [packages(layer) for layer in image.layers[:-1]]


def test_within_the_budget_every_path_has_a_separate_layer(pull: Pull) -> None:
    layers = store_layers(pull("diamond"))
    assert all(len(layer) == 1 for layer in layers)
    assert {"diamond", "left", "right", "bottom"} <= set.union(*layers)


def test_images_share_layers(pull: Pull) -> None:
    one, both = pull("hello"), pull("hello/greeting")
    assert set(one.layer_digests[:-1]) < set(both.layer_digests)


def test_no_store_path_is_in_two_layers(pull: Pull) -> None:
    for name in ("shell/hello", "diamond", "left/right/diamond", "symlinks/diamond"):
        layers = store_layers(pull(name))
        assert sum(map(len, layers)) == len(set.union(*layers))


def test_layers_are_listed_by_rating(pull: Pull) -> None:
    assert store_layers(pull("big/hello"))[0] == {"big"}


def test_history_names_the_packages_of_each_layer(pull: Pull) -> None:
    image = pull("shell/diamond")
    history = image.config_document["history"]
    for layer, entry in zip(image.layers[:-1], history[:-1], strict=True):
        for package in packages(layer):
            assert package in entry["comment"]
    for package in ("diamond", "nano", "cacert"):
        assert package in history[-1]["comment"]


def test_popular_paths_come_first(start_server: StartServer, tmp_path: Path) -> None:
    popularity = tmp_path / "popularity.json"
    popularity.write_text(json.dumps({"bottom": 1_000_000}))
    # On one storage: an image cached without the data must not be served to a server that has it.
    without = validate(start_server().client.pull("big/diamond"))
    assert store_layers(without)[0] == {"big"}
    for url in (str(popularity), popularity.as_uri()):
        image = validate(start_server(NIX_POPULARITY_URL=url).client.pull("big/diamond"))
        assert store_layers(image)[0] == {"bottom"}


def test_the_layer_budget_is_exhausted_and_respected(start_server: StartServer, tmp_path: Path) -> None:
    popularity = tmp_path / "popularity.json"
    popularity.write_text(json.dumps({f"part{number}": 100 + number for number in range(100)}))
    image = validate(start_server(NIX_POPULARITY_URL=str(popularity)).client.pull("many"))
    assert len(image.layers) == 94
    assert len(image.filesystem.store_paths) == 103


def test_each_layer_budget_gives_a_different_image(start_server: StartServer) -> None:
    # On one storage: an image cached for one budget must not be served to a server with another.
    found = {
        budget: validate(start_server(NIXERY_LAYER_BUDGET=budget).client.pull("left/right"))
        for budget in ("94", "3", "2", "1")
    }
    assert len(found["94"].layers) > 3
    assert len(found["3"].layers) == 3
    # One layer for all store paths and one for the root.
    assert len(found["2"].layers) == len(found["1"].layers) == 2
    assert {"left", "right", "bottom"} <= store_layers(found["1"])[0]
