"""Listing tags and referrers."""

from __future__ import annotations

import re
from urllib.parse import urlencode, urljoin, urlsplit

import pytest

from tests.conformance.specification import Sentence
from tests.conformance.subject import TAGS, UNKNOWN, UNKNOWN_NAME, Subject
from tests.support.client import Response

INDEX = "application/vnd.oci.image.index.v1+json"
_NEXT = re.compile(r'<([^>]*)>\s*;\s*rel="?next"?\s*')

specification = pytest.mark.specification


@pytest.fixture(scope="module")
def tags(subject: Subject) -> list[str]:
    """Several tags: with a single one, hardly any test here could fail."""
    for tag in (subject.tag, *TAGS):
        # A registry that creates tags on request has the tag from now on; others may have it.
        subject.manifest(tag)
    found = _listed(subject.ask("GET", subject.url("tags", "list")))
    assert len(found) >= 3, f"the tests need at least three tags of {subject.name}, found {found}"
    return found


def _listed(response: Response) -> list[str]:
    assert response.status == 200, response
    found: list[str] = response.json()["tags"]
    return found


@specification(Sentence.TAGS_FOUND, Sentence.TAGS_FORM)
def test_tags_are_listed(subject: Subject, tags: list[str]) -> None:
    assert subject.tag in tags
    document = subject.ask("GET", subject.url("tags", "list")).json()
    assert document == {"name": subject.name, "tags": tags}


@specification(Sentence.TAGS_ORDER)
def test_tags_are_in_order(tags: list[str]) -> None:
    """Case-sensitive or not: editions of the specification differ."""
    assert tags in (sorted(tags), sorted(tags, key=str.lower))


@specification(Sentence.TAGS_NONE)
def test_zero_tags_are_an_empty_list(subject: Subject, tags: list[str]) -> None:
    assert tags
    response = subject.ask("GET", subject.url("tags", "list?n=0"))
    assert _listed(response) == []
    assert "link" not in response.headers


@specification(Sentence.TAGS_COUNT)
@pytest.mark.parametrize("count", [1, 2])
def test_a_page_has_the_requested_number_of_tags(subject: Subject, tags: list[str], count: int) -> None:
    response = subject.ask("GET", subject.url("tags", f"list?n={count}"))
    found = _listed(response)
    assert found == tags[: len(found)]
    assert len(found) == count or ("link" in response.headers and len(found) < count)


@specification(Sentence.TAGS_LAST)
def test_last_is_exclusive(subject: Subject, tags: list[str]) -> None:
    assert _listed(subject.ask("GET", subject.url("tags", f"list?last={tags[0]}"))) == tags[1:]


@specification(Sentence.TAGS_LAST, Sentence.TAGS_COUNT)
def test_last_together_with_a_number(subject: Subject, tags: list[str]) -> None:
    response = subject.ask("GET", subject.url("tags", f"list?n=1&last={tags[0]}"))
    assert _listed(response) == tags[1:2]


@specification(Sentence.TAGS_LINK, Sentence.TAGS_LAST)
def test_pages_lead_to_all_tags(subject: Subject, tags: list[str]) -> None:
    """Following the link, or the last tag where there is none, yields all tags once and in order."""
    found: list[str] = []
    url = subject.url("tags", "list?n=1")
    for _ in tags:
        response = subject.ask("GET", url)
        found += _listed(response)
        link = response.headers.get("link")
        url = subject.url("tags", "list?") + urlencode({"n": 1, "last": found[-1]})
        if link is not None:
            match = _NEXT.fullmatch(link)
            assert match is not None, link
            target = urlsplit(urljoin(url, match[1]))
            url = f"{target.path}?{target.query}"
    assert found == tags
    assert _listed(subject.ask("GET", url)) == []


@specification(Sentence.TAGS_MISSING)
def test_tags_of_an_unknown_name(subject: Subject) -> None:
    assert subject.ask("GET", f"/v2/{UNKNOWN_NAME}/tags/list").status == 404


@specification(Sentence.REFERRERS_FOUND, Sentence.REFERRERS_FORM, Sentence.REFERRERS_EMPTY)
@pytest.mark.parametrize("of", ["image", "nothing"])
def test_referrers(subject: Subject, of: str) -> None:
    response = subject.ask("GET", subject.url("referrers", subject.digest if of == "image" else UNKNOWN))
    assert (response.status, response.headers["content-type"]) == (200, INDEX)
    index = response.json()
    assert (index["schemaVersion"], index["mediaType"]) == (2, INDEX)
    assert index["manifests"] == [] or (of == "image" and isinstance(index["manifests"], list))


@specification(Sentence.REFERRERS_FILTER)
def test_referrers_can_be_filtered(subject: Subject) -> None:
    response = subject.ask(
        "GET", subject.url("referrers", f"{subject.digest}?artifactType=application/x-none")
    )
    assert response.status == 200
    assert response.headers["oci-filters-applied"] == "artifactType"
    assert response.json()["manifests"] == []


@specification(Sentence.REFERRERS_INVALID)
def test_referrers_of_a_malformed_digest(subject: Subject) -> None:
    assert subject.ask("GET", subject.url("referrers", "sha256:bad")).status == 400
