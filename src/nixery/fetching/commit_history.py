"""Which commits the branches and tags of a repository lead to."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from nixery.fetching.git_command import LOOK_UP, BareRepository, Git
from nixery.sources.commits import CommitRule

# Seconds for which a repository's branches are taken to be where they were: so often one more commit that is in none costs a question.
_SETTLED = 5.0

# A pattern that git's refspecs have too: at most one asterisk.
_SIMPLE = re.compile(r"[\w./+@-]*\*?[\w./+@-]*", re.ASCII)

_HERE = "refs/remote/"
_KINDS = ("heads", "tags")


class CommitHistory:
    """Decides whether a branch or a tag leads to a commit.

    The repository beside the copy holds commits alone, of branches and tags and of nothing else, with all of their ancestors:
    a server that hands out any commit cannot put one in here without having it in a branch or a tag. Files are left out by
    servers that can do that.

    Args:
        git: of the repository.
        commits: where its history is.
        rule: which branches and tags count.
        clock: seconds; only differences matter.
    """

    def __init__(
        self,
        git: Git,
        commits: BareRepository,
        rule: CommitRule,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._git = git
        self._commits = commits
        self._rule = rule
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._tips: frozenset[tuple[str, str]] = frozenset()
        self._complete = False
        self._settled_until = -1.0

    async def require(self, commit: str) -> None:
        """Make sure that a commit is an ancestor of a branch or a tag that counts, or the same.

        Raises:
            TagUnknown: it is not.
            SourceUnreachable: the repository cannot be asked.
        """
        if not self._rule.checks or await self._leads_to(commit):
            return
        async with self._one_at_a_time:
            # What others who waited have fetched.
            if await self._leads_to(commit) or self._is_tip(commit):
                return
            if self._clock() < self._settled_until and self._complete:
                raise self._rule.refusal(commit)
            await self._look()
            if self._is_tip(commit):
                return
            if not self._complete:
                await self._fetch()
                if await self._leads_to(commit):
                    return
        raise self._rule.refusal(commit)

    def _is_tip(self, commit: str) -> bool:
        is_fresh = self._clock() < self._settled_until
        return is_fresh and any(commit == tip for _, tip in self._tips)

    async def _leads_to(self, commit: str) -> bool:
        if not await asyncio.to_thread(self._commits.exists):
            return False
        # It fails for a commit that is not here, and fetches none.
        status, output = await self._commits.run(
            "for-each-ref",
            f"--contains={commit}",
            "--format=%(refname)",
            *(f"{_HERE}{kind}" for kind in _KINDS),
        )
        return status == 0 and any(self._counts(name.removeprefix(_HERE)) for name in output.split())

    async def _look(self) -> None:
        """Read where branches and tags are: a small question, which is all that a commit at one of their ends costs."""
        status, output = await self._git.contact(
            "ls-remote", "--heads", "--tags", "--", self._git.address, seconds=LOOK_UP
        )
        if status != 0:
            raise self._git.disclosure.unreachable(output)
        lines = (line.partition("\t") for line in output.splitlines())
        listed = {name.removeprefix("refs/"): commit for commit, _, name in lines}
        # An annotated tag is listed twice, at last with the commit that it is of.
        peeled = {name.removesuffix("^{}"): commit for name, commit in listed.items()}
        tips = frozenset((name, commit) for name, commit in peeled.items() if self._counts(name))
        self._complete = self._complete and tips == self._tips
        self._tips = tips
        self._settled_until = self._clock() + _SETTLED

    async def _fetch(self) -> None:
        async with self._commits.exclusively():
            status, said = await self._commits.fetch(
                "--prune", "--filter=tree:0", "--", self._git.address, *self._refspecs()
            )
        if status != 0:
            raise self._git.disclosure.unreachable(said)
        self._complete = True
        self._settled_until = self._clock() + _SETTLED

    def _refspecs(self) -> list[str]:
        patterns = self._rule.patterns or ()
        if not all(_SIMPLE.fullmatch(pattern) for pattern in patterns):
            patterns = ("*",)
        # One that is not there would be an error, unless it might be several.
        wanted = [pattern if "*" in pattern else f"{pattern}*" for pattern in patterns]
        return [f"+refs/{kind}/{pattern}:{_HERE}{kind}/{pattern}" for pattern in wanted for kind in _KINDS]

    def _counts(self, name: str) -> bool:
        kind, _, reference = name.partition("/")
        return kind in _KINDS and self._rule.admits(reference)
