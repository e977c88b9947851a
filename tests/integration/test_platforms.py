"""Names that stand for images of several platforms."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import DOCKER_MANIFEST, MANIFEST, RegistryClient, Response
from tests.support.nix import NixSpy
from tests.support.server import run_server, running_server

INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
BOTH = {"NIXERY_PLATFORMS": "linux/amd64,linux/arm64"}
AMD64 = {"architecture": "amd64", "os": "linux"}
ARM64 = {"architecture": "arm64", "os": "linux", "variant": "v8"}

CONTAINERD = f"{DOCKER_MANIFEST}, {DOCKER_INDEX}, {MANIFEST}, {INDEX}, */*"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, settings: Mapping[str, str]) -> Iterator[RegistryClient]:
    with running_server(tmp_path_factory.mktemp("platforms"), {**settings, **BOTH}) as server:
        yield server.client
        assert "Traceback" not in server.log


def manifest(client: RegistryClient, name: str, accept: str | None = None) -> Response:
    headers = {} if accept is None else {"Accept": accept}
    return client.get(f"/v2/{name}/manifests/latest", headers)


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (CONTAINERD, INDEX),
        (f"{MANIFEST}, {INDEX}", INDEX),
        ("*/*", INDEX),
        (f"{DOCKER_MANIFEST}, {DOCKER_INDEX}", DOCKER_INDEX),
        (f"{DOCKER_MANIFEST}, {DOCKER_INDEX}, */*", DOCKER_INDEX),
        # A client that does not accept indexes gets the first platform.
        (MANIFEST, MANIFEST),
        (DOCKER_MANIFEST, DOCKER_MANIFEST),
        (None, MANIFEST),
        ("text/html", MANIFEST),
    ],
)
def test_the_accept_header_chooses_index_or_manifest(
    client: RegistryClient, accept: str | None, media_type: str
) -> None:
    response = manifest(client, "hello", accept)
    assert response.status == 200
    assert response.headers["content-type"] == media_type
    document = response.json()
    assert document["mediaType"] == media_type
    digest = f"sha256:{hashlib.sha256(response.body).hexdigest()}"
    assert response.headers["docker-content-digest"] == digest
    by_digest = client.get(f"/v2/hello/manifests/{digest}")
    assert (by_digest.body, by_digest.headers["content-type"]) == (response.body, media_type)


@pytest.mark.parametrize(("index", "inside"), [(INDEX, MANIFEST), (DOCKER_INDEX, DOCKER_MANIFEST)])
def test_the_index_leads_to_the_image_of_each_platform(
    client: RegistryClient, index: str, inside: str
) -> None:
    document = manifest(client, "shell/hello", index).json()
    assert document["schemaVersion"] == 2
    assert [entry["platform"] for entry in document["manifests"]] == [AMD64, ARM64]
    for entry, name in zip(document["manifests"], ("amd64/shell/hello", "arm64/shell/hello"), strict=True):
        response = client.get(f"/v2/shell/hello/manifests/{entry['digest']}")
        assert entry["mediaType"] == inside == response.headers["content-type"]
        assert entry["size"] == len(response.body)
        # A name with a platform is the image of that platform.
        assert response.body == manifest(client, name, inside).body
        config = client.get(f"/v2/shell/hello/blobs/{response.json()['config']['digest']}").json()
        platform = {key: config[key] for key in ("architecture", "os", "variant") if key in config}
        assert platform == entry["platform"]


def test_a_name_with_a_platform_has_no_index(client: RegistryClient) -> None:
    assert manifest(client, "arm64/hello", CONTAINERD).headers["content-type"] == MANIFEST


def test_the_order_of_packages_does_not_matter(client: RegistryClient) -> None:
    assert manifest(client, "left/hello", INDEX).body == manifest(client, "hello/left", INDEX).body


def layers(client: RegistryClient, name: str) -> set[str]:
    return {layer["digest"] for layer in manifest(client, name, MANIFEST).json()["layers"]}


def test_platforms_share_equal_layers(client: RegistryClient) -> None:
    amd64, arm64 = layers(client, "amd64/data/hello"), layers(client, "arm64/data/hello")
    assert amd64 & arm64
    assert amd64 != arm64


def test_head_has_the_headers_of_get(client: RegistryClient) -> None:
    for accept in (CONTAINERD, MANIFEST):
        head = client.request("HEAD", "/v2/hello/manifests/latest", {"Accept": accept})
        get = manifest(client, "hello", accept)
        assert head.body == b""
        for header in ("content-type", "content-length", "docker-content-digest", "etag", "vary"):
            assert head.headers[header] == get.headers[header]


def test_the_tag_is_listed(client: RegistryClient) -> None:
    manifest(client, "greeting", INDEX)
    assert client.get("/v2/greeting/tags/list").json()["tags"] == ["latest"]


def test_a_platform_that_fails_fails_the_tag(client: RegistryClient) -> None:
    response = manifest(client, "onlyamd64", INDEX)
    assert response.status == 404
    assert response.error["code"] == "MANIFEST_UNKNOWN"
    assert response.error["message"].startswith("linux/arm64: packages not available: onlyamd64")
    assert response.error["detail"]["packages"][0]["name"] == "onlyamd64"
    assert manifest(client, "amd64/onlyamd64", INDEX).status == 200
    failed = manifest(client, "failsonarm64", INDEX)
    assert failed.status == 422
    assert failed.error["message"].startswith("linux/arm64: building ")
    assert "failsonarm64" in failed.error["message"]
    assert "no arms" in failed.error["detail"]["log"]


def test_an_error_of_all_platforms_is_reported_once(client: RegistryClient) -> None:
    message = manifest(client, "nosuch", INDEX).error["message"]
    assert message == "packages not available: nosuch (missing)"


def test_repeated_requests_ask_nix_nothing(start_server: StartServer, spy: NixSpy) -> None:
    server = start_server(**BOTH, **spy.environment())
    first = manifest(server.client, "hello", INDEX)
    spy.forget()
    assert manifest(server.client, "hello", INDEX).body == first.body
    assert manifest(server.client, "arm64/hello", INDEX).status == 200
    assert spy.calls == []
    assert server.stop() == 0
    restarted = start_server(**BOTH, **spy.environment())
    spy.forget()
    assert manifest(restarted.client, "hello", INDEX).body == first.body
    assert spy.calls == []


def platforms(response: Response) -> list[dict[str, Any]]:
    return [entry["platform"] for entry in response.json()["manifests"]]


@pytest.mark.parametrize("name", ["onlyamd64", "failsonarm64"])
def test_an_optional_platform_may_be_missing(start_server: StartServer, spy: NixSpy, name: str) -> None:
    client = start_server(**BOTH, NIXERY_PLATFORMS_OPTIONAL="linux/arm64", **spy.environment()).client
    assert platforms(manifest(client, name, INDEX)) == [AMD64]
    assert platforms(manifest(client, "hello", INDEX)) == [AMD64, ARM64]
    spy.forget()
    # The missing platform is cached: it is not tried again for each request.
    assert platforms(manifest(client, name, INDEX)) == [AMD64]
    assert spy.calls == []
    # A request for that platform alone gets its error.
    assert manifest(client, f"arm64/{name}", INDEX).status in (404, 422)


def test_a_name_without_any_platform_is_an_error(start_server: StartServer) -> None:
    client = start_server(**BOTH, NIXERY_PLATFORMS_OPTIONAL="linux/arm64, linux/amd64").client
    assert manifest(client, "nosuch", INDEX).status == 404


def test_clients_without_indexes_get_the_first_platform(start_server: StartServer) -> None:
    client = start_server(NIXERY_PLATFORMS="linux/arm64,linux/amd64").client
    assert platforms(manifest(client, "hello", INDEX)) == [ARM64, AMD64]
    assert manifest(client, "hello", MANIFEST).body == manifest(client, "arm64/hello", MANIFEST).body


def test_a_single_platform_is_the_plain_image(start_server: StartServer) -> None:
    client = start_server(NIXERY_PLATFORMS="linux/arm64").client
    assert manifest(client, "hello", CONTAINERD).body == manifest(client, "arm64/hello", CONTAINERD).body


def test_the_default_platform_is_the_one_that_nix_builds_for(
    start_server: StartServer, settings: Mapping[str, str]
) -> None:
    configuration = {"NIX_CONFIG": "system = aarch64-linux"}
    client = start_server(**configuration).client
    config = client.pull("hello").config_document
    assert config["architecture"] == "arm64"
    assert settings


def test_unknown_platforms_are_settings_errors(settings: Mapping[str, str], tmp_path: Path) -> None:
    ended = run_server({**settings, "NIXERY_PLATFORMS": "linux/amd64,linux/s390x"}, tmp_path)
    assert ended.returncode == 2
    assert "NIXERY_PLATFORMS is wrong: 'linux/s390x' is not a supported platform" in ended.stderr
    assert "supported: linux/amd64, linux/arm64" in ended.stderr
