"""The same image has the same bytes with any cache contents and any number of workers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import RegistryClient
from tests.support.nix import PACKAGE_SETS, NixSpy
from tests.support.server import running_server
from tests.validator.image_validator import validate

NAMES = (
    "shell/hello/greeting/emptydirectory/hardlinks/symlinks/executables/longnames/bytenames/outputs/selfreference/diamond",
    "left/right",
    "arm64/hello",
    "clasha/clashb/users",
)


def test_same_bytes_from_empty_storage_with_any_number_of_workers(
    tmp_path: Path, settings: Mapping[str, str]
) -> None:
    images = []
    for number, workers in enumerate(("1", "2")):
        directory = tmp_path / str(number)
        with running_server(directory, {**settings, "NIXERY_PACKING_WORKERS": workers}) as server:
            images.append([validate(server.client.pull(name)) for name in NAMES])
    one_worker, two_workers = images
    assert [image.digest for image in two_workers] == [image.digest for image in one_worker]
    assert two_workers == one_worker


def test_zstd_has_the_same_bytes_with_any_number_of_workers(
    tmp_path: Path, settings: Mapping[str, str]
) -> None:
    digests = []
    for workers in ("1", "2"):
        chosen = {**settings, "NIXERY_PACKING_WORKERS": workers, "NIXERY_COMPRESSION": "zstd"}
        with running_server(tmp_path / workers, chosen) as server:
            digests.append([validate(server.client.pull(name)).digest for name in NAMES])
    assert digests[0] == digests[1]


def test_each_compression_has_its_own_images_with_the_same_archives(start_server: StartServer) -> None:
    ways: list[dict[str, str]] = [{}, {"NIXERY_COMPRESSION": "zstd"}, {"NIXERY_COMPRESSION_LEVEL": "1"}]
    clients = [start_server(**way).client for way in ways]
    for _ in range(2):
        images = [validate(client.pull("shell/diamond")) for client in clients]
        assert [{layer.is_zstd for layer in image.layers} for image in images] == [{False}, {True}, {False}]
        assert len({tuple(layer.archive for layer in image.layers) for image in images}) == 1
        assert len({image.digest for image in images}) == len(ways)


def test_a_restarted_server_serves_the_same_images_without_nix(
    start_server: StartServer, spy: NixSpy
) -> None:
    first = start_server()
    images = {name: validate(first.client.pull(name)) for name in NAMES}
    assert first.stop() == 0
    second = start_server(**spy.environment())
    spy.forget()
    for name, image in images.items():
        assert second.client.manifest(name, image.digest).body == image.manifest
    for name, image in images.items():
        assert second.client.pull(name) == image
    assert spy.calls == []


def test_an_image_rebuilt_from_cached_layers_is_the_same(start_server: StartServer) -> None:
    first = start_server()
    images = {name: first.client.pull(name) for name in NAMES}
    assert first.stop() == 0
    shutil.rmtree(first.storage / "records" / "images")
    second = start_server()
    for name, image in images.items():
        assert second.client.pull(name) == image
    assert "building" in second.log


def test_an_image_of_cached_and_new_layers_is_the_same(start_server: StartServer, tmp_path: Path) -> None:
    # Some layers are cached: the order of layers must not depend on it.
    cold = start_server(STORAGE_PATH=str(tmp_path / "cold")).client.pull("shell/diamond/hello/big")
    warm = start_server()
    for name in ("big", "nano/hello", "left"):
        warm.client.pull(name)
    assert warm.client.pull("shell/diamond/hello/big") == cold


def test_two_package_sets_share_a_storage(start_server: StartServer) -> None:
    clients = [start_server().client, start_server(NIXERY_PKGS_PATH=str(PACKAGE_SETS / "minimal")).client]
    for _ in range(2):
        images = [validate(client.pull("hello")) for client in clients]
        names = [{path.split("-", 1)[1] for path in image.filesystem.store_paths} for image in images]
        assert names == [{"hello-1.0", "iana-etc-1.0", "nss-cacert-1.0"}, {"hello-minimal-1.0"}]


@pytest.mark.parametrize("name", ["hello", "shell/diamond"])
def test_repeated_requests_have_one_digest(client: RegistryClient, name: str) -> None:
    assert len({client.digest(name) for _ in range(3)}) == 1
