from __future__ import annotations

import pytest

from tests.integration.conftest import Pull, StartServer
from tests.support.client import RegistryClient, Response
from tests.support.nix import NixSpy

UNKNOWN = f"sha256:{'0' * 64}"
EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
def test_the_api_version_is_answered(client: RegistryClient, path: str) -> None:
    assert client.get(path).status == 200


def test_manifest_headers(client: RegistryClient, pull: Pull) -> None:
    image = pull("hello")
    response = client.manifest("hello")
    assert response.headers["content-type"] == image.manifest_document["mediaType"]
    assert response.headers["docker-content-digest"] == image.digest
    assert response.headers["content-length"] == str(len(image.manifest))
    assert "content-encoding" not in response.headers


def test_manifest_by_digest_is_the_one_by_tag(client: RegistryClient, pull: Pull) -> None:
    image = pull("hello")
    response = client.manifest("hello", image.digest)
    assert (response.status, response.body) == (200, image.manifest)
    assert response.headers["docker-content-digest"] == image.digest


def test_blob_headers(client: RegistryClient, pull: Pull) -> None:
    for descriptor in pull("hello").manifest_document["layers"]:
        response = client.blob("hello", descriptor["digest"])
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.headers["docker-content-digest"] == descriptor["digest"]
        assert response.headers["content-length"] == str(descriptor["size"])
        assert "content-encoding" not in response.headers


def test_blobs_are_not_compressed_on_the_way(client: RegistryClient, pull: Pull) -> None:
    image = pull("hello")
    path = f"/v2/hello/blobs/{image.manifest_document['config']['digest']}"
    response = client.get(path, {"Accept-Encoding": "zstd, gzip, deflate"})
    assert response.body == image.config


def compared(response: Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name not in {"date", "x-request-id"}}


@pytest.mark.parametrize(
    "what", ["tag", "digest", "config", "layer", "missing blob", "missing package", "bad name"]
)
def test_head_is_get_without_a_body(client: RegistryClient, pull: Pull, what: str) -> None:
    image = pull("hello")
    path = {
        "tag": "/v2/hello/manifests/latest",
        "digest": f"/v2/hello/manifests/{image.digest}",
        "config": f"/v2/hello/blobs/{image.manifest_document['config']['digest']}",
        "layer": f"/v2/hello/blobs/{image.layer_digests[0]}",
        "missing blob": f"/v2/hello/blobs/{UNKNOWN}",
        "missing package": "/v2/nosuchpackage/manifests/latest",
        "bad name": "/v2/UPPER/manifests/latest",
    }[what]
    get, head = client.get(path), client.head(path)
    assert head.status == get.status
    assert head.body == b""
    assert compared(head) == compared(get)


@pytest.mark.parametrize("digest", [UNKNOWN, EMPTY])
def test_unknown_blob(client: RegistryClient, digest: str) -> None:
    response = client.blob("hello", digest)
    assert response.status == 404
    assert response.error["code"] == "BLOB_UNKNOWN"


def test_unknown_manifest_digest(client: RegistryClient) -> None:
    response = client.manifest("hello", UNKNOWN)
    assert response.status == 404
    assert response.error["code"] == "MANIFEST_UNKNOWN"


def test_layers_and_configs_are_not_manifests(client: RegistryClient, pull: Pull) -> None:
    image = pull("hello")
    for digest in (image.manifest_document["config"]["digest"], image.layer_digests[0]):
        assert client.manifest("hello", digest).status == 404


@pytest.mark.parametrize(
    "digest", ["sha256:baddigeststring", f"sha256:{'A' * 64}", f"md5:{'0' * 32}", "sha256:"]
)
@pytest.mark.parametrize("kind", ["blobs", "manifests"])
def test_malformed_digest(client: RegistryClient, kind: str, digest: str) -> None:
    response = client.get(f"/v2/hello/{kind}/{digest}")
    assert response.status in (400, 404)
    assert response.error["code"] == "DIGEST_INVALID"


@pytest.mark.parametrize("tag", [".INVALID_MANIFEST_NAME", "-tag", "t" * 129, "a%20b"])
def test_malformed_tag(client: RegistryClient, tag: str) -> None:
    response = client.get(f"/v2/hello/manifests/{tag}")
    assert response.status == 404
    assert response.error["code"] == "MANIFEST_UNKNOWN"


@pytest.mark.parametrize(
    "accept", ["*/*", "application/vnd.docker.distribution.manifest.v2+json", "text/html", None]
)
def test_accept_is_a_hint(client: RegistryClient, accept: str | None) -> None:
    response = client.get("/v2/hello/manifests/latest", {"Accept": accept} if accept else {})
    assert response.status == 200
    assert response.headers["content-type"] == response.json()["mediaType"]


def test_query_of_containerd_mirrors_is_ignored(client: RegistryClient, pull: Pull) -> None:
    image = pull("hello")
    assert client.get("/v2/hello/manifests/latest?ns=docker.io").body == image.manifest
    assert client.get(f"/v2/hello/blobs/{image.layer_digests[0]}?ns=docker.io").status == 200


def test_unknown_paths_are_not_found(client: RegistryClient) -> None:
    assert client.digest("hello")
    for path in (
        "/v2/hello",
        "/v2/hello/unknown/latest",
        "/v2/manifests/latest",
        "/other",
        "/v2/hello/tags/list%0A",
        "/v2/hello/tags/other",
    ):
        response = client.get(path)
        assert response.status == 404, path
        assert response.errors


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v2/hello/manifests/latest"),
        ("PUT", "/v2/hello/manifests/latest"),
        ("POST", "/v2/hello/blobs/uploads/"),
        ("PATCH", "/v2/hello/blobs/uploads/1"),
        ("DELETE", f"/v2/hello/blobs/{UNKNOWN}"),
    ],
)
def test_pushes_and_deletes_are_unsupported(client: RegistryClient, method: str, path: str) -> None:
    response = client.request(method, path)
    assert response.status == 405
    assert response.error["code"] == "UNSUPPORTED"


INVALID_NAMES = [
    "UPPER",
    "hello/Upper",
    "-hello",
    "hello-",
    "_hello",
    ".hello",
    "a..b",
    "a._b",
    "a___b",
    "a%2F%2Fb",
    "a//b",
    "a%20b",
    "a%0Ab",
    "%24%7Bthrow%7D",
    "caf%C3%A9",
    "%FF",
    "a" * 256,
    "arm64/amd64/hello",
]


def test_invalid_requests_never_reach_nix(start_server: StartServer, spy: NixSpy) -> None:
    client = start_server(**spy.environment()).client
    spy.forget()
    for name in INVALID_NAMES:
        response = client.get(f"/v2/{name}/manifests/latest")
        assert response.status in (400, 404), name
        assert response.error["code"] == "NAME_INVALID", name
    # cosign and clients that look for referrers request these for every image.
    for suffix in ("", ".sig", ".att", ".sbom"):
        response = client.get(f"/v2/hello/manifests/sha256-{'0' * 64}{suffix}")
        assert (response.status, response.error["code"]) == (404, "MANIFEST_UNKNOWN")
    for path in (f"manifests/{UNKNOWN}", f"blobs/{UNKNOWN}", "manifests/.invalid", "manifests/sha256:bad"):
        assert client.get(f"/v2/hello/{path}").status in (400, 404)
    for method in ("DELETE", "PUT", "POST", "PATCH"):
        assert client.request(method, "/v2/hello/manifests/latest").status == 405
    assert spy.calls == []
