"""Pulling blobs, whole or in ranges, and checking their existence."""

from __future__ import annotations

import hashlib

import pytest

from tests.conformance.specification import Sentence
from tests.conformance.subject import UNKNOWN, UNKNOWN_NAME, Subject

specification = pytest.mark.specification


@specification(Sentence.BLOB_FOUND)
def test_a_blob(subject: Subject) -> None:
    response = subject.ask("GET", subject.blob_url)
    assert response.status == 200
    assert f"sha256:{hashlib.sha256(response.body).hexdigest()}" == subject.layer["digest"]


@specification(Sentence.BLOB_FOUND)
def test_the_config_is_a_blob(subject: Subject) -> None:
    config = subject.document["config"]
    response = subject.ask("GET", subject.url("blobs", config["digest"]))
    assert (response.status, len(response.body)) == (200, config["size"])


@specification(Sentence.BLOB_DIGEST)
def test_a_blob_has_its_digest_in_a_header(subject: Subject) -> None:
    response = subject.ask("GET", subject.blob_url)
    assert response.headers["docker-content-digest"] == subject.layer["digest"]


@specification(Sentence.HEAD_FOUND)
def test_head_of_a_blob(subject: Subject) -> None:
    head = subject.ask("HEAD", subject.blob_url)
    assert (head.status, head.body) == (200, b"")


@specification(Sentence.HEAD_DIGEST)
def test_head_of_a_blob_has_the_digest(subject: Subject) -> None:
    head = subject.ask("HEAD", subject.blob_url)
    assert head.headers["docker-content-digest"] == subject.layer["digest"]


@specification(Sentence.HEAD_LENGTH)
def test_head_of_a_blob_has_the_length(subject: Subject) -> None:
    head = subject.ask("HEAD", subject.blob_url)
    assert head.headers["content-length"] == str(subject.layer["size"])


@specification(Sentence.BLOB_MISSING)
@pytest.mark.parametrize("name", [None, UNKNOWN_NAME])
def test_an_unknown_blob(subject: Subject, name: str | None) -> None:
    assert subject.ask("GET", f"/v2/{name or subject.name}/blobs/{UNKNOWN}").status == 404


@specification(Sentence.BLOB_MISSING)
def test_a_malformed_digest(subject: Subject) -> None:
    assert subject.ask("GET", subject.url("blobs", "sha256:baddigeststring")).status in (400, 404)


@specification(Sentence.HEAD_MISSING)
def test_head_of_an_unknown_blob(subject: Subject) -> None:
    response = subject.ask("HEAD", subject.url("blobs", UNKNOWN))
    assert (response.status, response.body) == (404, b"")


@specification(Sentence.BLOB_RANGE)
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
    """206 with the requested range, its position and its length."""
    response = subject.part(value)
    expected = subject.blob[first : None if last is None else last + 1]
    start = len(subject.blob) + first if first < 0 else first
    assert (response.status, response.body) == (206, expected)
    assert response.headers["content-length"] == str(len(expected))
    place = f"bytes {start}-{start + len(expected) - 1}/{len(subject.blob)}"
    assert response.headers["content-range"] == place


@specification(Sentence.BLOB_RANGE)
def test_consecutive_ranges_add_up_to_the_blob(subject: Subject) -> None:
    """An interrupted download can be resumed."""
    middle = len(subject.blob) // 2
    parts = [subject.part(f"bytes=0-{middle - 1}").body, subject.part(f"bytes={middle}-").body]
    assert b"".join(parts) == subject.blob


@specification(Sentence.RANGE_UNSATISFIABLE, Sentence.LENGTH)
def test_a_range_behind_the_end(subject: Subject) -> None:
    size = len(subject.blob)
    response = subject.part(f"bytes={size}-{size + 10}")
    assert response.status == 416
    assert response.headers["content-range"] == f"bytes */{size}"


@specification(Sentence.RANGE_INVALID, Sentence.LENGTH)
@pytest.mark.parametrize("value", ["bytes=9-0", "bytes=x-y"])
def test_a_range_that_is_invalid(subject: Subject, value: str) -> None:
    """Ignored or refused, with a complete response."""
    assert subject.part(value).status in (200, 400, 416)


@specification(Sentence.RANGE_UNKNOWN_UNIT)
def test_a_range_in_an_unknown_unit(subject: Subject) -> None:
    response = subject.part("lines=1-2")
    assert (response.status, response.body) == (200, subject.blob)


@specification(Sentence.NOT_MODIFIED)
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_a_matching_etag_is_not_modified(subject: Subject, kind: str) -> None:
    """An asterisk matches any representation. It stands in for the ETag of registries that send none."""
    reference = subject.digest if kind == "manifests" else subject.layer["digest"]
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json, */*"}
    url = subject.url(kind, reference)
    etag = subject.ask("HEAD", url, accept).headers.get("etag", "*")
    response = subject.ask("GET", url, {"If-None-Match": etag} | accept)
    assert (response.status, response.body) == (304, b"")
    assert subject.ask("GET", url, {"If-None-Match": '"other"'} | accept).status == 200
