"""How commands show what they do: bars on a terminal, lines elsewhere, JSON for machines. All but the result goes to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

import structlog
import typer

from nixery.cli.bars import BarReporter
from nixery.errors import NixeryError
from nixery.nix.progress import Building, Fetching, LogLines
from nixery.pipeline.events import (
    Build,
    BuildEvent,
    Evaluated,
    Failed,
    Grouped,
    LayerPacked,
    LayerReused,
    NamesClashed,
    Realised,
    Reused,
    Stored,
)
from nixery.pipeline.logging_observer import LoggingObserver
from nixery.pushing.events import BlobPushed, BytesPushed, Pushed, PushEvent, PushStarted

_log = structlog.get_logger("nixery.push")


class Reporter(Protocol):
    """Shows a command's progress; a ``BuildObserver``, too."""

    def observe(self, build: Build, event: BuildEvent) -> None:
        """Take note of an event in a build."""
        ...

    def pushing(self, event: PushEvent) -> None:
        """Take note of an event in a push."""
        ...

    def failed(self, error: NixeryError) -> None:
        """Take note of the end; the message itself is told by the command."""
        ...

    def finished(self, result: dict[str, Any]) -> None:
        """Print the result, which has a ``digest``."""
        ...

    def close(self) -> None:
        """Leave a terminal as it was, however the command ends."""
        ...


def reporter(*, as_json: bool, quiet: bool) -> Reporter:
    """Choose how progress is shown, by what was asked for and by where stderr goes."""
    if as_json:
        return JsonReporter()
    return BarReporter() if sys.stderr.isatty() and not quiet else LineReporter()


class LineReporter:
    """Log lines; the level of the logs says how many."""

    def __init__(self) -> None:
        self._builds = LoggingObserver()

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``Reporter``."""
        self._builds.observe(build, event)

    def pushing(self, event: PushEvent) -> None:
        """See ``Reporter``."""
        match event:
            case PushStarted(target, blobs, size):
                _log.info("pushing", target=target, blobs=blobs, bytes=size)
            case Pushed(target, digest):
                _log.info("pushed", target=target, digest=digest)
            case BlobPushed() | BytesPushed():
                pass

    def failed(self, error: NixeryError) -> None:
        """See ``Reporter``."""

    def finished(self, result: dict[str, Any]) -> None:
        """See ``Reporter``."""
        typer.echo(result["digest"])

    def close(self) -> None:
        """See ``Reporter``."""


class JsonReporter:
    """One JSON object a line on stdout, each with ``event``; the last one is ``result`` or ``error``."""

    def observe(self, build: Build, event: BuildEvent) -> None:
        """See ``Reporter``."""
        request = build.request
        image = {"image": "/".join(request.requested), "platform": str(request.platform)}
        self._print(_event_name(event), {**image, **_fields(event)})

    def pushing(self, event: PushEvent) -> None:
        """See ``Reporter``."""
        match event:
            case PushStarted(target, blobs, size):
                self._print("push-started", {"target": target, "blobs": blobs, "size": size})
            case BlobPushed(target, digest, size, how):
                self._print("blob-pushed", {"target": target, "digest": digest, "size": size, "how": how})
            case Pushed(target, digest):
                self._print("pushed", {"target": target, "digest": digest})
            case BytesPushed():
                pass  # too many for lines

    def failed(self, error: NixeryError) -> None:
        """See ``Reporter``."""
        self._print("error", {"message": str(error)})

    def finished(self, result: dict[str, Any]) -> None:
        """See ``Reporter``."""
        self._print("result", result)

    def close(self) -> None:
        """See ``Reporter``."""

    def _print(self, event: str, fields: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()


def _event_name(event: BuildEvent) -> str:
    name = type(event).__name__
    return "".join(f"-{c.lower()}" if c.isupper() and at else c.lower() for at, c in enumerate(name))


def _fields(event: BuildEvent) -> dict[str, Any]:  # noqa: C901, PLR0911 -- a case each
    match event:
        case Fetching(done, expected):
            return {"done": done, "expected": expected}
        case Building(derivations, done):
            return {"derivations": list(derivations), "done": done}
        case LogLines(lines, dropped):
            written = [{"derivation": derivation, "text": text} for derivation, text in lines]
            return {"lines": written, "dropped": dropped}
        case Evaluated(packages):
            return {"packages": len(packages)}
        case Realised(paths, size):
            return {"paths": paths, "size": size}
        case Grouped(layers):
            return {"layers": layers}
        case LayerPacked(layer) | LayerReused(layer):
            return {"digest": str(layer.descriptor.digest), "size": layer.descriptor.size}
        case Stored(manifest) | Reused(manifest):
            return {"manifest": str(manifest)}
        case NamesClashed(clashes):
            return {"names": [clash.name for clash in clashes]}
        case Failed(error):
            return {"message": str(error)}
        case _:
            return {}
