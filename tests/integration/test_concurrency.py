"""Concurrent requests share builds, and no request waits for a build of another image."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.conftest import StartServer
from tests.integration.test_observability import value
from tests.support.client import InBackground
from tests.support.nix import NixSpy, wait_until
from tests.support.server import Server, running_server
from tests.validator.image_validator import validate


@pytest.fixture(scope="module")
def module_spy(tmp_path_factory: pytest.TempPathFactory) -> NixSpy:
    return NixSpy.install(tmp_path_factory.mktemp("concurrency") / "spy")


@pytest.fixture(scope="module")
def module_server(
    tmp_path_factory: pytest.TempPathFactory, module_spy: NixSpy, settings: Mapping[str, str]
) -> Iterator[Server]:
    with running_server(
        tmp_path_factory.mktemp("server"), {**settings, **module_spy.environment()}
    ) as server:
        yield server


@pytest.fixture
def watched(module_spy: NixSpy) -> NixSpy:
    """The spy of the module's server, without the calls of earlier tests."""
    module_spy.forget()
    return module_spy


def test_identical_requests_share_one_build(module_server: Server, watched: NixSpy) -> None:
    names = ["slow/hello", "hello/slow", "amd64/slow/hello", "slow/hello/slow"] * 2
    with ThreadPoolExecutor(len(names)) as threads:
        responses = list(threads.map(module_server.client.manifest, names))
    assert {response.status for response in responses} == {200}
    assert len({response.body for response in responses}) == 1
    assert len(watched.calls_of("nix-instantiate")) == 1
    assert len(watched.calls_of("nix-store", "--realise")) == 1


def test_heads_and_gets_share_one_build(module_server: Server, watched: NixSpy) -> None:
    # Like containerd: HEAD of the tag, then GET.
    path = "/v2/slowest/manifests/latest"
    with ThreadPoolExecutor(4) as threads:
        responses = list(
            threads.map(lambda method: module_server.client.request(method, path), ["HEAD", "GET"] * 2)
        )
    assert {response.status for response in responses} == {200}
    assert len({response.headers["docker-content-digest"] for response in responses}) == 1
    assert len(watched.calls_of("nix-store", "--realise")) == 1


def test_other_images_are_served_during_a_build(module_server: Server, watched: NixSpy) -> None:
    with watched.holding("--realise", "-slower-1.0"):
        slow = InBackground(module_server.client, "/v2/slower/manifests/latest").start()
        wait_until(lambda: bool(watched.calls_of("nix-store", "--realise")), "the build begins")
        assert module_server.client.get("/v2/").status == 200
        validate(module_server.client.pull("hello"))
        assert slow.is_running
    assert slow.result().status == 200


def test_a_returning_client_joins_its_build(module_server: Server, watched: NixSpy) -> None:
    joined = value(module_server, "nixery_builds_joined_total")
    path = "/v2/leisurely/manifests/latest"
    with watched.holding("--realise"):
        with socket.create_connection((module_server.client.host, module_server.client.port)) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: registry\r\n\r\n".encode())
            wait_until(lambda: bool(watched.calls_of("nix-store", "--realise")), "the build begins")
        again = InBackground(module_server.client, path).start()
        wait_until(lambda: value(module_server, "nixery_builds_joined_total") != joined, "it joins the build")
    assert again.result().status == 200
    assert len(watched.calls_of("nix-store", "--realise")) == 1
    assert len(watched.calls_of("nix-instantiate")) == 1


def test_images_with_common_layers_at_the_same_time(start_server: StartServer) -> None:
    client = start_server(NIXERY_PACKING_WORKERS="2").client
    names = ["hello", "hello/greeting", "greeting/hello/nano", "shell/hello", "big/hello", "big/greeting"]
    with ThreadPoolExecutor(len(names)) as threads:
        images = list(threads.map(lambda name: validate(client.pull(name)), names))
    assert [client.digest(name) for name in names] == [image.digest for image in images]


def test_images_that_differ_only_in_their_names(start_server: StartServer) -> None:
    # Neither package has files at the root, so the last layers of both images have the same content.
    names = ["singlefile", "anotherfile"] * 2
    for _ in range(4):
        server = start_server()
        with ThreadPoolExecutor(len(names)) as threads:
            images = list(threads.map(server.client.pull, names))
        for name, image in zip(names, images, strict=True):
            assert f"{name}-1.0" in image.config_document["history"][-1]["comment"].split()
        assert server.stop() == 0
        shutil.rmtree(server.storage / "records")


def test_servers_on_one_storage(start_server: StartServer) -> None:
    clients = [start_server().client, start_server().client]
    with ThreadPoolExecutor(4) as threads:
        images = list(threads.map(lambda client: validate(client.pull("shell/hello")), clients * 2))
    assert len({image.digest for image in images}) == 1
