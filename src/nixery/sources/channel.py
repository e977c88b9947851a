"""What a tag means where packages come from a channel of nixpkgs."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from nixery.errors import TagUnknown
from nixery.sources.commits import CommitRule
from nixery.sources.location import COMMIT
from nixery.sources.source import Reference

# In a list of patterns: commits, subject to NIXERY_COMMITS.
COMMITS = "commits"


def channel_rule(rule: CommitRule, configured: str, allowed: Sequence[str]) -> CommitRule:
    """Return the accepted commits: by default, those of the channels that clients may ask for."""
    names = () if COMMIT.fullmatch(configured) else (configured,)
    return rule.within([*names, *(pattern for pattern in allowed if pattern != COMMITS)])


def channel_reference(tag: str, configured: str, allowed: Sequence[str], rule: CommitRule) -> Reference:
    """Resolve a tag to a channel or a commit.

    Args:
        tag: ``latest`` for the configured one; otherwise a name or 40 digits.
        configured: name or commit.
        allowed: patterns, in which ``*`` matches anything, and ``commits`` stands for commits.
        rule: the commits that clients may ask for.

    Raises:
        TagUnknown: it is not allowed.
    """
    selected = configured if tag == "latest" else tag
    is_commit = COMMIT.fullmatch(selected) is not None
    if selected == configured:
        return Reference(selected, moving=not is_commit)
    if is_commit and COMMITS in allowed:
        rule.require_commits(tag)
        return Reference(selected, moving=False, rule=rule.identity)
    # A pattern that happens to match 40 digits does not allow commits.
    if is_commit or not any(fnmatchcase(tag, pattern) for pattern in allowed if pattern != COMMITS):
        names = ", ".join("a commit's 40 digits" if pattern == COMMITS else pattern for pattern in allowed)
        raise TagUnknown(tag, f"is no channel that can be had here; latest, or one of: {names}")
    return Reference(selected, moving=True)
