"""The access file is read again when it changes, and what it names with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import bcrypt
import pytest
import trustme
from structlog.testing import capture_logs

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


@asynccontextmanager
async def watched(rules: AccessRules) -> AsyncIterator[None]:
    watching = asyncio.ensure_future(rules.watch())
    yield
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    await rules.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 -- the watch sets no event
            await asyncio.sleep(0.01)


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
    async with watched(rules):
        # A slow or distant file system must not delay requests.
        (tmp_path / "access.toml").write_text(_FILE + "show-denials = true\n")
        await until(lambda: rules.current is not before)
    assert reading
    assert threading.main_thread() not in reading


async def test_a_mistake_in_another_file_is_logged_once_and_its_correction_applies(
    rules: AccessRules, tmp_path: Path
) -> None:
    before = rules.current
    with capture_logs() as lines:
        async with watched(rules):
            # Neither file was watched before.
            section = '[client-certificates]\naddresses = ["127.0.0.1"]\nca-file = "clients.pem"\n'
            (tmp_path / "access.toml").write_text(f'htpasswd = "others"\nrule = []\n{section}')
            await until(lambda: len(lines) == 1)
            assert "others" in lines[0]["problems"][0]
            (tmp_path / "others").write_text("")
            await until(lambda: len(lines) == 2)
            assert "clients.pem" in lines[1]["problems"][0]
            assert rules.current is before
            (tmp_path / "clients.pem").write_bytes(trustme.CA().cert_pem.bytes())
            await until(lambda: rules.current is not before)
    assert [line["event"] for line in lines[2:]] == ["loaded the access file"]
