"""Classes of routes agree with what the router does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery.server.observation import OTHER, route_class
from nixery.server.registry import router

DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v2", "version"),
        ("/v2/", "version"),
        ("/v2/_catalog", "catalog"),
        ("/v2/_catalog/", "catalog"),
        ("/v2/a/manifests/latest", "manifest_by_tag"),
        ("/v2/shell/git/manifests/latest/", "manifest_by_tag"),
        (f"/v2/a/manifests/{DIGEST}", "manifest_by_digest"),
        (f"/v2/a/blobs/{DIGEST}", "blob"),
        (f"/v2/blobs/manifests/blobs/{DIGEST}", "blob"),
        (f"/v2/a/referrers/{DIGEST}", "referrer"),
        ("/v2/a/tags/list", "tags"),
        ("/v2/a/tags/other", OTHER),
        ("/v2/manifests/latest", OTHER),
        ("/v2x/a/manifests/latest", OTHER),
        ("/metrics", "metrics"),
        ("/healthz", "health"),
        ("/api/v1/packages", "api"),
        ("/", "page"),
        ("/images", "page"),
        ("/images/shell/git:latest", "page"),
        ("/builds/0123", "page"),
        ("/static/site.css", "page"),
        ("/favicon.ico", OTHER),
    ],
)
def test_examples(path: str, route: str) -> None:
    assert route_class(path) == route


PART = st.sampled_from(["v2", "a", "manifests", "blobs", "referrers", "tags", "list", "latest", DIGEST, ""])


@given(st.lists(PART, max_size=7).map("/".join).map("/v2/".__add__))
def test_as_the_router(path: str) -> None:
    match = router._RESOURCE.fullmatch(path)
    if match is None:
        assert route_class(path) in {"version", "catalog", OTHER}
    else:
        classes = {"manifests": "manifest_by_", "blobs": "blob", "referrers": "referrer", "tags": "tags"}
        assert route_class(path).startswith(classes[match["kind"]])


@given(st.text())
def test_there_are_few(path: str) -> None:
    known = (
        "manifest_by_tag manifest_by_digest blob tags catalog referrer version metrics health page api other"
    )
    assert route_class(path) in known.split()
    assert route_class(f"/{path}") in known.split()
