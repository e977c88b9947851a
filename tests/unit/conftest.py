"""Fixtures of all unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nixery import request_context
from nixery.access import policy


@pytest.fixture(autouse=True)
def _no_request() -> Iterator[None]:
    """Begin each test outside any request, regardless of earlier tests in the process."""
    tokens = request_context._current.set(None), request_context._parties.set(None)
    access = policy._current.set(policy.UNRESTRICTED)
    yield
    policy._current.reset(access)
    request_context._current.reset(tokens[0])
    request_context._parties.reset(tokens[1])
