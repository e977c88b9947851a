"""Fixtures of all unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nixery import request_context


@pytest.fixture(autouse=True)
def _no_request() -> Iterator[None]:
    """Begin each test outside any request, regardless of earlier tests in the process."""
    tokens = request_context._current.set(None), request_context._parties.set(None)
    yield
    request_context._current.reset(tokens[0])
    request_context._parties.reset(tokens[1])
