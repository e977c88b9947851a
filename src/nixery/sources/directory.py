"""Package sets in a directory of this machine (``NIXERY_PKGS_PATH``): pinned by a digest of everything in it.

Git only gives the state a name for people: the last commit, and whether there are changes since.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import re
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from nixery.errors import (
    AnswerTooLarge,
    NixeryError,
    NixTimedOut,
    NixUnusable,
    PackageSetChanged,
    SourceUnreachable,
)
from nixery.files import LIST, READ
from nixery.nix.environments import with_git_settings
from nixery.nix.packages import NixFiles
from nixery.nix.processes import ProcessContext, run_command
from nixery.sources.git import commit_date
from nixery.sources.source import Pin, Reference

# Every tag means the current state.
_REFERENCE = Reference("", moving=True)

# Seconds. Looking through the working tree of nixpkgs takes less than one.
_GIT_TIMEOUT = 30

# The directory may belong to another user, whose packages the server evaluates; but no program in its git
# configuration may run here.
_SETTINGS = (
    ("safe.directory", "*"),
    ("safe.bareRepository", "explicit"),
    ("core.fsmonitor", "false"),
    ("core.hooksPath", "/dev/null"),
    ("core.sshCommand", "false"),
    ("log.showSignature", "false"),
    ("diff.external", ""),
    ("diff.ignoreSubmodules", "all"),
    ("status.submoduleSummary", "false"),
    ("submodule.recurse", "false"),
)

# Filters change the content of files, by programs that a configuration names.
_FILTER = re.compile(r"(filter\..*)\.(?:clean|smudge|process|required)", re.DOTALL)

# Of a repository's own configuration, what decides whether a file counts as changed; none of it names a program.
_COMPARING = re.compile(
    r"core\.(?:autocrlf|eol|filemode|symlinks|ignorecase|excludesfile|attributesfile|checkstat|trustctime"
    r"|sparsecheckout|sparsecheckoutcone)|status\.showuntrackedfiles"
)

# The head of a working tree: digits of SHA-1 or of SHA-256.
_HEAD = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", re.ASCII)
_SHA1_DIGITS = 40

# Files of a split index that are found.
_MOST_SHARED = 16

# Nanoseconds since its last change after which a file's time stamps show another change.
_TIME_STAMP_MARGIN = 2_000_000_000

# Git's own files change with every command, Python's caches with every run; neither is part of a package set.
_LEFT_OUT = frozenset({b".git", b"__pycache__"})

# File systems whose files are generated on reading, and may be endless.
_GENERATED_FILE_SYSTEMS = (b"/proc", b"/sys", b"/dev")

# Limits for one package set; nixpkgs has 40,000 files and 500 MB. Links may lead to far more than intended.
_MOST_ENTRIES = 2_000_000
_MOST_TREES = 1_000
_MOST_BYTES = 64 * 1024**3

# Device, inode, size, time of the last change of content, and of any change, which programs cannot set.
_Version = tuple[int, int, int, int, int]


class DirectorySource:
    """A ``PackageSource`` for a directory, or for a single Nix file.

    Nix reads the directory in place, so that files may refer to their neighbours. There are no copies of old
    states: an image is served as long as its pin lasts, but a new build uses the current state, and moves the
    pin.

    Args:
        path: absolute. Symlinks are followed at each use, so that moving one can replace the package set.
        environment: of git.
        temporary: for a copy of git's configuration; ``None`` for the system's directory.
    """

    def __init__(self, path: Path, environment: Mapping[str, str], temporary: Path | None = None) -> None:
        self.description = f"path:{path}"
        self._environment = environment
        self._temporary = temporary
        self._last: Pin | None = None
        self._path = path
        self._fingerprint = Fingerprint()
        self._one_at_a_time = asyncio.Lock()

    def reference(self, tag: str) -> Reference:  # noqa: ARG002 -- see _REFERENCE
        """See ``PackageSource.reference``."""
        return _REFERENCE

    def may_mean(self, reference: Reference, pin: Pin) -> bool:  # noqa: ARG002 -- see below
        """See ``PackageSource.may_mean``. A directory is always read in its current state."""
        return True

    async def resolve(self, reference: Reference) -> Pin:  # noqa: ARG002 -- there is only one
        """See ``PackageSource.resolve``."""
        return await self._pin()

    async def require_reachable(self, reference: Reference) -> None:  # noqa: ARG002 -- there is only one
        """See ``PackageSource.require_reachable``."""
        await self._pin()

    async def look_ahead(self) -> None:
        """Read the directory in advance; from then on, a pin only reads what has changed.

        Ignores errors, which the first request reports.
        """
        with suppress(SourceUnreachable):
            await self._pin()

    async def confirm(self, pin: Pin) -> None:
        """See ``PackageSource.confirm``."""
        if (await self._pin()).identity != pin.identity:
            raise PackageSetChanged

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[NixFiles]:
        """See ``PackageSource.open``."""
        await self.confirm(pin)
        try:
            yield NixFiles(self._path.resolve(), self_contained=False)
        except NixeryError:
            # A change in progress may be the cause.
            await self.confirm(pin)
            raise
        await self.confirm(pin)

    async def _pin(self) -> Pin:
        async with self._one_at_a_time:
            try:
                fingerprint = await asyncio.to_thread(self._fingerprint.of, self._path)
            except OSError as error:
                # Clients must not learn the path of the set on this machine.
                raise SourceUnreachable(f"the package set cannot be read: {error.strerror}") from error
            if self._last is None or self._last.identity != fingerprint:
                # The content identifies the state; git may have a better name for people.
                state = await worktree_state(self._path.resolve(), self._environment, self._temporary)
                revision, created = (state.revision, state.created) if state else (fingerprint, None)
                self._last = Pin(self.description, fingerprint, revision, created=created)
            return self._last


@dataclass(frozen=True, slots=True)
class WorktreeState:
    """The state of a part of a working tree.

    Attributes:
        revision: the last commit that changed anything in it, with ``-dirty`` if there are changes since.
        created: the date of that commit, in seconds since the epoch.
    """

    revision: str
    created: int


async def worktree_state(
    path: Path, environment: Mapping[str, str], temporary: Path | None = None
) -> WorktreeState | None:
    """Return the state of a file or directory in a working tree; ``None`` outside of one, or without git.

    Commits to other parts of a large repository do not count: they do not change this part.

    Args:
        path: of the file or directory.
        environment: of git.
        temporary: see ``DirectorySource``.
    """
    is_directory = await asyncio.to_thread(path.is_dir)
    directory = path if is_directory else path.parent
    part = "." if is_directory else path.name
    # Writes nothing, and fetches no missing objects.
    alone = {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none", "LC_ALL": "C"}
    environment = with_git_settings({**environment, **alone}, _SETTINGS)
    last, is_unchanged = await asyncio.gather(
        _ask(directory, environment, "log", "-1", "--format=%H %ct", "--", part),
        _is_unchanged(directory, part, environment, temporary),
    )
    if not last:
        return None
    commit = last.split()[0]
    date = commit_date(last.removeprefix(commit))
    return WorktreeState(commit if is_unchanged else f"{commit}-dirty", date)


async def _is_unchanged(
    directory: Path, part: str, environment: Mapping[str, str], temporary: Path | None
) -> bool:
    """Whether a part of a working tree is as in the last commit.

    To compare a file, git runs the filters that the repository's configuration names. Other users may write to that
    configuration, also while git runs. So git gets the objects and the index of the repository, and a copy of the harmless
    part of its configuration.
    """
    asked = ("--show-toplevel", "--git-path", "objects", "--git-path", "index", "--git-path", "info")
    listed, located = await asyncio.gather(
        _ask(directory, environment, "config", "--list", "-z"),
        _ask(directory, environment, "rev-parse", "--path-format=absolute", *asked, "HEAD"),
    )
    found = (located or "").removesuffix("\n").split("\n")
    if listed is None or len(found) != 5 or _HEAD.fullmatch(found[4]) is None:  # noqa: PLR2004 -- as many as asked
        return False
    root, objects, index, info, head = found
    try:
        with tempfile.TemporaryDirectory(dir=temporary) as repository:
            await asyncio.to_thread(_make_repository, Path(repository), head, Path(index), info)
            places = {
                "GIT_DIR": repository,
                "GIT_WORK_TREE": root,
                "GIT_INDEX_FILE": index,
                "GIT_OBJECT_DIRECTORY": objects,
            }
            environment = with_git_settings({**environment, **places}, _comparing(listed))
            changes = await _ask(
                directory, environment, "status", "--porcelain", "--ignore-submodules=all", "--", part
            )
    except OSError:
        return False  # no room for a copy
    return changes == ""


def _make_repository(repository: Path, head: str, index: Path, info: str) -> None:
    (repository / "refs").mkdir()
    (repository / "HEAD").write_text(f"{head}\n")
    if len(head) > _SHA1_DIGITS:
        (repository / "config").write_text(
            "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectFormat = sha256\n"
        )
    (repository / "info").symlink_to(info)
    for shared in islice(index.parent.glob("sharedindex.*"), _MOST_SHARED):
        (repository / shared.name).symlink_to(shared)


def _comparing(listed: str) -> list[tuple[str, str]]:
    """Return the settings of a comparison: harmless ones of the repository, and no filters at all.

    Args:
        listed: output of ``git config --list -z``.
    """
    settings = [setting.partition("\n") for setting in listed.split("\0")]
    # A name alone means true.
    copied = {
        name: value if is_set else "true" for name, is_set, value in settings if _COMPARING.fullmatch(name)
    }
    # The operator's configuration may have filters as well.
    filters = dict.fromkeys(match[1] for name, _, _ in settings if (match := _FILTER.fullmatch(name)))
    off = (("clean", ""), ("smudge", ""), ("process", ""), ("required", "false"))
    return [*copied.items(), *((f"{driver}.{key}", value) for driver in filters for key, value in off)]


async def _ask(directory: Path, environment: Mapping[str, str], *arguments: str) -> str | None:
    command: Sequence[str] = ("git", "-C", str(directory), *arguments)
    try:
        completed, _ = await run_command(_GIT_TIMEOUT, *command, context=ProcessContext(environment))
    except (NixUnusable, NixTimedOut, AnswerTooLarge):
        return None
    return completed.stdout.decode(errors="surrogateescape") if completed.exit_code == 0 else None


class Fingerprint:
    """Digests names, types, executable bits, contents and targets of symlinks.

    The same tree on another machine has the same fingerprint. It covers the target of a symlink that leads
    out of the tree. Files with an unchanged ``stat`` are not read again, so a second call is cheap. Not
    thread-safe.

    Left out: ``.git`` and ``__pycache__``; pipes, sockets and devices, which Nix cannot read either; and
    targets of symlinks in the Nix store, in ``/proc``, ``/sys`` or ``/dev``, and in a directory that contains
    the tree. For those links, the fingerprint covers the target's name.
    """

    def __init__(self) -> None:
        self._digests: dict[_Version, bytes] = {}
        self._bytes = 0

    def of(self, root: Path) -> str:
        """Return the fingerprint of a file or directory, in hexadecimal digits; blocks while it reads new files.

        Raises:
            OSError: a file cannot be read, or the tree exceeds the limits.
        """
        known, self._digests = self._digests, {}
        self._bytes = 0
        total = hashlib.sha256()
        for kind, name, content in self._entries(os.fsencode(root.resolve(strict=True)), known):
            for part in (kind, name, content):
                total.update(b"%d:%b" % (len(part), part))
        return total.hexdigest()

    def _entries(self, root: bytes, known: dict[_Version, bytes]) -> Iterator[tuple[bytes, bytes, bytes]]:
        # Names are relative to their tree; trees that symlinks lead to are numbered in the order of
        # discovery.
        trees = [root]
        left = _MOST_ENTRIES
        for number, tree in enumerate(trees):  # grows on the way
            pending = [tree]
            while pending:
                path = pending.pop()
                left -= 1
                if left < 0 or len(trees) > _MOST_TREES:
                    raise OSError(errno.EFBIG, "it has too many files, including the targets of its symlinks")
                name = b"%d/%b" % (number, path[len(tree) :])
                status = os.lstat(path)
                if stat.S_ISDIR(status.st_mode):
                    yield b"directory", name, b""
                    children = sorted(child for child in _listed(path) if child not in _LEFT_OUT)
                    pending += [os.path.join(path, child) for child in reversed(children)]
                elif stat.S_ISREG(status.st_mode):
                    kind = b"program" if status.st_mode & stat.S_IXUSR else b"file"
                    yield kind, name, self._digest(path, status, known)
                elif stat.S_ISLNK(status.st_mode):
                    yield b"link", name, os.readlink(path)
                    target = os.path.realpath(path)
                    if os.path.exists(target) and not _is_covered(target, trees):
                        trees.append(target)
                # Nix cannot read anything else.

    def _digest(self, path: bytes, status: os.stat_result, known: dict[_Version, bytes]) -> bytes:
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest = known.get(version)
        if digest is None:
            self._bytes += status.st_size
            if self._bytes > _MOST_BYTES:
                raise OSError(errno.EFBIG, "its files are too large")
            with _opened(path, status) as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _TIME_STAMP_MARGIN:
            self._digests[version] = digest
        return digest


def _listed(path: bytes) -> list[bytes]:
    descriptor = os.open(path, LIST)
    try:
        return [os.fsencode(name) for name in os.listdir(descriptor)]
    finally:
        os.close(descriptor)


def _opened(path: bytes, status: os.stat_result) -> io.BufferedReader:
    """Open a file that was regular a moment ago, without blocking if it is a pipe by now."""
    file = open(os.open(path, READ), "rb")  # noqa: SIM115 -- the caller's
    opened = os.fstat(file.fileno())
    if not stat.S_ISREG(opened.st_mode) or not os.path.samestat(opened, status):
        file.close()
        raise OSError(errno.EAGAIN, "a file was replaced while it was read")
    return file


def _is_covered(target: bytes, trees: list[bytes]) -> bool:
    # A store path identifies its content, and a link to a directory above would cover half of the machine.
    elsewhere = any(_is_in(target, place) for place in (b"/nix/store", *_GENERATED_FILE_SYSTEMS))
    return elsewhere or any(_is_in(target, t) or _is_in(t, target) for t in trees)


def _is_in(path: bytes, tree: bytes) -> bool:
    return path == tree or path.startswith(tree.rstrip(b"/") + b"/")
