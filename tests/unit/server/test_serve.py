"""Limits on connections where the system allows few descriptors."""

from __future__ import annotations

import resource

import pytest

from nixery.server.app import Application
from nixery.server.connections import ConnectionBounds
from nixery.server.observation import Observation
from nixery.server.serve import ADMIN_CONNECTIONS, Listener, _with_descriptors
from nixery.telemetry.metrics import RequestCounts


@pytest.fixture
def listeners() -> list[Listener]:
    application = Application(None, Observation(RequestCounts()), {})
    bounds = ConnectionBounds(1024, 256)
    return [
        Listener(application, "127.0.0.1", 1, bounds),
        Listener(application, "127.0.0.1", 2, ADMIN_CONNECTIONS),
    ]


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "connections"),
    [
        (1024, 1 << 20, 3776, 1024),
        (1 << 20, 1 << 20, None, 1024),
        (1024, resource.RLIM_INFINITY, 3776, 1024),
        (512, 2144, 2144, 512),
        (256, 256, 256, 16),
    ],
)
def test_connections_fit_the_descriptors(
    listeners: list[Listener],
    monkeypatch: pytest.MonkeyPatch,
    soft: int,
    hard: int,
    raised: int | None,
    connections: int,
) -> None:
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    bounds = _with_descriptors(listeners)
    assert (bounds[1].total, bounds[1].per_client) == (connections, 256)
    assert limits == ([(raised, hard)] if raised else [])
