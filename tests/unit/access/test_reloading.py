"""The access file is read again when it has changed, and not while it is written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nixery.access import loading
from nixery.access.identity import ANONYMOUS, Right
from nixery.access.loading import AccessRules
from nixery.access.quotas import Quotas
from nixery.storage.records import RecordStore

RULE = """
[[rule]]
who = ["everyone"]
may = ["pull"]
"""
LIMIT = 'packages = ["hello"]\n'


async def test_a_file_that_is_being_written_is_not_read(
    tmp_path: Path, records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "access.toml"
    file.write_text(RULE + LIMIT)
    rules = AccessRules(file, records, Quotas())
    before = rules.current
    looks = 0

    def look(_: Path) -> tuple[int, int, int]:
        nonlocal looks
        looks += 1
        if looks == 1:
            file.write_text(RULE)  # and the last line follows
        else:
            assert rules.current is before or looks > 3
            file.write_text(RULE + LIMIT.replace("hello", "git"))
        return min(looks, 2), 0, 0

    monkeypatch.setattr(loading, "_stamp", look)
    monkeypatch.setattr(loading, "_INTERVAL", 0)
    watching = asyncio.create_task(rules.watch())
    async with asyncio.timeout(30):
        while rules.current is before:
            assert not watching.done()
            await asyncio.sleep(0)
    access = rules.current.policy.access(ANONYMOUS)
    assert access.allows_package(Right.PULL, "git")
    assert not access.allows_package(Right.PULL, "curl")
    watching.cancel()
    await rules.close()
