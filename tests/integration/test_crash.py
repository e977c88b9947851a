"""``make crash`` with a few rounds; the seed is in the output."""

from __future__ import annotations

import secrets
from pathlib import Path

from scripts.crash.__main__ import crash


def test_killed_at_any_moment(tmp_path: Path) -> None:
    assert crash(6, secrets.randbelow(1 << 32), tmp_path).total() == 6
