"""Errors of sources: the log gets the reason; clients get it only if the source is public."""

from __future__ import annotations

import structlog

from nixery.errors import SourceUnreachable
from nixery.sources.location import SourceLocation

# Characters of a program's message; a server may have it repeat anything.
_LONGEST = 500

_log = structlog.get_logger("nixery.sources")


class Disclosure:
    """Messages about one source, without its secrets.

    Args:
        location: of the source.
    """

    def __init__(self, location: SourceLocation) -> None:
        self._location = location

    @property
    def name(self) -> str:
        """The source, in messages for clients."""
        return self._location.name

    def unreachable(self, reason: str) -> SourceUnreachable:
        """Return the error of a source that cannot be read, and log why.

        Args:
            reason: in the words of git or Nix, which may repeat a URL.
        """
        said = " ".join(self._location.redact(reason).split())[:_LONGEST] or "no reason given"
        _log.warning("package source unreachable", source=self._location.shown, reason=said)
        if self._location.is_told:
            return SourceUnreachable(f"cannot read {self.name}: {said}")
        return SourceUnreachable(f"cannot read {self.name}; the server's log has the reason")
