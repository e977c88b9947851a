"""Determining support, pulling manifests, and checking their existence."""

from __future__ import annotations

import hashlib

import pytest

from tests.conformance.specification import Sentence
from tests.conformance.subject import UNKNOWN, UNKNOWN_NAME, Subject

specification = pytest.mark.specification


@specification(Sentence.SUPPORT)
def test_the_registry_implements_the_specification(subject: Subject) -> None:
    assert subject.ask("GET", "/v2/").status in (200, 401)


@specification(Sentence.MANIFEST_FOUND)
def test_a_manifest_by_tag(subject: Subject) -> None:
    response = subject.manifest(subject.tag)
    assert response.status == 200
    assert response.json()["schemaVersion"] == 2


@specification(Sentence.MANIFEST_FOUND)
def test_a_manifest_by_digest(subject: Subject) -> None:
    response = subject.manifest(subject.digest)
    assert response.status == 200
    assert f"sha256:{hashlib.sha256(response.body).hexdigest()}" == subject.digest


@specification(Sentence.MANIFEST_FOUND)
def test_a_client_that_accepts_anything(subject: Subject) -> None:
    assert subject.manifest(subject.tag, accept="*/*").status == 200


@specification(Sentence.MANIFEST_FOUND)
def test_a_client_without_an_accept_header(subject: Subject) -> None:
    """RFC 9110, 12.5.1: any media type is acceptable then."""
    assert subject.ask("GET", subject.url("manifests", subject.tag)).status == 200


@specification(Sentence.MANIFEST_DIGEST)
@pytest.mark.parametrize("by", ["tag", "digest"])
def test_a_manifest_has_its_digest_in_a_header(subject: Subject, by: str) -> None:
    response = subject.manifest(subject.tag if by == "tag" else subject.digest)
    assert response.headers["docker-content-digest"] == subject.digest


@specification(Sentence.MANIFEST_TYPE)
def test_the_content_type_is_the_manifests_own(subject: Subject) -> None:
    """An image with a media type in it was pushed under that type."""
    content_type = subject.manifest(subject.tag).headers["content-type"].partition(";")[0]
    assert content_type == subject.document.get("mediaType", content_type)


@specification(Sentence.MANIFEST_TYPE_BARE)
def test_the_content_type_has_no_parameters(subject: Subject) -> None:
    assert ";" not in subject.manifest(subject.tag).headers["content-type"]


@specification(Sentence.MANIFEST_MISSING)
@pytest.mark.parametrize("reference", [UNKNOWN, ".INVALID_MANIFEST_NAME", "a" * 129])
def test_an_unknown_manifest(subject: Subject, reference: str) -> None:
    """A tag outside the grammar cannot exist either."""
    assert subject.manifest(reference).status == 404


@specification(Sentence.MANIFEST_MISSING)
@pytest.mark.parametrize("name", [UNKNOWN_NAME, "a__b", "a---b", "a.b/c_d", "a" * 200])
def test_a_manifest_in_an_unknown_repository(subject: Subject, name: str) -> None:
    """All of these are valid names, so the requests are not malformed."""
    assert subject.ask("GET", f"/v2/{name}/manifests/{UNKNOWN}").status == 404


@specification(Sentence.MANIFEST_MISSING)
def test_a_malformed_digest(subject: Subject) -> None:
    """There is no such manifest; the registry may also call the request malformed."""
    assert subject.manifest("sha256:baddigeststring").status in (400, 404)


@specification(Sentence.MANIFEST_MISSING)
def test_a_malformed_name(subject: Subject) -> None:
    assert subject.ask("GET", f"/v2/UPPER/manifests/{subject.tag}").status in (400, 404)


@specification(Sentence.HEAD_FOUND)
@pytest.mark.parametrize("by", ["tag", "digest"])
def test_head_of_a_manifest(subject: Subject, by: str) -> None:
    head = subject.manifest(subject.tag if by == "tag" else subject.digest, "HEAD")
    assert (head.status, head.body) == (200, b"")


@specification(Sentence.HEAD_DIGEST)
def test_head_of_a_manifest_has_the_digest(subject: Subject) -> None:
    head = subject.manifest(subject.tag, "HEAD")
    assert head.headers["docker-content-digest"] == subject.digest


@specification(Sentence.HEAD_LENGTH)
def test_head_of_a_manifest_has_the_length(subject: Subject) -> None:
    head, get = subject.manifest(subject.tag, "HEAD"), subject.manifest(subject.tag)
    assert head.headers["content-length"] == str(len(get.body))


@specification(Sentence.HEAD_MISSING)
@pytest.mark.parametrize("reference", [UNKNOWN, ".INVALID_MANIFEST_NAME"])
def test_head_of_an_unknown_manifest(subject: Subject, reference: str) -> None:
    response = subject.manifest(reference, "HEAD")
    assert (response.status, response.body) == (404, b"")
