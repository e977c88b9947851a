"""Errors, warnings, and refused deletions. No test changes the contents of another registry."""

from __future__ import annotations

import re

import pytest

from tests.conformance.specification import ERROR_CODES, Sentence
from tests.conformance.subject import UNKNOWN, Subject

specification = pytest.mark.specification

# RFC 7234, 5.5, as the distribution specification narrows it: a code, an agent, a quoted text, and no date.
_WARNING = re.compile(r'299 - "(?:[^"\\]|\\.)*"(?:\s*,\s*299 - "(?:[^"\\]|\\.)*")*')


@specification(Sentence.ERROR_FORM)
@pytest.mark.parametrize(
    "path",
    [
        f"manifests/{UNKNOWN}",
        "manifests/.x",
        "manifests/sha256:bad",
        f"blobs/{UNKNOWN}",
        "blobs/sha256:bad",
        "nothing/at/all",
    ],
)
def test_errors_have_their_form(subject: Subject, path: str) -> None:
    """A body need not be JSON; a JSON body has a list of errors with codes of the specification."""
    response = subject.ask("GET", f"/v2/{subject.name}/{path}", {"Accept": "*/*"})
    assert 400 <= response.status < 500, response
    if response.headers.get("content-type", "").partition(";")[0] == "application/json":
        document = response.json()
        assert document["errors"]
        for error in document["errors"]:
            assert set(error) <= {"code", "message", "detail"}
            assert isinstance(error.get("message", ""), str)
            assert error["code"] in ERROR_CODES


@specification(Sentence.DELETE)
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_deleting_unknown_content_is_refused(subject: Subject, kind: str) -> None:
    assert subject.ask("DELETE", subject.url(kind, UNKNOWN)).status in (400, 404, 405)


@specification(Sentence.WARNINGS)
@pytest.mark.parametrize("path", ["/v2/", "manifest", "blob", "tags"])
def test_warnings_have_their_form(subject: Subject, path: str) -> None:
    urls = {
        "manifest": subject.url("manifests", subject.tag),
        "blob": subject.blob_url,
        "tags": subject.url("tags", "list"),
    }
    response = subject.ask("GET", urls.get(path, path), {"Accept": "*/*"})
    warning = response.headers.get("warning")
    assert warning is None or (_WARNING.fullmatch(warning) and len(warning) <= 4096)
