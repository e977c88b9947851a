from __future__ import annotations

import subprocess
from pathlib import Path

from prometheus_client import CollectorRegistry

from nixery.telemetry.metrics import NixProcesses


def test_children_called_nix_are_counted(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    registry.register(NixProcesses())

    def number() -> float | None:
        return registry.get_sample_value("nixery_nix_processes")

    before = number()
    assert before is not None
    children = []
    for name in ("nix-store", "other"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho started; read line\n")
        program.chmod(0o755)
        children.append(subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == b"started\n"
    assert number() == before + 1
    for child in children:
        child.communicate(b"\n", timeout=10)
    assert number() == before
