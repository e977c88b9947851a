"""Which commits the branches and tags of a repository lead to."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from nixery.fetching.bare_repository import BareRepository
from nixery.fetching.git_command import LOOK_UP, Git
from nixery.sources.commits import CommitRule

# Seconds for which positions of branches and tags are cached: at most once in that time, an unknown commit
# costs a request.
_SETTLED = 5.0

# A pattern that is valid in git's refspecs, too: at most one asterisk.
_SIMPLE = re.compile(r"[\w./+@-]*\*?[\w./+@-]*", re.ASCII)

_HERE = "refs/remote/"
_KINDS = ("heads", "tags")


class CommitHistory:
    """Decides whether a branch or a tag leads to a commit.

    The repository beside the copy holds only commits of branches and tags, with all of their ancestors. A
    server that serves any commit cannot add one to it that is not in a branch or a tag. Servers that support
    it leave files out.

    Args:
        git: of the repository.
        commits: directory of that repository.
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
        self._fetched = 0
        self._settled_until = -1.0

    async def require(self, commit: str) -> None:
        """Check that clients may ask for a commit.

        Raises:
            TagUnknown: no accepted branch or tag leads to it.
            SourceUnreachable: the repository does not answer.
        """
        if self._rule.checks and await self.find(commit) is None:
            raise self._rule.refusal(commit)

    async def find(self, commit: str) -> str | None:
        """Return an accepted branch or tag that leads to a commit, with ``refs/``; ``None`` if there is none.

        Raises:
            SourceUnreachable: the repository does not answer.
        """
        fetched = self._fetched
        if (name := await self._leading_to(commit)) is not None:
            return name
        async with self._one_at_a_time:
            # Another request that held the lock may have fetched it.
            if fetched != self._fetched:
                name = await self._leading_to(commit)
            name = name or self._tip(commit)
            if name is not None or (self._complete and self._clock() < self._settled_until):
                return name
            await self._look()
            if (name := self._tip(commit)) is not None or self._complete:
                return name
            await self._fetch()
            return await self._leading_to(commit)

    def _tip(self, commit: str) -> str | None:
        if self._clock() >= self._settled_until:
            return None
        return min((f"refs/{name}" for name, tip in self._tips if tip == commit), default=None)

    async def _leading_to(self, commit: str) -> str | None:
        if not await asyncio.to_thread(self._commits.exists):
            return None
        # Fails for a commit that is not in this repository, and fetches none.
        status, output = await self._commits.run(
            "for-each-ref",
            f"--contains={commit}",
            "--format=%(refname)",
            *(f"{_HERE}{kind}" for kind in _KINDS),
        )
        names = (name.removeprefix(_HERE) for name in output.split()) if status == 0 else ()
        return next((f"refs/{name}" for name in names if self._counts(name)), None)

    async def _look(self) -> None:
        """Read the positions of branches and tags: a small request, enough for their newest commits."""
        status, output = await self._git.contact(
            "ls-remote", "--heads", "--tags", "--", self._git.address, seconds=LOOK_UP
        )
        if status != 0:
            raise self._git.disclosure.unreachable(output)
        lines = (line.partition("\t") for line in output.splitlines())
        listed = {name.removeprefix("refs/"): commit for commit, _, name in lines}
        # git lists an annotated tag twice; the last line has its commit.
        peeled = {name.removesuffix("^{}"): commit for name, commit in listed.items()}
        tips = frozenset((name, commit) for name, commit in peeled.items() if self._counts(name))
        self._complete = self._complete and tips == self._tips
        self._tips = tips
        self._settled_until = self._clock() + _SETTLED

    async def _fetch(self) -> None:
        async with self._commits.exclusively() as locked:
            status, said = await locked.fetch(
                "--prune", "--filter=tree:0", "--", self._git.address, *self._refspecs()
            )
        if status != 0:
            raise self._git.disclosure.unreachable(said)
        self._complete = True
        self._fetched += 1
        self._settled_until = self._clock() + _SETTLED

    def _refspecs(self) -> list[str]:
        patterns = self._rule.patterns if self._rule.patterns is not None else ("*",)
        if not all(_SIMPLE.fullmatch(pattern) for pattern in patterns):
            patterns = ("*",)
        # git fails for a missing reference, unless the refspec is a pattern.
        wanted = [pattern if "*" in pattern else f"{pattern}*" for pattern in patterns]
        return [f"+refs/{kind}/{pattern}:{_HERE}{kind}/{pattern}" for pattern in wanted for kind in _KINDS]

    def _counts(self, name: str) -> bool:
        kind, _, reference = name.partition("/")
        return kind in _KINDS and (not self._rule.checks or self._rule.admits(reference))
