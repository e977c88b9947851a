"""The audit log: who pulled what, had what built, was refused, and which tokens were made. JSON, one object per line.

Request handlers put events into a bounded queue; a thread writes them. So a full disk, a slow pipe or a rotation
neither delays nor fails a request: events that cannot be written are lost, and counted.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import structlog

from nixery.access.identity import ANONYMOUS, Identity
from nixery.access.policy import current_access
from nixery.builds.events import Build, BuildEvent, Stored
from nixery.errors import SettingsError
from nixery.plain_text import shortened
from nixery.request_context import Refusal, RequestContext, current_request

# Events that wait for the thread, and those that it writes before it looks for a rotation again.
_QUEUE, _BATCH = 10_000, 100

# Characters of a text. Names of images are shorter.
_LONGEST = 512

# Only the server's user can read a file that is created here.
_MODE = 0o600
_STDOUT = 1

# Seconds for the events that are left when the server stops.
_LEFT = 5.0

_log = structlog.get_logger("nixery.audit")


class Event(StrEnum):
    """What happened."""

    PULLED = "pulled"
    BUILT = "built"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    LOGIN_FAILED = "login-failed"
    TOKEN_CREATED = "token-created"  # noqa: S105 -- an event
    TOKEN_REVOKED = "token-revoked"  # noqa: S105


class AuditLog:
    """Writes events. Those of requests have the identity, the address and the id of the current request.

    No header field is written. Texts that clients choose are shortened, and escaped as JSON in ASCII.

    Args:
        path: of the file, created if it is missing and opened again if it was moved or deleted; ``None`` for the
            standard output.
        clock: seconds since the epoch.
        waiting: events that may wait for the thread.

    Attributes:
        dropped: events that were lost because too many waited.
        failed: events that could not be written.

    Raises:
        SettingsError: the file cannot be opened.
    """

    def __init__(
        self, path: Path | None, clock: Callable[[], float] = time.time, waiting: int = _QUEUE
    ) -> None:
        self.dropped = self.failed = 0
        self._clock = clock
        self._path = path
        self._file: int | None = None
        # Whether the last write ended within a line; and the errors that the log has already.
        self._torn = False
        self._logged: set[str] = set()
        try:
            self._open()
        except OSError as error:
            raise SettingsError((f"NIXERY_AUDIT_LOG: cannot open {path}: {error.strerror}",)) from None
        self._queue: queue.Queue[bytes | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._write_all, name="audit-log", daemon=True)
        self._thread.start()

    def pulled(self, name: str, tag: str, digest: str) -> None:
        """Record the answer to a request for an image by tag."""
        self._add(Event.PULLED, name=name, tag=tag, digest=digest)

    def cancelled(self, build: str, name: str, platform: str, tag: str | None) -> None:
        """Record that a build was cancelled.

        Args:
            build: its id.
            name: of the image, without the platform.
            platform: of the image.
            tag: that the request for it named; ``None`` if it is unknown.
        """
        self._add(Event.CANCELLED, build=build, name=name, platform=platform, tag=tag)

    def refused(self, refusal: Refusal) -> None:
        """Record that something was not allowed."""
        self._add(Event.REFUSED, right=refusal.right, name=refusal.name, reason=refusal.reason)

    def login_failed(self, reason: str, user: str | None = None) -> None:
        """Record that credentials were wrong.

        Args:
            reason: for people.
            user: that exists; ``None`` for another one: people also type passwords there.
        """
        self._write(Event.LOGIN_FAILED, ANONYMOUS, user=user, reason=reason)

    def token_created(self, token: str, owner: str) -> None:
        """Record that a token was created, by its public id."""
        self._add(Event.TOKEN_CREATED, token=token, owner=owner)

    def token_revoked(self, token: str, owner: str) -> None:
        """Record that a token was revoked, by its public id."""
        self._add(Event.TOKEN_REVOKED, token=token, owner=owner)

    def observe(self, build: Build, event: BuildEvent) -> None:
        """Record an image that was built: this is a ``BuildObserver``."""
        if isinstance(event, Stored):
            self._add(
                Event.BUILT,
                build.address,
                build=build.id,
                name=build.request.name,
                platform=str(build.request.platform),
                tag=build.tag,
                digest=str(event.manifest),
            )

    def close(self) -> None:
        """Write the events that are left, for five seconds at most. Blocks."""
        # A reader that does not read its pipe keeps the thread, and the queue full.
        with suppress(queue.Full):
            self._queue.put(None, timeout=_LEFT)
        self._thread.join(_LEFT)

    def _add(self, event: Event, address: str | None = None, **fields: str | None) -> None:
        self._write(event, current_access().identity, address, **fields)

    def _write(
        self, event: Event, identity: Identity, address: str | None = None, **fields: str | None
    ) -> None:
        request = current_request()
        document = {
            **fields,
            "time": _utc(self._clock()),
            "event": event.value,
            **_party(identity, request, address),
        }
        shown = {name: shortened(value, _LONGEST) if value else value for name, value in document.items()}
        line = json.dumps(shown, sort_keys=True).encode() + b"\n"
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self.dropped += 1
            self._complain("events are lost: too many wait for the audit log to be written")

    def _write_all(self) -> None:
        ended = False
        while not ended:
            lines = [self._queue.get()]
            with suppress(queue.Empty):
                while len(lines) < _BATCH:
                    lines.append(self._queue.get_nowait())
            ended = None in lines
            written = [line for line in lines if line is not None]
            try:
                self._open()
            except OSError as error:
                self.failed += len(written)
                self._complain(f"cannot open the audit log: {error.strerror}")
                continue
            for line in written:
                self._write_line(line)
        if self._file is not None and self._path is not None:
            os.close(self._file)

    def _write_line(self, line: bytes) -> None:
        """Write a line by one call: of several processes that append to a file, none writes within another's line."""
        if self._file is None:
            raise AssertionError("the file was opened before")
        line = b"\n" + line if self._torn else line
        rest = line
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            self._torn = False
        except OSError as error:
            self._torn = len(rest) < len(line) or self._torn
            self.failed += 1
            self._complain(f"cannot write the audit log: {error.strerror}")

    def _open(self) -> None:
        """Open the file, unless it is open and still has its name."""
        if self._path is None:
            self._file = _STDOUT
            return
        if self._file is not None:
            with suppress(FileNotFoundError):
                if os.path.samestat(self._path.stat(), os.fstat(self._file)):
                    return
        # As with `>>`, a file that is there keeps its mode: a program that ships it may be allowed to read it.
        opened = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        if self._file is not None:
            os.close(self._file)
        self._file, self._torn = opened, False

    def _complain(self, problem: str) -> None:
        """Log a problem, each kind once: one that lasts would fill the log."""
        if problem not in self._logged:
            self._logged.add(problem)
            _log.error(problem, dropped=self.dropped, failed=self.failed)


def _party(identity: Identity, request: RequestContext | None, address: str | None) -> dict[str, str | None]:
    """Return who an event is about; nothing for work that no request asked for."""
    if request is None:
        return {"identity": None, "kind": "internal", "request": None, "address": None}
    return {
        "identity": str(identity),
        "kind": identity.kind.value,
        "request": request.id,
        "address": address or request.address or None,
    }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
