"""Distribution specification 1.1, "Pull": one test for each sentence that binds a server. Names in parentheses are its sections."""

from __future__ import annotations

import hashlib

import pytest

from tests.conformance.conftest import Subject
from tests.support.client import Response

UNKNOWN = "sha256:" + "0" * 64


def test_the_api_is_there(subject: Subject) -> None:
    """(Determining Support) A registry that implements the specification answers /v2/ with 200, or with 401."""
    assert subject.client.get("/v2/").status in (200, 401)


def test_a_manifest_by_tag(subject: Subject) -> None:
    """(Pulling manifests) A manifest that exists is answered with 200 and its bytes."""
    response = subject.manifest(subject.tag)
    assert response.status == 200
    assert response.json()["schemaVersion"] == 2


def test_a_manifest_by_digest(subject: Subject) -> None:
    """(Pulling manifests) ... by digest likewise, and they are the bytes of that digest."""
    response = subject.manifest(subject.digest)
    assert response.status == 200
    assert f"sha256:{hashlib.sha256(response.body).hexdigest()}" == subject.digest


def test_the_digest_of_a_manifest_is_told(subject: Subject) -> None:
    """(Pulling manifests) Docker-Content-Digest is the digest of the content."""
    response = subject.manifest(subject.tag)
    assert response.headers["docker-content-digest"] == f"sha256:{hashlib.sha256(response.body).hexdigest()}"


def test_the_content_type_is_the_manifests_own(subject: Subject) -> None:
    """(Pulling manifests) Content-Type is the media type that the manifest names."""
    response = subject.manifest(subject.tag)
    assert response.headers["content-type"] == response.json()["mediaType"]


def test_an_unknown_manifest_by_digest(subject: Subject) -> None:
    """(Pulling manifests) A manifest that does not exist is a 404."""
    assert subject.manifest(UNKNOWN).status == 404


def test_an_invalid_tag(subject: Subject) -> None:
    """(Pulling manifests) A tag outside the grammar cannot exist."""
    assert subject.manifest(".INVALID_MANIFEST_NAME").status == 404


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_a_malformed_digest(subject: Subject, kind: str) -> None:
    """(Pulling) A malformed digest is the client's error."""
    assert subject.client.get(subject.url(kind, "sha256:baddigeststring")).status in (400, 404)


def test_head_of_a_manifest_is_its_get_without_a_body(subject: Subject) -> None:
    """(Checking if content exists) HEAD: 200, no body, the same headers; Content-Length of the content."""
    get, head = subject.manifest(subject.tag), subject.manifest(subject.tag, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert comparable(head) == comparable(get)
    assert head.headers["content-length"] == str(len(get.body))


def test_head_of_an_unknown_manifest(subject: Subject) -> None:
    """(Checking if content exists) HEAD of something that does not exist is a 404."""
    response = subject.manifest(UNKNOWN, "HEAD")
    assert (response.status, response.body) == (404, b"")


def test_a_blob(subject: Subject) -> None:
    """(Pulling blobs) 200, and the bytes of that digest."""
    response = subject.client.get(subject.url("blobs", subject.layer["digest"]))
    assert response.status == 200
    assert f"sha256:{hashlib.sha256(response.body).hexdigest()}" == subject.layer["digest"]


def test_the_config_is_a_blob(subject: Subject) -> None:
    """(Pulling blobs) Configs are pulled as blobs."""
    config = subject.document["config"]
    response = subject.client.get(subject.url("blobs", config["digest"]))
    assert (response.status, len(response.body)) == (200, config["size"])


def test_head_of_a_blob_is_its_get_without_a_body(subject: Subject) -> None:
    """(Checking if content exists) HEAD: 200, no body, Content-Length and digest of the content."""
    url = subject.url("blobs", subject.layer["digest"])
    get, head = subject.client.get(url), subject.client.head(url)
    assert (head.status, head.body) == (200, b"")
    assert comparable(head) == comparable(get)
    assert head.headers["content-length"] == str(subject.layer["size"])
    assert head.headers["docker-content-digest"] == subject.layer["digest"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_unknown_blob(subject: Subject, method: str) -> None:
    """(Pulling blobs) A blob that does not exist is a 404, with a code of the specification."""
    response = subject.client.request(method, subject.url("blobs", UNKNOWN))
    assert response.status == 404
    if method == "GET":
        assert response.error["code"] == "BLOB_UNKNOWN"


def test_ranges_are_announced(subject: Subject) -> None:
    """(Pulling blobs) A registry should support Range; RFC 9110 has it announce that."""
    assert (
        subject.client.head(subject.url("blobs", subject.layer["digest"])).headers["accept-ranges"] == "bytes"
    )


@pytest.mark.parametrize(
    ("value", "first", "last"),
    [
        ("bytes=0-9", 0, 9),
        ("bytes=5-99", 5, 99),
        ("bytes=100-", 100, None),
        ("bytes=-7", -7, None),
        ("bytes=3-99999999999", 3, None),
    ],
)
def test_a_range_of_a_blob(subject: Subject, value: str, first: int, last: int | None) -> None:
    """(Pulling blobs; RFC 9110, 14) 206 with the part asked for, its place, and its length."""
    response = subject.part(value)
    expected = subject.blob[first : None if last is None else last + 1]
    start = len(subject.blob) + first if first < 0 else first
    assert (response.status, response.body) == (206, expected)
    assert response.headers["content-length"] == str(len(expected))
    place = f"bytes {start}-{start + len(expected) - 1}/{len(subject.blob)}"
    assert response.headers["content-range"] == place


def test_the_parts_of_a_blob_make_it_up(subject: Subject) -> None:
    """(Pulling blobs) A download that broke off can be gone on with."""
    middle = len(subject.blob) // 2
    parts = [subject.part(f"bytes=0-{middle - 1}").body, subject.part(f"bytes={middle}-").body]
    assert b"".join(parts) == subject.blob


def test_a_range_behind_the_end(subject: Subject) -> None:
    """(RFC 9110, 15.5.17) 416, with the length there is."""
    size = len(subject.blob)
    response = subject.part(f"bytes={size}-{size + 10}")
    assert response.status == 416
    assert response.headers["content-range"] == f"bytes */{size}"


@pytest.mark.parametrize("value", ["bytes=9-0", "lines=1-2", "bytes=x-y"])
def test_a_range_that_is_none(subject: Subject, value: str) -> None:
    """(RFC 9110, 14.2) What is no valid range is ignored, or refused as the client's error."""
    assert subject.part(value).status in (200, 400, 416)


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_what_the_client_has_is_not_sent_again(subject: Subject, kind: str) -> None:
    """(RFC 9110, 13.1.2) If-None-Match with the ETag: 304 without a body."""
    url = subject.url(kind, subject.digest if kind == "manifests" else subject.layer["digest"])
    etag = subject.client.head(url, {"Accept": "*/*"}).headers["etag"]
    response = subject.client.get(url, {"If-None-Match": etag, "Accept": "*/*"})
    assert (response.status, response.body) == (304, b"")
    assert subject.client.get(url, {"If-None-Match": '"other"', "Accept": "*/*"}).status == 200


@pytest.mark.parametrize("accept", ["*/*", "text/html", "application/json", ""])
def test_accept_is_a_hint(subject: Subject, accept: str) -> None:
    """(Pulling manifests) A client that accepts nothing we have gets a manifest all the same."""
    response = subject.client.get(subject.url("manifests", subject.tag), {"Accept": accept})
    assert response.status == 200
    assert response.headers["content-type"] == response.json()["mediaType"]


def test_the_namespace_of_a_mirror_is_ignored(subject: Subject) -> None:
    """(Registry proxying) ?ns= tells a mirror whose image is meant; a registry that is none answers as ever."""
    response = subject.client.get(subject.url("manifests", subject.tag) + "?ns=docker.io", {"Accept": "*/*"})
    assert response.status == 200


def comparable(response: Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name != "date"}
