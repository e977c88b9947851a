"""The audit log: what its lines have, and what happens when it cannot be written."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from nixery.access.audit import AuditLog
from nixery.access.identity import Identity, Kind
from nixery.access.policy import Access, enter_access
from nixery.builds.events import Build, Started, Stored
from nixery.errors import SettingsError
from nixery.image.name import parse_image_name
from nixery.oci.digest import Digest
from nixery.request_context import Client, Refusal, RequestContext, enter_request
from nixery.server.clients import Clients
from nixery.server.http import Scope
from nixery.server.observation import Observed
from nixery.sources.source import Pin
from tests.support.nix import wait_until

ALICE = Identity(Kind.OIDC, "ci:alice", frozenset({"team"}))
DIGEST = Digest.of(b"manifest")
TIME = 1_700_000_000.25
SECRET = "hunter2"  # noqa: S105 -- has to be missing


@contextmanager
def audit_log(path: Path | None, waiting: int = 1000) -> Iterator[AuditLog]:
    log = AuditLog(path, lambda: TIME, waiting)
    try:
        yield log
    finally:
        log.close()


def as_request(do: Callable[[], object], identity: Identity | None = ALICE) -> None:
    """Do something on behalf of a request."""

    def run() -> None:
        enter_request(RequestContext("request-1", Client("192.0.2.7")))
        if identity is not None:
            enter_access(Access(identity, ()))
        do()

    Context().run(run)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for the thread that writes."""
    wait_until(condition, "the thread has written", every=0.005)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_an_event_says_who_did_what_from_where(path: Path) -> None:
    with audit_log(path) as log:
        as_request(lambda: log.pulled("shell/git", "latest", str(DIGEST)))
        as_request(lambda: log.refused(Refusal("build", "curl", "not allowed")))
        as_request(lambda: log.login_failed("the password is wrong", "bob"), None)
        log.token_created("0123", "alice")
        log.token_revoked("0123", "alice")
    text = path.read_text().splitlines()
    assert text[0] == (
        '{"address": "192.0.2.7", "digest": "' + str(DIGEST) + '", "event": "pulled", '
        '"identity": "ci:alice", "kind": "oidc", "name": "shell/git", "request": "request-1", "tag": "latest", '
        '"time": "2023-11-14T22:13:20.250Z"}'
    )
    pulled, refused, failed, created, revoked = lines(path)
    assert all(list(line) == sorted(line) for line in lines(path))
    assert (refused["event"], refused["right"], refused["name"]) == ("refused", "build", "curl")
    assert (failed["event"], failed["identity"], failed["user"]) == ("login-failed", "anonymous", "bob")
    assert (created["event"], created["kind"], created["owner"]) == ("token-created", "internal", "alice")
    assert (revoked["event"], revoked["token"]) == ("token-revoked", "0123")
    assert pulled["address"] == "192.0.2.7"


def test_a_build_has_the_identity_and_the_address_of_the_request_that_started_it(path: Path) -> None:
    with audit_log(path) as log:

        def build() -> None:
            one = Build.of(parse_image_name("shell/git"), Pin("fake:", "one", "one"), "latest")
            log.observe(one, Started())
            log.observe(one, Stored(DIGEST, 3))

        as_request(build)
        Context().run(build)
    asked, unasked = lines(path)
    assert (asked["event"], asked["name"], asked["tag"]) == ("built", "shell/git", "latest")
    assert (asked["identity"], asked["address"]) == ("ci:alice", "192.0.2.7")
    assert (unasked["identity"], unasked["kind"]) == (None, "internal")


def test_nothing_of_a_header_field_is_written(path: Path) -> None:
    fields = (
        "authorization",
        "cookie",
        "user-agent",
        "x-request-id",
        "traceparent",
        "host",
        "x-forwarded-for",
    )
    headers = dict.fromkeys(fields, SECRET)

    class Connection:
        client = "192.0.2.7:4711"

    scope: Scope = Connection()  # type: ignore[assignment]

    def run() -> None:
        enter_request(Observed("request-1", scope, headers, Clients()))
        enter_access(Access(ALICE, ()))
        log.pulled("git", "latest", str(DIGEST))
        log.refused(Refusal("pull", "git", "not allowed"))
        log.login_failed("the user name or the password is wrong")
        log.observe(Build.of(parse_image_name("git"), Pin("fake:", "one", "one")), Stored(DIGEST, 1))

    with audit_log(path) as log:
        Context().run(run)
    assert len(lines(path)) == 4
    assert {line["address"] for line in lines(path)} == {"192.0.2.7"}
    assert SECRET not in path.read_text()


def test_a_text_of_a_client_stays_on_its_line_and_is_shortened(path: Path) -> None:
    evil = 'git"}\n{"event": "pulled"\x1b[31m\u202e\ud800\x00'
    with audit_log(path) as log:
        as_request(lambda: log.refused(Refusal("pull", evil, "x" * 100_000)))
    assert path.read_bytes().count(b"\n") == 1
    assert path.read_bytes().isascii()
    (line,) = lines(path)
    assert line["name"] == evil
    assert len(line["reason"]) == 512


def test_only_the_user_of_the_server_reads_a_new_file_and_an_old_one_is_appended_to(path: Path) -> None:
    before = os.umask(0)
    try:
        with audit_log(path) as log:
            log.token_created("1", "alice")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with audit_log(path) as log:
        log.token_created("2", "alice")
    assert [line["token"] for line in lines(path)] == ["1", "2"]
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("deleted", [False, True])
def test_a_file_that_was_rotated_away_is_opened_again(path: Path, *, deleted: bool) -> None:
    with audit_log(path) as log:
        log.token_created("1", "alice")
        wait_for(lambda: path.read_bytes().endswith(b"\n"))
        if deleted:
            path.unlink()
        else:
            path.rename(path.with_suffix(".1"))
        log.token_created("2", "alice")
    assert [line["token"] for line in lines(path)] == ["2"]
    if not deleted:
        assert [line["token"] for line in lines(path.with_suffix(".1"))] == ["1"]


def test_events_that_cannot_be_written_are_counted_and_logged_once() -> None:
    with capture_logs() as logs, audit_log(Path("/dev/full")) as log:
        for number in range(50):
            log.token_created(str(number), "alice")
    assert (log.failed, log.dropped) == (50, 0)
    assert [entry["event"] for entry in logs] == ["cannot write the audit log: No space left on device"]


def test_a_directory_that_disappeared_fails_no_request_and_its_return_ends_the_loss(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "audit.jsonl"
    with capture_logs() as logs, audit_log(path) as log:
        path.unlink()
        directory.rmdir()
        log.token_created("1", "alice")
        wait_for(lambda: log.failed == 1)
        directory.mkdir()
        log.token_created("2", "alice")
    assert [line["token"] for line in lines(path)] == ["2"]
    assert [entry["event"] for entry in logs] == ["cannot open the audit log: No such file or directory"]


def test_a_pipe_that_nobody_reads_blocks_no_request(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = AuditLog(pipe, lambda: TIME, 10)
    with capture_logs() as logs:
        for number in range(2000):
            log.token_created("t" * 500, str(number))
    assert log.dropped > 0
    assert [entry["event"] for entry in logs] == [
        "events are lost: too many wait for the audit log to be written"
    ]
    os.set_blocking(reader, True)
    received: list[bytes] = []

    def read() -> None:
        while data := os.read(reader, 1 << 16):
            received.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    log.close()
    thread.join()
    os.close(reader)
    owners = [json.loads(line)["owner"] for line in b"".join(received).splitlines()]
    assert len(owners) == 2000 - log.dropped
    assert owners[:5] == ["0", "1", "2", "3", "4"]


def test_a_torn_line_does_not_spoil_the_next_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    results: Iterator[int | OSError] = iter([10, OSError(28, "No space left on device")])

    def full(file: int, data: bytes) -> int:
        result = next(results, len(data))
        if isinstance(result, OSError):
            raise result
        return write(file, data[:result])

    with capture_logs(), audit_log(path) as log:
        monkeypatch.setattr(os, "write", full)
        log.token_created("1", "alice")
        log.token_created("2", "alice")
        wait_for(lambda: path.read_bytes().endswith(b"}\n"))
        monkeypatch.undo()
    torn, whole = path.read_text().splitlines()
    assert len(torn) == 10
    assert json.loads(whole)["token"] == "2"  # noqa: S105 -- an id


def test_a_file_that_cannot_be_opened_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^NIXERY_AUDIT_LOG: cannot open .*: Is a directory$"):
        AuditLog(tmp_path)


def test_the_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    with audit_log(None) as log:
        log.token_created("1", "alice")
    assert json.loads(capfd.readouterr().out)["event"] == "token-created"
