"""Clients pull fifty layers from a server with a bucket: by redirects to the bucket, and through the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

import pytest

from tests.acceptance.conftest import RUNNING, server_with_debian
from tests.acceptance.test_clients import MANY_LAYERS
from tests.support.client import Response
from tests.support.file_systems import short_lived_directory
from tests.support.object_stores import ObjectStore
from tests.support.server import HOST, Server

# Layers of the image: the maximum, since it has more store paths.
BUDGET = 50

# The server itself sends blobs of up to this many bytes.
SMALL = 64 * 1024

Delivery = Literal["redirect", "proxy"]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("on-disk")
    with server_with_debian(directory, directory / "storage", NIXERY_LAYER_BUDGET=f"{BUDGET}") as running:
        yield running


@pytest.fixture(scope="module", params=["redirect", "proxy"])
def in_bucket(
    request: pytest.FixtureRequest, bucket: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, ObjectStore, Delivery]]:
    """The first server builds into the bucket, the second one serves from it."""
    directory = tmp_path_factory.mktemp("in-bucket")
    settings = {**bucket.settings, "NIXERY_BLOB_DELIVERY": request.param, "NIXERY_LAYER_BUDGET": f"{BUDGET}"}
    with server_with_debian(directory, directory / "storage", **settings) as running:
        yield running, bucket, request.param
        assert running.stop() == 0
        assert "Traceback" not in running.log


@pytest.mark.parametrize("name", ["skopeo", "ctr"])
def test_fifty_layers(name: str, in_bucket: tuple[Server, ObjectStore, Delivery], on_disk: Server) -> None:
    server, bucket, delivery = in_bucket
    reference = f"{HOST}:{server.port}/{MANY_LAYERS}:latest"
    # Without layers of an earlier pull, which a client would not request.
    with (
        short_lived_directory(f"nixery-{name}-") as directory,
        RUNNING[name](directory, server.port) as client,
    ):
        client.pull(reference).expect_success()
        assert client.layers(reference) == BUDGET
        assert client.digest(reference) == on_disk.client.digest(MANY_LAYERS)
        assert (
            client.run(reference, "bash", "-c", "echo '{\"a\": [1, 2]}' | gzip | zcat | jq -c .a") == "[1,2]"
        )
    layers = server.client.manifest(MANY_LAYERS).json()["layers"]
    large = [layer for layer in layers if layer["size"] > SMALL]
    assert large
    for layer in large:
        answer = server.client.blob(MANY_LAYERS, layer["digest"])
        assert delivered(answer, bucket) == delivery


def delivered(answer: Response, bucket: ObjectStore) -> Delivery:
    if answer.status == 307:
        assert urlsplit(answer.headers["location"]).port == bucket.port
        return "redirect"
    assert answer.status == 200
    return "proxy"
