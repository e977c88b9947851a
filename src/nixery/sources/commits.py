"""Which commits a tag may name (``NIXERY_COMMITS``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from nixery.errors import TagUnknown

REACHABLE, ANY, NONE = "reachable", "any", "none"

# Of branches and tags, in which "*" stands for anything.
_PATTERN = re.compile(r"[\w./+@*?-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class CommitRule:
    """Which commits of a repository clients may ask for.

    A server hands out more than its branches hold: forges keep the commits of forks in the same repository, and git's protocol
    gives any object to those who know its digits. So a commit counts only if a branch or a tag leads to it.

    Attributes:
        setting: as the operator wrote it.
        patterns: of the branches and tags that count; ``None`` for any commit that the server hands out.
    """

    setting: str
    patterns: tuple[str, ...] | None

    @classmethod
    def parse(cls, text: str) -> CommitRule:
        """Read the setting.

        Raises:
            ValueError: it is none of the three words, and no list of patterns.
        """
        words = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if words == (REACHABLE,):
            return cls(REACHABLE, ("*",))
        if words == (ANY,):
            return cls(ANY, None)
        if words == (NONE,):
            return cls(NONE, ())
        wrong = [word for word in words if word in {REACHABLE, ANY, NONE} or not _PATTERN.fullmatch(word)]
        if wrong or not words:
            raise ValueError(
                f"{text!r} is not understood; write reachable, any, none, or patterns of branches and tags (main,release-*)"
            )
        return cls(",".join(words), words)

    def within(self, patterns: Sequence[str]) -> CommitRule:
        """Return this rule for a source that has these branches alone; patterns of the operator's stay as they are."""
        return CommitRule(self.setting, tuple(patterns)) if self.setting == REACHABLE else self

    @property
    def identity(self) -> str:
        """Of the rule; what was accepted by one is not accepted by another."""
        return ",".join(["commits", self.setting, *(self.patterns or ())])

    @property
    def checks(self) -> bool:
        """Whether a commit has to be looked for in the history of branches and tags."""
        return self.patterns is not None

    def admits(self, reference: str) -> bool:
        """Whether a branch or tag counts.

        Args:
            reference: without ``refs/heads/`` and ``refs/tags/``.
        """
        return any(fnmatchcase(reference, pattern) for pattern in self.patterns or ())

    def require_commits(self, tag: str) -> None:
        """Make sure that a commit may be asked for at all.

        Raises:
            TagUnknown: none may.
        """
        if self.patterns == ():
            raise TagUnknown(
                tag, f"commits are no tags here (NIXERY_COMMITS={self.setting}); ask for a branch or a tag"
            )

    def refusal(self, tag: str) -> TagUnknown:
        """Say that no branch and no tag leads to a commit."""
        return TagUnknown(
            tag,
            f"not an ancestor of a branch or tag of this package source (NIXERY_COMMITS={self.setting}); ask for a branch or "
            "a tag, or have the commit merged into one",
        )
