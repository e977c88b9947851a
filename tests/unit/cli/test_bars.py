"""Bars, as a terminal is sent them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nixery.cli.bars import BarReporter
from nixery.image.platform import AMD64
from nixery.image.request import requests_for
from nixery.nix.progress import Building, Fetching
from nixery.oci.digest import Digest
from nixery.pipeline.events import Build, Grouped, LayersComplete, Started, Stored
from nixery.pushing.events import BytesPushed, PushStarted
from nixery.sources.source import Pin


def test_a_build_and_a_push(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = io.StringIO()
    reporter = BarReporter(Console(file=terminal, force_terminal=True, width=120))
    (request,) = requests_for("shell/git", (AMD64,))
    build = Build.of(request, Pin("fake:", "one", "one"))
    for event in (
        Started(),
        Fetching(1, 4),
        Building(("0-git.drv", "1-htop.drv"), 0),
        Grouped(7),
        LayersComplete(),
        Stored(Digest.of(b""), 7),
    ):
        reporter.observe(build, event)
    reporter.pushing(PushStarted("registry.test/git:1", 2, 2000))
    reporter.pushing(BytesPushed("registry.test/git:1", 1000))
    reporter.finished({"digest": "sha256:0"})
    shown = terminal.getvalue()
    assert "git linux/amd64" in shown
    assert "built" in shown
    assert "registry.test/git:1" in shown
    assert "1.0/2.0 kB" in shown
    assert capsys.readouterr().out == "sha256:0\n"
