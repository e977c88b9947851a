"""Requests generated from the OpenAPI description, valid and invalid, get the responses that it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fuzz.conftest import Target
from tests.fuzz.effort import examples
from tests.support.server import HOST

pytestmark = pytest.mark.xdist_group("fuzz")

_DESCRIPTION = Path(__file__).parents[2] / "docs" / "reference" / "openapi.yaml"
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

schema = schemathesis.openapi.from_path(_DESCRIPTION)


@schema.parametrize()
@examples(10)
def test_the_server_is_as_described(target: Target, case: schemathesis.Case[Any]) -> None:
    validate(target, case)
    # Generated digests are never stored ones.
    stored = {
        "reference": target.digest,
        "digest": target.blob,
        "hash": target.hash,
        "nar-hash": target.nar_hash,
    }
    if known := {name: value for name, value in stored.items() if name in case.path_parameters}:
        case.path_parameters.update(known)
        # A random value never matches the ETag, so the server would ignore every range.
        case.headers.pop("If-Range", None)
        validate(target, case)


BLOB, MANIFEST = "/v2/{name}/blobs/{digest}", "/v2/{name}/manifests/{reference}"
NARINFO, NAR = "/nix-cache/{hash}.narinfo", "/nix-cache/nar/{hash}-{nar-hash}.nar"
TAGS, REFERRERS = "/v2/{name}/tags/list", "/v2/{name}/referrers/{digest}"


@pytest.mark.parametrize(
    ("method", "value", "status"),
    [
        ("GET", "bytes=0-9", 206),
        ("GET", "bytes=999999999999-", 416),
        ("HEAD", "bytes=0-9", 200),
        ("HEAD", "bytes=999999999999-", 200),
    ],
)
def test_ranges_are_for_get_alone(target: Target, method: str, value: str, status: int) -> None:
    known = {"name": "hello", "digest": target.blob}
    case = schema[BLOB][method].Case(path_parameters=known, headers={"Range": value})
    assert validate(target, case) == status


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "parameters", "headers", "status"),
    [
        (BLOB, {}, {}, 200),
        (BLOB, {}, {"If-None-Match": "*"}, 304),
        (BLOB, {"name": "UPPER"}, {}, 400),
        (BLOB, {"digest": "sha256:bad"}, {}, 400),
        (BLOB, {"digest": f"sha256:{'0' * 64}"}, {}, 404),
        (MANIFEST, {}, {}, 200),
        (MANIFEST, {"reference": "latest"}, {}, 200),
        (MANIFEST, {}, {"If-None-Match": "*"}, 304),
        (MANIFEST, {"name": "UPPER"}, {}, 400),
        (MANIFEST, {"name": "no-such-package", "reference": "latest"}, {}, 404),
        (TAGS, {}, {}, 200),
        (TAGS, {"name": "UPPER"}, {}, 400),
        (TAGS, {"name": "no-such-package"}, {}, 404),
        ("/nix-cache/nix-cache-info", {}, {}, 200),
        ("/nix-cache/public-key", {}, {}, 200),
        (NARINFO, {}, {}, 200),
        (NARINFO, {"hash": "0" * 32}, {}, 404),
        (NAR, {}, {}, 200),
        (NAR, {}, {"If-None-Match": "*"}, 304),
        (NAR, {"nar-hash": "0" * 64}, {}, 404),
        (REFERRERS, {}, {}, 200),
        (REFERRERS, {"digest": "sha256:bad"}, {}, 400),
    ],
)
def test_every_documented_response_of_a_healthy_server_occurs(
    target: Target, method: str, path: str, parameters: dict[str, str], headers: dict[str, str], status: int
) -> None:
    known = {
        "name": "hello",
        "digest": target.blob,
        "reference": target.digest,
        "hash": target.hash,
        "nar-hash": target.nar_hash,
    } | parameters
    case = schema[path][method].Case(
        path_parameters={name: value for name, value in known.items() if f"{{{name}}}" in path},
        headers=headers,
    )
    assert validate(target, case) == status


def validate(target: Target, case: schemathesis.Case[Any]) -> int:
    """Send a case and check the response; return its status."""
    response = case.call_and_validate(
        base_url=f"http://{HOST}:{target.server.port}", checks=_CHECKS, timeout=20
    )
    return response.status_code
