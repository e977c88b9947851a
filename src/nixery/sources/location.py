"""URLs of package sources, without what is nobody's business."""

from __future__ import annotations

import re

# A password may have an "@" that nobody encoded; up to the last one before the path, none of it is an address.
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]*@")

# A commit: SHA-1, as in every repository of note.
COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


def without_credentials(url: str) -> str:
    """Return a URL as it may be shown: without user and password, unless it is SSH, where the user is part of the address."""
    return url if url.startswith(("ssh://", "git+ssh://")) else _CREDENTIALS.sub("", url)


def public_url(url: str) -> str | None:
    """Return a URL for others to fetch from; ``None`` for a place on this machine."""
    shown = without_credentials(url)
    is_network = "://" in shown and not shown.startswith(("file://", "git+file://"))
    is_short_ssh = re.match(r"[\w.-]+@[\w.-]+:", shown) is not None
    return shown if is_network or is_short_ssh else None
