"""What a tag means where packages come from a channel of nixpkgs."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from nixery.errors import TagUnknown
from nixery.sources.location import COMMIT
from nixery.sources.source import Reference

# In a list of patterns: any commit.
COMMITS = "commits"


def channel_reference(tag: str, configured: str, allowed: Sequence[str]) -> Reference:
    """Tell which channel or commit a tag selects.

    Args:
        tag: ``latest`` for the configured one; otherwise a name or 40 digits.
        configured: name or commit.
        allowed: patterns, in which ``*`` stands for anything, and ``commits`` for any commit.

    Raises:
        TagUnknown: it is not allowed.
    """
    selected = configured if tag == "latest" else tag
    is_commit = COMMIT.fullmatch(selected) is not None
    patterns = [pattern for pattern in allowed if pattern != COMMITS]
    matches = any(fnmatchcase(tag, pattern) for pattern in patterns)
    if selected != configured and not matches and not (is_commit and COMMITS in allowed):
        names = ", ".join("a commit's 40 digits" if pattern == COMMITS else pattern for pattern in allowed)
        raise TagUnknown(tag, f"is no channel that can be had here; latest, or one of: {names}")
    return Reference(selected, moving=not is_commit)
