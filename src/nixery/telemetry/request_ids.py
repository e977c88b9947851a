"""An identity for each request, in logs, traces and the answer."""

from __future__ import annotations

import itertools
import re
import secrets

# What proxies and clients send: UUIDs, ULIDs, Amazon's "Root=1-...". Nothing that a log or a header could take for more than
# a word.
_WELL_FORMED = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")


class RequestIds:
    """Takes a client's own identity, or makes one: a prefix of this process and a number, which is cheaper than a UUID."""

    def __init__(self) -> None:
        self._prefix = f"{secrets.token_hex(8)}-"
        self._numbers = itertools.count(1)

    def identify(self, given: str | None) -> str:
        """Return the identity of a request.

        Args:
            given: its ``X-Request-Id``; one that is not well-formed is ignored.
        """
        if given is not None and _WELL_FORMED.fullmatch(given):
            return given
        return f"{self._prefix}{next(self._numbers)}"
