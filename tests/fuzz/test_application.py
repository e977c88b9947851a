"""The application answers every request as a registry, and only valid names reach Nix."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nixery.image.meta_packages import FACTS, SHELL
from nixery.image.name import ALWAYS_INCLUDED
from tests.conformance.specification import ERROR_CODES
from tests.fuzz import strategies
from tests.fuzz.application import LAYER, LAYER_DIGEST, MANIFEST_DIGEST, NAME, TAGS, ApplicationUnderTest
from tests.fuzz.effort import examples
from tests.fuzz.grammar import is_digest, is_name, is_route, is_tag, packages_of
from tests.support.client import Response

_STORED = strategies.paths(st.just(NAME), st.sampled_from([str(LAYER_DIGEST), str(MANIFEST_DIGEST)]))
_PATHS = strategies.paths() | _STORED

Headers = list[tuple[str, str]]


def check(response: Response) -> None:
    """Check what holds for every response to a GET."""
    assert response.status < 500, response
    if response.status >= 400:
        assert {error["code"] for error in response.errors} <= ERROR_CODES
    if response.status != 304:
        assert response.headers["content-length"] == str(len(response.body))


@examples(500)
@given(_PATHS, strategies.query_strings, strategies.headers)
def test_every_response_is_that_of_a_registry(
    application: ApplicationUnderTest, path: str, query: bytes, headers: Headers
) -> None:
    get = application.request("GET", path, query, headers)
    check(get)
    assert get.status >= 400 or is_route(path), "not a path of the API"
    for wanted, optional in application.nix.requests:
        named = set(wanted) - {SHELL}
        assert all(is_name(package) and "/" not in package for package in named)
        assert set(optional) <= {*ALWAYS_INCLUDED, FACTS}
    # Ranges are for GET alone (RFC 9110, 14.2).
    whole = [(name, value) for name, value in headers if name.lower() != "range"]
    get = application.request("GET", path, query, whole)
    head = application.request("HEAD", path, query, headers)
    assert (head.status, head.headers, head.body) == (get.status, get.headers, b"")


@examples(250)
@given(strategies.names, strategies.references.map(lambda reference: reference.replace("/", "")))
def test_only_valid_names_reach_nix(application: ApplicationUnderTest, name: str, reference: str) -> None:
    response = application.request("GET", f"/v2/{name}/manifests/{reference}")
    check(response)
    platforms = {"arm64", "amd64"} & (set(name.split("/")) - packages_of(name))
    built = is_name(name) and is_tag(reference) and not reference.startswith("sha256-") and len(platforms) < 2
    asked = [set(wanted) - {SHELL} for wanted, _ in application.nix.requests]
    assert asked == [packages_of(name)] * built
    if name and reference and (is_tag(reference) or is_digest(reference)) and not is_name(name):
        assert (response.status, response.error["code"]) == (400, "NAME_INVALID")


@examples(200)
@given(strategies.names, strategies.references.map(lambda reference: reference.replace("/", "")))
def test_blobs_and_referrers_never_reach_nix(
    application: ApplicationUnderTest, name: str, reference: str
) -> None:
    valid = is_name(name) and is_digest(reference)
    for kind, status in (("blobs", 404), ("referrers", 200)):
        response = application.request("GET", f"/v2/{name}/{kind}/{reference}")
        check(response)
        assert application.nix.requests == []
        assert (response.status == status and response.headers["content-type"] != "") or not valid
        assert response.status >= 400 or valid


@examples(200)
@given(strategies.headers)
def test_a_blob_is_sent_whole_or_as_the_announced_range(
    application: ApplicationUnderTest, headers: Headers
) -> None:
    response = application.request("GET", f"/v2/{NAME}/blobs/{LAYER_DIGEST}", headers=headers)
    check(response)
    match response.status:
        case 200:
            assert response.body == LAYER
        case 206:
            unit, _, place = response.headers["content-range"].partition(" ")
            first, last = map(int, place.partition("/")[0].split("-"))
            assert (unit, response.body) == ("bytes", LAYER[first : last + 1])
        case 304:
            assert response.body == b""
        case 400:
            assert "Host" in {name for name, _ in headers}
        case status:
            assert (status, response.headers["content-range"]) == (416, f"bytes */{len(LAYER)}")


@examples(200)
@given(strategies.query_strings)
def test_pages_are_parts_of_the_list(application: ApplicationUnderTest, query: bytes) -> None:
    response = application.request("GET", f"/v2/{NAME}/tags/list", query)
    assert response.status == 200
    tags = response.json()["tags"]
    assert tags == sorted(set(tags) & set(TAGS))
    if "link" in response.headers:
        target, _, relation = response.headers["link"].partition(">; ")
        assert (target[:1], relation) == ("<", 'rel="next"')
        path, _, next_query = target[1:].partition("?")
        following = application.request("GET", path, next_query.encode()).json()["tags"]
        assert following
        assert min(following) > max(tags)


@examples(150)
@given(strategies.methods, _PATHS)
def test_other_methods_are_refused(application: ApplicationUnderTest, method: str, path: str) -> None:
    response = application.request(method, path)
    if method not in ("GET", "HEAD"):
        check(response)
        assert (response.status, response.error["code"]) in ((405, "UNSUPPORTED"), (404, "UNSUPPORTED"))
        assert application.nix.requests == []
