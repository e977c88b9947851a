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
    """The commits of a repository that clients may ask for.

    A server serves more commits than its branches have: forges keep the commits of forks in the same
    repository, and git's protocol serves any object by its digits. So a commit is accepted only if a branch
    or a tag leads to it.

    Attributes:
        setting: as the operator wrote it.
        patterns: of the accepted branches and tags; ``None`` for any commit that the server serves.
    """

    setting: str
    patterns: tuple[str, ...] | None

    @classmethod
    def parse(cls, text: str) -> CommitRule:
        """Read the setting.

        Raises:
            ValueError: it is none of the three words, and not a list of patterns.
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
        """Return this rule for a source that has only these branches; keep an operator's patterns."""
        return CommitRule(self.setting, tuple(patterns)) if self.setting == REACHABLE else self

    @property
    def identity(self) -> str:
        """Identify the rule; a commit that one rule accepted is not accepted by another."""
        return ",".join(["commits", self.setting, *(self.patterns or ())])

    @property
    def checks(self) -> bool:
        """Whether a commit must be in the history of branches and tags."""
        return self.patterns is not None

    def admits(self, reference: str) -> bool:
        """Whether a branch or tag is accepted.

        Args:
            reference: without ``refs/heads/`` and ``refs/tags/``.
        """
        return any(fnmatchcase(reference, pattern) for pattern in self.patterns or ())

    def require_commits(self, tag: str) -> None:
        """Check that clients may ask for commits at all.

        Raises:
            TagUnknown: they may not.
        """
        if self.patterns == ():
            raise TagUnknown(
                tag, f"commits are no tags here (NIXERY_COMMITS={self.setting}); ask for a branch or a tag"
            )

    def refusal(self, tag: str) -> TagUnknown:
        """Return the error for a commit that no branch and no tag leads to."""
        return TagUnknown(
            tag,
            f"not an ancestor of a branch or tag of this package source (NIXERY_COMMITS={self.setting}); ask for a branch or "
            "a tag, or have the commit merged into one",
        )
