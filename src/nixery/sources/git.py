"""Package sets in a git repository (``NIXERY_PKGS_REPO``): its branches, tags and commits, and their ancestors."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nixery.errors import AnswerTooLarge, StorageError, TagUnknown
from nixery.files import remove_tree
from nixery.nix.packages import NixFiles
from nixery.nix.processes import ProcessContext, run_command
from nixery.nix.trees import NixStore, TreeCache
from nixery.source_location import COMMIT, SourceLocation
from nixery.sources.git_commands import LOOK_UP_TIMEOUT, BareRepository, Git, LockedRepository, lines_of
from nixery.sources.source import CommitRule, Pin, Reference, is_commit_of

# Seconds to unpack a commit.
_UNPACK_TIMEOUT = 300

# Seconds for which positions of branches and tags are cached: at most once in that time, an unknown commit
# costs a request.
_TIPS_CACHED = 5.0

# A pattern that is valid in git's refspecs, too: at most one asterisk.
_SIMPLE = re.compile(r"[\w./+@-]*\*?[\w./+@-]*", re.ASCII)

# References of a copy: those of the remote, and those that keep fetched commits.
_REMOTE_REFERENCES = "refs/remote/"
_KEPT_REFERENCES = "refs/nixery"
_KINDS = ("heads", "tags")

# Limit in bytes for the list of a commit's files, of which each takes 54 and its name: a million files at
# most. That of nixpkgs has 5 MB.
_LARGEST_LIST = 64 * 1024 * 1024

# The message of a server that serves commits by their digits, and does not have this one (git's
# upload-pack.c).
_COMMIT_MISSING = "not our ref"

# Most recently used commits that are kept; a pin to another one fetches it again. And packs that git may have
# before it collects garbage.
_KEPT = 64
_PACKS = 50


class GitSource:
    """A ``PackageSource`` for a repository: ``latest`` is its default branch, other tags are commits, branches or tags.

    Args:
        location: of the repository.
        repository: at that location.
        rule: the commits that clients may ask for.
        temporary: for unfinished files; belongs to this process.
        store: where checked-out commits go.
        environment: for unpacking.
    """

    def __init__(
        self,
        location: SourceLocation,
        repository: GitRepository,
        rule: CommitRule,
        temporary: Path,
        store: NixStore,
        environment: Mapping[str, str],
    ) -> None:
        self.description = f"git:{location.identity}"
        self._repository = repository
        self._rule = rule
        self._temporary = temporary
        self._store = store
        self._environment = environment
        self._trees = TreeCache(store)

    def reference(self, tag: str) -> Reference:
        """See ``PackageSource.reference``."""
        if tag == "latest":
            return Reference("HEAD", moving=True)
        if COMMIT.fullmatch(tag) is None:
            return Reference(tag, moving=True)
        self._rule.require_commits(tag)
        return Reference(tag, moving=False, rule=self._rule.identity)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:
        """See ``PackageSource.may_mean``: git would accept any reference name in place of an identity."""
        return is_commit_of(reference, pin)

    async def resolve(self, reference: Reference) -> Pin:
        """See ``PackageSource.resolve``. Fetches the commit at once, so that no build waits for it later."""
        if reference.moving:
            commit = (await self._repository.look_up(reference.name)).commit
        else:
            commit = reference.name
            await self._repository.require_accepted(commit)
        created = await self._repository.fetch(commit)
        return Pin(self.description, commit, commit, self._repository.published, created)

    async def require_reachable(self, reference: Reference) -> None:
        """See ``PackageSource.require_reachable``. Fetches no commit."""
        await self._repository.look_up(reference.name)

    async def confirm(self, pin: Pin) -> None:
        """See ``PackageSource.confirm``. A commit stays available."""

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[NixFiles]:
        """See ``PackageSource.open``."""
        async with self._trees.keeping(pin.identity, partial(self._check_out, pin.identity)) as tree:
            yield NixFiles(tree, self_contained=True)

    async def _check_out(self, commit: str) -> Path:
        # Another server on this storage may have resolved the pin.
        await self._repository.fetch(commit)
        directory = Path(tempfile.mkdtemp(dir=self._temporary))
        try:
            archive, tree = directory / "archive.tar", directory / "source"
            await self._repository.archive(commit, archive)
            await asyncio.to_thread(tree.mkdir)
            completed, stderr = await run_command(
                _UNPACK_TIMEOUT,
                *("tar", "--no-same-owner", "-xf", str(archive), "-C", str(tree)),
                context=ProcessContext(self._environment),
            )
            if completed.exit_code != 0:
                raise StorageError(f"cannot unpack a commit: {stderr[-1] if stderr else 'tar failed'}")
            return await self._store.add(tree)
        finally:
            # In a thread, since the author of the commit chose how many files it has.
            await asyncio.to_thread(remove_tree, directory)


@dataclass(frozen=True, slots=True)
class Found:
    """The target of a branch or a tag.

    Attributes:
        commit: its digits.
        name: of the branch or tag, with ``refs/``; ``HEAD`` for the default branch.
    """

    commit: str
    name: str


class GitRepository:
    """A remote repository: its branches and tags, and a bare copy with the commits that were requested.

    Args:
        location: of the repository.
        copies: directory of the copy; made if missing. Servers on one storage share it.
        environment: of git.
        rule: the commits that clients may ask for.

    Attributes:
        published: its URL in annotations of images; see ``SourceLocation``.
    """

    def __init__(
        self, location: SourceLocation, copies: Path, environment: Mapping[str, str], rule: CommitRule
    ) -> None:
        self.published = location.published
        self._git = Git(location, environment)
        name = hashlib.sha256(location.address.encode()).hexdigest()[:16]
        self._copy = BareRepository(self._git, copies / name)
        self._history = CommitHistory(self._git, BareRepository(self._git, copies / f"{name}-history"), rule)

    async def look_up(self, reference: str) -> Found:
        """Return the target of ``HEAD``, or of a branch or a tag; a branch takes precedence.

        Raises:
            TagUnknown: neither exists.
            SourceUnreachable: the repository does not answer.
        """
        branch, tag = f"refs/heads/{reference}", f"refs/tags/{reference}"
        # The second pattern gives the commit of an annotated tag.
        names = {"HEAD": "HEAD"} if reference == "HEAD" else {branch: branch, f"{tag}^{{}}": tag, tag: tag}
        status, output = await self._git.contact(
            "ls-remote", "--", self._git.address, *names, seconds=LOOK_UP_TIMEOUT
        )
        if status != 0:
            raise self._git.disclosure.unreachable(output)
        commits = self._git.listed(output)
        found = next((name for name in names if name in commits), None)
        if found is None:
            raise TagUnknown(reference, f"{self._git.disclosure.name} has no branch or tag of that name")
        return Found(commits[found], names[found])

    async def leading_to(self, commit: str) -> str | None:
        """Return a branch or tag that leads to a commit, with ``refs/``; see ``CommitHistory``.

        Raises:
            SourceUnreachable: the repository does not answer.
        """
        return await self._history.find(commit)

    async def require_accepted(self, commit: str) -> None:
        """Check that clients may ask for a commit, before git fetches any of it.

        Raises:
            TagUnknown: they may not.
            SourceUnreachable: the repository does not answer.
        """
        await self._history.require(commit)

    async def fetch(self, commit: str) -> int:
        """Fetch a commit unless the copy has it; return its date, in seconds since the epoch.

        Raises:
            TagUnknown: the repository does not have it.
            SourceUnreachable: the repository does not answer.
            StorageError: the copy is damaged, or the disk is full.
        """
        # A commit that is here needs no lock, which another server's fetch may hold for minutes. Marked
        # before it is looked for, so that it is not dropped in between.
        await asyncio.to_thread(self._touch, commit)
        if (date := await _date(self._copy, commit)) is not None:
            return date
        async with self._copy.exclusively() as copy:
            # Another request or server may have fetched it meanwhile.
            if (date := await _date(copy, commit)) is not None:
                return date
            await self._fetch(copy, commit)
            await self._forget_old(copy, commit)
            return commit_date(await copy.require(*_show_date(commit)))

    async def archive(self, commit: str, place: Path) -> None:
        """Write a commit's files, as a tar archive.

        Raises:
            AnswerTooLarge: the commit has too many files. A push of a few kilobytes may hold billions: trees
                that contain one tree many times, which contains another one many times.
            StorageError: the copy is damaged, or the disk is full.
        """
        try:
            await self._copy.require("ls-tree", "-r", "-z", "--full-tree", commit, answer=_LARGEST_LIST)
        except AnswerTooLarge as error:
            raise AnswerTooLarge(f"the list of files of commit {commit}", error.limit) from error
        await self._copy.require("archive", "--format=tar", f"--output={place}", commit)

    async def _fetch(self, copy: LockedRepository, commit: str) -> None:
        # Most servers serve a commit by its digits. The reference keeps it from git's garbage collector.
        kept = f"{_KEPT_REFERENCES}/{commit}"
        status, said = await copy.fetch("--depth=1", "--", self._git.address, f"{commit}:{kept}")
        if status == 0 and await _date(copy, commit) is not None:
            return
        if _COMMIT_MISSING in said:
            raise self._missing(commit)
        # This server does not serve single commits. Fetching everything is expensive, but happens once.
        status, said = await copy.fetch("--", self._git.address, "+refs/*:refs/remote/*")
        if status != 0:
            raise self._git.disclosure.unreachable(said)
        if await _date(copy, commit) is None:
            raise self._missing(commit)
        await copy.require("update-ref", kept, commit)

    def _missing(self, commit: str) -> TagUnknown:
        return TagUnknown(commit, f"{self._git.disclosure.name} has no such commit")

    async def _forget_old(self, copy: LockedRepository, newest: str) -> None:
        """Drop the references of commits that were not used recently, and with them their objects."""
        listed = await copy.require("for-each-ref", "--format=%(refname)", _KEPT_REFERENCES)
        commits = [name.rpartition("/")[2] for name in lines_of(listed)]
        if len(commits) <= _KEPT:
            return
        used = await asyncio.to_thread(lambda: {commit: self._last_use(commit) for commit in commits})
        oldest = sorted((commit for commit in commits if commit != newest), key=lambda commit: used[commit])
        for commit in oldest[: len(commits) - _KEPT]:
            await copy.require("update-ref", "-d", f"{_KEPT_REFERENCES}/{commit}")
        # A few packs of garbage cost less than repacking for each commit. References stay loose files, whose
        # times _last_use reads.
        collect = ("-c", "gc.auto=6700", "-c", f"gc.autoPackLimit={_PACKS}", "-c", "gc.autoDetach=false")
        keep = ("-c", "gc.packRefs=false", "-c", "gc.pruneExpire=now", "-c", "gc.reflogExpire=now")
        await copy.run(*collect, *keep, "gc", "--auto", "--quiet")

    def _last_use(self, commit: str) -> float:
        try:
            return (self._copy.directory / _KEPT_REFERENCES / commit).stat().st_mtime
        except OSError:
            return 0.0

    def _touch(self, commit: str) -> None:
        # No file exists for a reference that git has packed, or for a commit of a full copy.
        with suppress(OSError):
            os.utime(self._copy.directory / _KEPT_REFERENCES / commit)


class CommitHistory:
    """Decides whether a branch or a tag leads to a commit.

    Uses a second copy, which holds only commits of branches and tags with all of their ancestors; no other
    commit that the server serves gets into it. Files are left out, if the server supports that.

    Args:
        git: of the repository.
        commits: the second copy.
        rule: which branches and tags count.
        clock: in seconds; only differences matter.
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
        self._tips_expire = -1.0

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
        if (name := await self._containing_ref(commit)) is not None:
            return name
        async with self._one_at_a_time:
            # Another request that held the lock may have fetched it.
            if fetched != self._fetched:
                name = await self._containing_ref(commit)
            name = name or self._tip(commit)
            if name is not None or (self._complete and self._clock() < self._tips_expire):
                return name
            await self._look()
            if (name := self._tip(commit)) is not None or self._complete:
                return name
            await self._fetch()
            return await self._containing_ref(commit)

    def _tip(self, commit: str) -> str | None:
        if self._clock() >= self._tips_expire:
            return None
        return min((f"refs/{name}" for name, tip in self._tips if tip == commit), default=None)

    async def _containing_ref(self, commit: str) -> str | None:
        if not await asyncio.to_thread(self._commits.exists):
            return None
        # Fails for a commit that is not in this repository, and fetches none.
        status, output = await self._commits.run(
            "for-each-ref",
            f"--contains={commit}",
            "--format=%(refname)",
            *(f"{_REMOTE_REFERENCES}{kind}" for kind in _KINDS),
        )
        found = lines_of(output) if status == 0 else ()
        names = (name.removeprefix(_REMOTE_REFERENCES) for name in found)
        return next((f"refs/{name}" for name in names if self._counts(name)), None)

    async def _look(self) -> None:
        """Read the positions of branches and tags: a small request, enough for their newest commits."""
        status, output = await self._git.contact(
            "ls-remote", "--heads", "--tags", "--", self._git.address, seconds=LOOK_UP_TIMEOUT
        )
        if status != 0:
            raise self._git.disclosure.unreachable(output)
        listed = {name.removeprefix("refs/"): commit for name, commit in self._git.listed(output).items()}
        # git lists an annotated tag twice; the last line has its commit.
        peeled = {name.removesuffix("^{}"): commit for name, commit in listed.items()}
        tips = frozenset((name, commit) for name, commit in peeled.items() if self._counts(name))
        self._complete = self._complete and tips == self._tips
        self._tips = tips
        self._tips_expire = self._clock() + _TIPS_CACHED

    async def _fetch(self) -> None:
        async with self._commits.exclusively() as locked:
            status, said = await locked.fetch(
                "--prune", "--filter=tree:0", "--", self._git.address, *self._refspecs()
            )
        if status != 0:
            raise self._git.disclosure.unreachable(said)
        self._complete = True
        self._fetched += 1
        self._tips_expire = self._clock() + _TIPS_CACHED

    def _refspecs(self) -> list[str]:
        patterns = self._rule.patterns if self._rule.patterns is not None else ("*",)
        if not all(_SIMPLE.fullmatch(pattern) for pattern in patterns):
            patterns = ("*",)
        # git fails for a missing reference, unless the refspec is a pattern.
        wanted = [pattern if "*" in pattern else f"{pattern}*" for pattern in patterns]
        return [
            f"+refs/{kind}/{pattern}:{_REMOTE_REFERENCES}{kind}/{pattern}"
            for pattern in wanted
            for kind in _KINDS
        ]

    def _counts(self, name: str) -> bool:
        kind, _, reference = name.partition("/")
        return kind in _KINDS and (not self._rule.checks or self._rule.admits(reference))


def commit_date(said: str) -> int:
    """Parse git's output for a commit's date (``%ct``), in seconds since the epoch; 0 if it is no valid date.

    git prints the field of the commit unchanged: it may be empty, or have thousands of digits.
    """
    digits = (said.split() or [""])[-1]
    return int(digits) if re.fullmatch(r"[0-9]{1,20}", digits) else 0


async def _date(copy: BareRepository | LockedRepository, commit: str) -> int | None:
    status, shown = await copy.run(*_show_date(commit))
    return commit_date(shown) if status == 0 else None


def _show_date(commit: str) -> tuple[str, ...]:
    return ("show", "--no-patch", "--no-show-signature", "--format=%ct", f"{commit}^{{commit}}")
