"""Nixery's promises beyond the specification, from which other registries are exempt."""

from __future__ import annotations

import pytest

from tests.conformance.specification import ERROR_CODES
from tests.conformance.subject import UNKNOWN, UNKNOWN_NAME, Subject
from tests.support.client import Response

pytestmark = pytest.mark.promise


@pytest.mark.parametrize("accept", ["text/html", "application/json", ""])
def test_accept_is_a_hint(subject: Subject, accept: str) -> None:
    """A client that accepts none of the server's types still gets a manifest (RFC 9110, 12.5.1 allows it)."""
    response = subject.manifest(subject.tag, accept=accept)
    assert response.status == 200
    assert response.headers["content-type"] == response.json()["mediaType"]


def test_the_namespace_of_a_mirror_is_ignored(subject: Subject) -> None:
    """containerd names the original registry with ?ns=; a registry that is no mirror ignores it."""
    assert subject.manifest(f"{subject.tag}?ns=docker.io").status == 200


def test_head_has_the_headers_of_get(subject: Subject) -> None:
    """RFC 9110, 9.3.2 allows servers to omit some, but clients rely on them."""
    for url in (subject.url("manifests", subject.tag), subject.blob_url):
        get, head = subject.ask("GET", url), subject.ask("HEAD", url)
        assert _comparable(head) == _comparable(get)


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_content_has_an_entity_tag(subject: Subject, kind: str) -> None:
    digest = subject.digest if kind == "manifests" else subject.layer["digest"]
    assert subject.ask("HEAD", subject.url(kind, digest)).headers["etag"] == f'"{digest}"'


def test_ranges_are_announced(subject: Subject) -> None:
    assert subject.ask("HEAD", subject.blob_url).headers["accept-ranges"] == "bytes"


def test_tags_are_in_the_order_of_ascii(subject: Subject) -> None:
    for tag in ("a", "B", "1.0"):
        subject.manifest(tag)
    tags = subject.ask("GET", subject.url("tags", "list")).json()["tags"]
    assert len(tags) >= 3
    assert tags == sorted(tags)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"{UNKNOWN_NAME}/tags/list", 404, "NAME_UNKNOWN"),
        (f"hello/blobs/{UNKNOWN}", 404, "BLOB_UNKNOWN"),
        (f"hello/manifests/{UNKNOWN}", 404, "MANIFEST_UNKNOWN"),
        ("hello/manifests/.x", 404, "MANIFEST_UNKNOWN"),
        ("hello/blobs/sha256:bad", 400, "DIGEST_INVALID"),
        ("hello/referrers/sha256:bad", 400, "DIGEST_INVALID"),
        ("UPPER/tags/list", 400, "NAME_INVALID"),
        ("hello/nothing/at/all", 404, "UNSUPPORTED"),
    ],
)
def test_errors_are_json_with_a_code_and_a_message(
    subject: Subject, path: str, status: int, code: str
) -> None:
    response = subject.ask("GET", f"/v2/{path}")
    assert (response.status, response.error["code"]) == (status, code)
    assert response.error["message"]
    assert code in ERROR_CODES


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "blobs/uploads/"),
        ("PUT", "manifests/latest"),
        ("PATCH", "blobs/uploads/1"),
        ("DELETE", "manifests/latest"),
        ("DELETE", f"blobs/{UNKNOWN}"),
    ],
)
def test_a_read_only_registry_refuses_writes(subject: Subject, method: str, path: str) -> None:
    response = subject.ask(method, subject.url(*path.split("/", 1)) if "/" in path else path)
    assert (response.status, response.error["code"]) == (405, "UNSUPPORTED")


def _comparable(response: Response) -> dict[str, str]:
    # Each request has its own id.
    return {name: value for name, value in response.headers.items() if name not in {"date", "x-request-id"}}


@pytest.mark.parametrize("value", ["bytes=0-9", "bytes=99999999-"])
def test_head_ignores_ranges(subject: Subject, value: str) -> None:
    """RFC 9110, 14.2: a server ignores Range in requests of any method but GET."""
    response = subject.ask("HEAD", subject.blob_url, {"Range": value})
    assert (response.status, response.body) == (200, b"")
    assert response.headers["content-length"] == str(len(subject.blob))
    assert "content-range" not in response.headers
