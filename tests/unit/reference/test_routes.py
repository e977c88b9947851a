"""The reference of routes agrees with the routers."""

from __future__ import annotations

import re

import pytest

from nixery.server import api, binary_cache
from nixery.server.access_control import TOKEN_PATH
from nixery.server.health import METRICS, PATHS
from nixery.server.login import PATHS as LOGIN_PATHS
from nixery.server.pages import pages
from nixery.server.registry import _RESOURCE
from scripts.reference.routes import render

ROUTES = re.findall(r"^\| `(GET|POST) (\S+)` \| (\S.*) \| ([0-9, ]+) \|$", render(), re.MULTILINE)

# Paths that the registry compares as a whole.
WHOLE = {"/v2/", "/v2/_catalog"}


def example(path: str) -> str:
    values = {"build": "0123", "hash": "0" * 32, "nar-hash": "0" * 64}
    return re.sub(r"\{([a-z-]+)\}", lambda found: values.get(found[1], "a"), path)


@pytest.mark.parametrize(("method", "path", "answer", "statuses"), ROUTES)
def test_a_router_has_the_route(method: str, path: str, answer: str, statuses: str) -> None:
    one = example(path)
    if path in {TOKEN_PATH, *LOGIN_PATHS}:
        assert method in ("GET", "POST")
        return
    if path in WHOLE | PATHS | {METRICS}:
        assert method == "GET"
    elif path.startswith("/v2/"):
        assert _RESOURCE.fullmatch(one)
    elif path.startswith(binary_cache.PREFIX):
        assert binary_cache._ROUTE.fullmatch(one)
    else:
        router = api._ROUTE if path.startswith("/api/") else pages._ROUTE
        assert router.fullmatch(one)
    assert answer
    assert ("202" in statuses) is (method == "POST")


def test_every_kind_of_route_is_listed() -> None:
    paths = {path for _, path, *_ in ROUTES}
    pages_and_api = {
        "/",
        "/images",
        "/packages",
        "/api/v1/packages",
        "/api/v1/builds",
        "/api/v1/index",
        "/api/v1/meta-packages",
        "/meta-packages",
        "/builds",
        "/help",
        "/docs",
        "/builds/{build}/log",
    }
    assert paths >= WHOLE | PATHS | {METRICS} | pages_and_api
    for kind in ("manifests", "blobs", "referrers", "tags"):
        assert any(f"/{kind}/" in path for path in paths)
    groups = {*api._ROUTE.groupindex, *pages._ROUTE.groupindex} - {
        "list",
        "compose",
        "events",
        "cancel",
        "log",
        "search",
        "meta",
        "page",
    }
    assert groups == set(re.findall(r"\{(package|build|image|file|digest)\}", " ".join(paths)))
