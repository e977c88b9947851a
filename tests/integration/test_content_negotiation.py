"""The same image for clients of both families of media types."""

from __future__ import annotations

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import DOCKER_MANIFEST, MANIFEST, RegistryClient

URL = "/v2/hello/manifests/latest"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


@pytest.mark.parametrize(
    "accept", [DOCKER_MANIFEST, f"{DOCKER_LIST}, {DOCKER_MANIFEST}", f"{DOCKER_MANIFEST};q=0.5, */*"]
)
def test_a_client_that_accepts_only_docker_types_gets_them(client: RegistryClient, accept: str) -> None:
    response = client.get(URL, {"Accept": accept})
    assert response.headers["content-type"] == response.json()["mediaType"] == DOCKER_MANIFEST
    assert b"vnd.oci" not in response.body
    ours = client.get(URL, {"Accept": MANIFEST}).json()
    assert [layer["digest"] for layer in response.json()["layers"]] == [
        layer["digest"] for layer in ours["layers"]
    ]


@pytest.mark.parametrize("accept", [MANIFEST, f"{DOCKER_MANIFEST}, {MANIFEST}", "*/*", "text/plain"])
def test_other_clients_get_oci_types(client: RegistryClient, accept: str) -> None:
    assert client.get(URL, {"Accept": accept}).headers["content-type"] == MANIFEST


def test_a_docker_manifest_is_served_by_digest_with_any_accept_header(client: RegistryClient) -> None:
    docker = client.get(URL, {"Accept": DOCKER_MANIFEST})
    again = client.get(f"/v2/hello/manifests/{docker.headers['docker-content-digest']}", {"Accept": MANIFEST})
    assert (again.status, again.body) == (200, docker.body)
    assert again.headers["content-type"] == DOCKER_MANIFEST


@pytest.mark.parametrize("more", [{}, {"NIXERY_PLATFORMS": "linux/amd64,linux/arm64"}])
@pytest.mark.parametrize("accept", [DOCKER_MANIFEST, f"{DOCKER_LIST}, {DOCKER_MANIFEST}", "*/*"])
def test_zstd_layers_have_oci_types_only(
    start_server: StartServer, more: dict[str, str], accept: str
) -> None:
    client = start_server(NIXERY_COMPRESSION="zstd", **more).client
    for _ in range(2):  # built, and from the cache
        response = client.get(URL, {"Accept": accept})
        assert response.status == 200
        assert b"vnd.docker" not in response.body
        assert response.headers["content-type"] == response.json()["mediaType"]
    manifest = client.get(URL, {"Accept": DOCKER_MANIFEST}).json()
    assert {layer["mediaType"] for layer in manifest["layers"]} == {
        "application/vnd.oci.image.layer.v1.tar+zstd"
    }
