"""Requests made up from docs/openapi.yaml, valid ones and others, are answered as it says."""

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

_DESCRIPTION = Path(__file__).parents[2] / "docs" / "openapi.yaml"
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

schema = schemathesis.openapi.from_path(_DESCRIPTION)

# Operations and the statuses they answered with.
_answered: set[tuple[str, int]] = set()


@schema.parametrize()
@examples(10)
def test_the_server_is_as_described(target: Target, case: schemathesis.Case[Any]) -> None:
    validate(target, case)
    # Nobody makes up a digest that is stored.
    stored = {"reference": target.digest, "digest": target.blob}
    if known := {name: value for name, value in stored.items() if name in case.path_parameters}:
        case.path_parameters.update(known)
        case.headers.pop("If-Range", None)  # made up, it is never the ETag, and would make any range none
        validate(target, case)


def validate(target: Target, case: schemathesis.Case[Any]) -> None:
    response = case.call_and_validate(
        base_url=f"http://{HOST}:{target.server.port}", checks=_CHECKS, timeout=20
    )
    _answered.add((case.operation.label, response.status_code))


def test_the_requests_were_worth_it() -> None:
    """Comes after the others: all that can be had from a server in good health was asked for."""
    blob, manifest = "/v2/{name}/blobs/{digest}", "/v2/{name}/manifests/{reference}"
    for method in ("GET", "HEAD"):
        assert {status for label, status in _answered if label == f"{method} {blob}"} >= {
            200,
            206,
            304,
            400,
            404,
            416,
        }
        assert {status for label, status in _answered if label == f"{method} {manifest}"} >= {
            200,
            304,
            400,
            404,
        }
