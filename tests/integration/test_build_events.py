"""The events of a build, in their order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import pytest

from nixery.app import assemble
from nixery.builds.events import (
    Build,
    BuildEvent,
    Evaluated,
    Grouped,
    LayerPacked,
    LayersComplete,
    Realised,
    Reused,
    Started,
    Stored,
)
from nixery.image.name import requests_for
from nixery.settings import Settings
from nixery.startup import prepare
from tests.support.server import free_port


class Observer:
    def __init__(self) -> None:
        self.events: list[BuildEvent] = []

    def observe(self, build: Build, event: BuildEvent) -> None:
        assert build.request.requested == ("diamond",)
        self.events.append(event)

    @property
    def kinds(self) -> list[type[BuildEvent]]:
        """The kinds of the events, runs of one kind reduced to one."""
        return [kind for kind, _ in groupby(map(type, self.events))]


async def test_a_cold_build_emits_every_event_and_a_warm_one_only_its_reuse(
    settings: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    # As a server: a command evaluates a directory each time.
    given = {
        "PORT": str(free_port()),
        "NIXERY_INDEX": "0",
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(tmp_path),
    }
    chosen = Settings.from_environment({**os.environ, **given})
    cold, warm = Observer(), Observer()
    for observer in (cold, warm):
        resources = prepare(chosen)
        async with assemble(chosen, resources, observer=observer) as components:
            await components.images.get(requests_for("diamond", resources.platforms), "latest")
    assert cold.kinds == [Started, Evaluated, Realised, Grouped, LayerPacked, LayersComplete, Stored]
    assert warm.kinds == [Reused]
    packed = sum(isinstance(event, LayerPacked) for event in cold.events)
    assert [event.layers for event in cold.events if isinstance(event, Grouped)] == [packed]
