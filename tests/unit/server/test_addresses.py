from __future__ import annotations

import pytest

from nixery.image.platform import AMD64, ARM64
from nixery.server.clients import base_url, host, image_path
from nixery.server.http import Request


def asked(**headers: str) -> Request:
    return Request("GET", "/", {name.replace("_", "-"): value for name, value in headers.items()})


def test_the_host_is_what_the_client_calls_us() -> None:
    assert host(asked(host="registry.example:8080")) == "registry.example:8080"
    assert host(asked(host="[::1]:8080")) == "[::1]:8080"
    assert host(asked(host="inside:1", x_forwarded_host="outside.example, proxy")) == "outside.example"
    assert base_url(asked(host="a.example", x_forwarded_proto="https")) == "https://a.example"


@pytest.mark.parametrize(
    "told", ["", "a b", "evil/", "user@evil", "<script>", '"', "a..\n", "-a", "a:b", "a" * 300]
)
def test_what_is_no_host_is_none(told: str) -> None:
    assert host(asked(host=told)) == "localhost"
    assert host(asked(host="real", x_forwarded_host=told)) == "real"


def test_an_image_has_the_shortest_path_that_is_of_its_platform() -> None:
    assert image_path("shell/git", "linux/amd64", [AMD64]) == "shell/git"
    assert image_path("shell/git", "linux/arm64", [AMD64]) == "arm64/shell/git"
    assert image_path("shell/git", "linux/amd64", [AMD64, ARM64]) == "amd64/shell/git"
    assert image_path("amd64", "linux/amd64", [AMD64], "v1") == "amd64:v1"
