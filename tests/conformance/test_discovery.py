"""Distribution specification 1.1, "Content Discovery", and what a read-only registry says to everything else."""

from __future__ import annotations

import pytest

from tests.conformance.conftest import Subject

INDEX = "application/vnd.oci.image.index.v1+json"
CODES = {
    "BLOB_UNKNOWN",
    "DENIED",
    "DIGEST_INVALID",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "TOOMANYREQUESTS",
    "UNAUTHORIZED",
    "UNSUPPORTED",
}


@pytest.fixture
def tags(subject: Subject) -> list[str]:
    """All tags; there is at least the one that was pulled."""
    assert subject.digest
    response = subject.client.get(subject.url("tags", "list"))
    assert response.status == 200
    assert response.json()["name"] == subject.name
    found: list[str] = response.json()["tags"]
    return found


def test_tags_are_listed(subject: Subject, tags: list[str]) -> None:
    """(Listing Tags) 200 with name and tags."""
    assert subject.tag in tags


def test_tags_are_in_order(tags: list[str]) -> None:
    """(Listing Tags) The order is ASCII's."""
    assert tags == sorted(tags)


def test_no_tags_are_a_list_too(subject: Subject, tags: list[str]) -> None:
    """(Listing Tags) n=0: an empty list, and no link."""
    assert tags
    response = subject.client.get(subject.url("tags", "list?n=0"))
    assert (response.status, response.json()["tags"]) == (200, [])
    assert "link" not in response.headers


def test_last_is_exclusive(subject: Subject, tags: list[str]) -> None:
    """(Listing Tags) last: only what comes behind it."""
    response = subject.client.get(subject.url("tags", f"list?last={tags[0]}"))
    assert response.json()["tags"] == tags[1:]


def test_pages_are_linked(subject: Subject, tags: list[str]) -> None:
    """(Listing Tags) n: at most so many, with a Link to the rest; following it gives all of them, each once."""
    assert subject.manifest(f"{subject.tag}-2").status in (200, 404)
    found: list[str] = []
    url = subject.url("tags", "list?n=1")
    for _ in range(len(tags) + 2):
        response = subject.client.get(url)
        assert len(response.json()["tags"]) <= 1
        found += response.json()["tags"]
        if "link" not in response.headers:
            break
        link, relation = response.headers["link"].split(";")
        assert relation.strip() == 'rel="next"'
        url = link.strip("<>")
    assert set(tags) <= set(found)
    assert len(found) == len(set(found))


def test_tags_of_an_unknown_name(subject: Subject) -> None:
    """(Listing Tags) 404 NAME_UNKNOWN."""
    response = subject.client.get("/v2/never/asked/for/tags/list")
    assert (response.status, response.error["code"]) == (404, "NAME_UNKNOWN")


def test_referrers_of_anything(subject: Subject) -> None:
    """(Listing Referrers) 200 with an index, an empty one if nothing refers to it; never a 404."""
    for digest in (subject.digest, "sha256:" + "0" * 64):
        response = subject.client.get(subject.url("referrers", digest))
        assert (response.status, response.headers["content-type"]) == (200, INDEX)
        index = response.json()
        assert (index["schemaVersion"], index["mediaType"], index["manifests"]) == (2, INDEX, [])


def test_referrers_can_be_filtered(subject: Subject) -> None:
    """(Listing Referrers) A registry that filters says so."""
    response = subject.client.get(subject.url("referrers", f"{subject.digest}?artifactType=application/x"))
    assert response.status == 200
    assert response.headers["oci-filters-applied"] == "artifactType"


def test_referrers_of_a_malformed_digest(subject: Subject) -> None:
    """(Listing Referrers) 400."""
    assert subject.client.get(subject.url("referrers", "sha256:bad")).status == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "blobs/uploads/"),
        ("PUT", "manifests/latest"),
        ("PATCH", "blobs/uploads/1"),
        ("DELETE", "manifests/latest"),
        ("DELETE", "blobs/sha256:" + "0" * 64),
    ],
)
def test_a_read_only_registry_says_so(subject: Subject, method: str, path: str) -> None:
    """(Error Codes) What is not supported is 405 UNSUPPORTED."""
    response = subject.client.request(method, f"/v2/{subject.name}/{path}")
    assert (response.status, response.error["code"]) == (405, "UNSUPPORTED")


@pytest.mark.parametrize(
    "path",
    [
        "manifests/sha256:" + "0" * 64,
        "manifests/.x",
        "blobs/sha256:" + "0" * 64,
        "blobs/sha256:bad",
        "nothing/at/all",
    ],
)
def test_errors_have_their_form(subject: Subject, path: str) -> None:
    """(Error Codes) An error that is JSON is an object with a list of errors, with a code of the specification."""
    response = subject.client.get(f"/v2/{subject.name}/{path}")
    assert 400 <= response.status < 500
    assert {error["code"] for error in response.errors} <= CODES
