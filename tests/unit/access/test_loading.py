"""The access file is read again when it changes, and what it names with it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

import bcrypt
import pytest

from nixery.access import loading, passwords
from nixery.access.loading import AccessRules
from nixery.access.quotas import Quotas
from nixery.storage.records import RecordStore

_FILE = 'htpasswd = "htpasswd"\nrule = []\n'


@pytest.fixture
def rules(tmp_path: Path, records: RecordStore, monkeypatch: pytest.MonkeyPatch) -> AccessRules:
    hashed = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
    (tmp_path / "htpasswd").write_text(f"alice:{hashed}\n")
    (tmp_path / "access.toml").write_text(_FILE)
    monkeypatch.setattr(loading, "_INTERVAL", 0.01)
    return AccessRules(tmp_path / "access.toml", records, Quotas())


async def test_no_file_is_read_on_the_event_loop(
    rules: AccessRules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading: list[threading.Thread] = []

    def noting(path: Path) -> object:
        reading.append(threading.current_thread())
        return original(path)

    original = passwords._read
    monkeypatch.setattr(passwords, "_read", noting)
    before = rules.current
    watching = asyncio.ensure_future(rules.watch())
    # A slow or distant file system must not delay requests.
    (tmp_path / "access.toml").write_text(_FILE + "show-denials = true\n")
    async with asyncio.timeout(60):
        while rules.current is before:  # noqa: ASYNC110 -- the watch sets no event
            await asyncio.sleep(0.01)
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    await rules.close()
    assert reading
    assert threading.main_thread() not in reading
