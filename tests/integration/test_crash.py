"""A server killed at random moments of cold builds leaves no damage; the output has the seed."""

from __future__ import annotations

import secrets
from pathlib import Path

from scripts.crash.__main__ import crash


def test_a_few_rounds_of_make_crash_pass(tmp_path: Path) -> None:
    assert crash(4, secrets.randbelow(1 << 32), tmp_path).total() == 4
