"""docs/reference/openapi.yaml names exactly the routes and errors that exist."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import nixery
from nixery.server.access_control import TOKEN_PATH
from nixery.server.api import Api, Builds, ImageDocuments, Packages
from nixery.server.errors import STATUS_AND_CODE
from nixery.server.health import METRICS, PATHS, Health
from nixery.server.login import PATHS as LOGIN_PATHS
from nixery.server.registry import Registry
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.permissions import Permissions
from nixery.telemetry.metrics import Metrics

SERVER = Path(nixery.__file__).parent / "server"

# Handlers of the paths that the router does not answer itself.
# For operators, beside the registry.
OTHERS = {"/healthz": Health.live, "/readyz": Health.ready, "/metrics": Health.metrics}
HANDLERS = {
    "/v2/_catalog": Discovery.catalog,
    "/v2/{name}/tags/list": Discovery.tags,
    "/v2/{name}/manifests/{reference}": Manifests.get,
    "/v2/{name}/blobs/{digest}": Blobs.get,
    "/v2/{name}/referrers/{digest}": Discovery.referrers,
    "/api/v1/packages": Packages.search,
    "/api/v1/packages/{package}": Packages.get,
    "/api/v1/names": Packages.check,
    "/api/v1/meta-packages": Packages.meta,
    "/api/v1/index": Packages.progress,
    "/api/v1/builds": Builds.recent,
    "/api/v1/builds/{build}": Builds.get,
    "/api/v1/builds/{build}/events": Builds.events,
    "/api/v1/images/{image}": ImageDocuments.get,
    "/api/v1/digests/{image}": ImageDocuments.digest,
}
POSTS = {"/api/v1/builds": Builds.begin, "/api/v1/builds/{build}/cancel": Builds.cancel}
PAGES = {
    "/",
    "/images",
    "/images/{image}",
    "/packages",
    "/meta-packages",
    "/packages/{package}",
    "/builds/{build}",
    "/builds",
    "/help",
    "/docs",
    "/openapi.json",
    "/builds/{build}/log",
    "/static/{file}",
}
# Of Nix's protocol, for which the server is optional.
CACHE = {
    "/nix-cache/nix-cache-info",
    "/nix-cache/public-key",
    "/nix-cache/{hash}.narinfo",
    "/nix-cache/nar/{hash}-{nar-hash}.nar",
}


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(
        (SERVER.parents[2] / "docs" / "reference" / "openapi.yaml").read_text()
    )
    return document


def test_every_route_is_described(description: dict[str, Any]) -> None:
    assert {path for path, item in description["paths"].items() if "get" in item} == {
        "/v2/",
        *HANDLERS,
        *OTHERS,
        *PAGES,
        *CACHE,
        TOKEN_PATH,
        *LOGIN_PATHS,
    }
    assert set(OTHERS) == {*PATHS, METRICS}
    for path in ("/v2/", *HANDLERS, *OTHERS, *PAGES, *CACHE, TOKEN_PATH, "/login", "/logout"):
        get, head = description["paths"][path]["get"], description["paths"][path]["head"]
        # HEAD answers as GET does, but for ranges (RFC 9110, 14.2) and for redirects to URLs that are signed
        # for GET.
        responses = {
            status: response
            for status, response in get["responses"].items()
            if status not in {"206", "307", "416"} or "206" not in get["responses"]
        }
        parameters = [
            one for one in get.get("parameters", ()) if one.get("name") not in {"Range", "If-Range"}
        ]
        assert (head["responses"], head.get("parameters", [])) == (responses, parameters), path


def test_every_post_is_described(description: dict[str, Any]) -> None:
    posts = {
        path
        for path, item in description["paths"].items()
        if "202" in item.get("post", {}).get("responses", ())
    }
    assert posts == set(POSTS)


def test_every_handler_has_a_path() -> None:
    """The components of the router have no other public methods that answer."""
    parts = {
        part
        for router in (Registry, Api)
        for name, part in typing.get_type_hints(router.__init__).items()
        if name != "return" and part is not Permissions  # which the handlers ask
    }
    methods = {
        method
        for part in parts
        for name, method in inspect.getmembers(part, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert methods == {*HANDLERS.values(), *POSTS.values()}


def test_other_routes_match_the_wired_applications() -> None:
    """Routes outside the registry are in the tables that the applications get."""
    health = Health({}, Metrics())
    for table in (
        health.admin_routes(),
        health.public_routes(private=True),
        health.public_routes(private=False),
    ):
        assert set(table) == set(OTHERS)


def literal_errors() -> Iterator[tuple[int, str]]:
    """Statuses and codes that handlers set themselves."""
    for source in SERVER.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "errors_body"
            ):
                match node.args:
                    case [ast.Constant(value=int(status)), ast.Constant(value=str(code)), *_]:
                        yield status, code


def responses(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: ANN401 -- JSON is anything
    """All responses in a part of a document, by status."""
    if isinstance(node, dict):
        yield from node.get("responses", {}).items()
        for child in node.values():
            yield from responses(child)


def test_every_error_is_described(description: dict[str, Any]) -> None:
    known = set(literal_errors()) | set(STATUS_AND_CODE.values())
    assert (405, "UNSUPPORTED") in known
    assert set(description["components"]["schemas"]["ErrorCode"]["enum"]) == {code for _, code in known}
    described: set[tuple[int, str]] = set()
    for status, response in responses(description["paths"]):
        found = response
        if "$ref" in response:
            found = description["components"]["responses"][response["$ref"].rpartition("/")[2]]
        described |= {(int(status), code) for code in re.findall(r"`([A-Z_]{6,})`", found["description"])}
    # They belong to no single path; the introduction describes them.
    for refused in (404, 414):
        assert f"{refused} `UNSUPPORTED`" in description["info"]["description"]
    described = {entry for entry in described if not entry[1].startswith(("NIX_", "NIXERY_"))} | {
        (404, "UNSUPPORTED"),
        (414, "UNSUPPORTED"),
    }
    assert described == known
