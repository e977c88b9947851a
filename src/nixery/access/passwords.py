"""Users with passwords: a file in the format of Apache's ``htpasswd``, and how passwords are checked.

A password is checked in one of a few threads, since bcrypt and argon2 are slow on purpose. A name that the file
does not have costs as much as one that it has: a hash with the cost of some user is computed for it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import argon2
import bcrypt
import structlog
from argon2.exceptions import VerificationError

from nixery.access.identity import ANONYMOUS, LONGEST_TEXT, is_text
from nixery.builds.slots import Slots
from nixery.caching import SingleFlight
from nixery.errors import SettingsError, TooBusy
from nixery.files import open_regular, read_descriptor
from nixery.plain_text import escaped, shortened

# Bytes of the file, users in it, and problems of it that are reported.
_LARGEST, _MOST_USERS, _MOST_PROBLEMS = 1024 * 1024, 10_000, 20

# Bytes of a password. Browsers and clients send it with every request until they have a token.
_LONGEST_PASSWORD = 1024

# Passwords that are checked at once, each with up to 256 MiB for argon2; and those that wait.
_AT_ONCE, _QUEUE = 2, 64

# The highest costs. They are no defence against who writes the file, but against a typing error that makes each
# log-in take minutes: 2^14 rounds are one to two seconds.
_MOST_ROUNDS = 14
_MOST_KIB, _MOST_PASSES, _MOST_LANES = 256 * 1024, 10, 16

# bcrypt ignores what follows them, and its library refuses a longer password.
_BCRYPT_BYTES = 72

_BCRYPT = re.compile(r"\$2[aby]\$(?P<rounds>\d\d)\$[./A-Za-z0-9]{53}", re.ASCII)
_ARGON2 = re.compile(
    r"\$(?P<variant>argon2id?)\$v=19\$m=(?P<kib>[1-9]\d{0,9}),t=(?P<passes>[1-9]\d{0,9}),p=(?P<lanes>[1-9]\d{0,9})"
    r"\$(?P<salt>[A-Za-z0-9+/]{11,128})\$(?P<digest>[A-Za-z0-9+/]{22,171})",
    re.ASCII,
)

# Beginnings of hashes that are too fast, or truncate passwords.
_WEAK: Mapping[str, str] = {
    "$apr1$": "MD5",
    "$1$": "MD5",
    "{SHA}": "SHA-1",
    "{SSHA}": "SHA-1",
    "$5$": "SHA-256 crypt",
    "$6$": "SHA-512 crypt",
    "$2x$": "a broken bcrypt",
    "$y$": "yescrypt",
    "$argon2d$": "argon2d",
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Users:
    """The users of one state of the file.

    Attributes:
        hashes: by name.
        costs: of each user, a hash with the same cost that no password has; in the order of costs.
        key: chooses one of them for a name.
    """

    hashes: Mapping[str, str]
    costs: tuple[str, ...]
    key: bytes

    def hash_for(self, user: str) -> str:
        """Return the hash of a user, or, for an unknown name, one that costs as much as some user's.

        In a file of several costs, the name decides which: an unknown name costs the same at each attempt, as a
        known one does.
        """
        found = self.hashes.get(user)
        if found is not None:
            return found
        if not self.costs:
            return _with_same_cost(_NO_USERS)
        chosen = hmac.digest(self.key, user.encode(errors="surrogatepass"), hashlib.sha256)
        return self.costs[int.from_bytes(chosen[:8]) * len(self.costs) >> 64]


# A file's state: (modified in nanoseconds, inode, bytes); ``None`` if it is missing or cannot be read.
_Stamp = tuple[int, int, int] | None


class Htpasswd:
    """The users of a file, which is read again when it changes.

    Args:
        path: of the file. It may be a symlink, as in a mounted Kubernetes secret.

    Raises:
        SettingsError: the file cannot be used; one line for each problem.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._users = _read(path)
        self._version = 1
        self._reading = threading.Lock()
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.PASSWORDS)
        self._checks: SingleFlight[tuple[str, str], bool] = SingleFlight()

    @property
    def version(self) -> int:
        """A number that changes when the file was read again: successful log-ins from before may no longer hold."""
        return self._version

    async def refresh(self) -> None:
        """Read the file again if it has changed. ``verify`` does so, too.

        If the new file has a problem, or is missing, the users stay, and the log says why.
        """
        await asyncio.to_thread(self._refresh)

    def has_user(self, user: str) -> bool:
        """Whether the file, as it was read last, has a user. For logs: an answer must not depend on it."""
        return user in self._users.hashes

    async def verify(self, user: str, password: str) -> bool:
        """Whether a user exists and has a password. Takes as long for unknown users as for known ones.

        Equal attempts at the same time are one: clients send several requests at once, and none has a token yet.

        Raises:
            TooBusy: too many passwords are being checked.
            ShuttingDown: the server is stopping.
        """
        if len(user) > LONGEST_TEXT or len(password.encode(errors="surrogatepass")) > _LONGEST_PASSWORD:
            return False  # for each user alike

        async def check() -> bool:
            async with self._slots.slot():
                return await asyncio.to_thread(self._check, user, password)

        return await self._checks.run((user, password), check)

    async def close(self) -> None:
        """End the checks that are in progress."""
        await self._checks.close()

    def _check(self, user: str, password: str) -> bool:
        self._refresh()
        users = self._users
        is_right = _has_hash(password.encode(errors="surrogatepass"), users.hash_for(user))
        return is_right and user in users.hashes

    def _refresh(self) -> None:
        with self._reading:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                users = _read(self._path)
            except SettingsError as error:
                for problem in error.problems:
                    _log.error(
                        "cannot use the password file", reason=problem, kept_users=len(self._users.hashes)
                    )
                return
            self._users = users
            self._version += 1
        _log.info("read the password file", file=str(self._path), users=len(users.hashes))


def check_htpasswd(path: Path) -> tuple[str, ...]:
    """Return the problems of a file, one line each; none has a hash or a password in it."""
    try:
        _read(path)
    except SettingsError as error:
        return error.problems
    return ()


def count_users(path: Path) -> int:
    """Return how many users a file has.

    Raises:
        SettingsError: it cannot be read, or is wrong.
    """
    return len(_read(path).hashes)


def htpasswd_line(user: str, password: str) -> str:
    """Return the line of the file for a user and a password, hashed by argon2id.

    Raises:
        ValueError: the name or the password cannot be used.
    """
    if problem := _problem_of_name(user):
        raise ValueError(f"user name {_shown(user)}: {problem}")
    content = password.encode(errors="surrogatepass")
    if not content:
        raise ValueError("the password is empty")
    if len(content) > _LONGEST_PASSWORD:
        raise ValueError(f"the password has {len(content)} bytes, the limit is {_LONGEST_PASSWORD}")
    return f"{user}:{argon2.PasswordHasher().hash(content)}"


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _read(path: Path) -> _Users:
    try:
        # A resolved path is opened without following a symlink, and never waits for the writer of a FIFO.
        descriptor, _ = open_regular(path.resolve())
        try:
            content = read_descriptor(descriptor, _LARGEST + 1)
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError) as error:  # pathlib raises the second for a loop of symlinks
        reason = (error.strerror if isinstance(error, OSError) else None) or "a loop of symbolic links"
        raise SettingsError((f"cannot read the password file {path}: {reason}",)) from None
    if len(content) > _LARGEST:
        raise SettingsError((f"the password file {path} has more than {_LARGEST} bytes",))
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SettingsError((f"{path}, line {line}: not UTF-8",)) from None
    hashes, problems = _parse(lines)
    if len(problems) > _MOST_PROBLEMS:
        problems = [*problems[:_MOST_PROBLEMS], f"and {len(problems) - _MOST_PROBLEMS} more problems"]
    if problems:
        raise SettingsError(tuple(f"{path}, {problem}" for problem in problems))
    costs = tuple(map(_with_same_cost, sorted(hashes.values(), key=_cost)))
    return _Users(hashes, costs, hashlib.sha256(content).digest())


def _parse(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    hashes: dict[str, str] = {}
    first: dict[str, int] = {}
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        user, colon, rest = stripped.partition(":")
        if not colon:
            # The line itself may be a password or a hash.
            problems.append(f"line {number}: no colon; a line is USER:HASH")
            continue
        # Apache allows more fields after the hash.
        hashed = rest.partition(":")[0].strip()
        if problem := _problem_of_name(user) or _problem_of_hash(hashed):
            problems.append(f"line {number}, user {_shown(user)}: {problem}")
        elif user in first:
            problems.append(f"line {number}, user {_shown(user)}: line {first[user]} has this user, too")
        elif len(hashes) == _MOST_USERS:
            problems.append(f"line {number}: more than {_MOST_USERS} users")
            break
        else:
            hashes[user], first[user] = hashed, number
    return hashes, problems


def _shown(user: str) -> str:
    return f"'{shortened(escaped(user), 80)}'"


def _problem_of_name(user: str) -> str | None:
    if not is_text(user) or ":" in user:
        return f"a name has 1 to {LONGEST_TEXT} printable characters, and no colon"
    if user == str(ANONYMOUS):
        return "this name stands for requests without credentials"
    return None


def _problem_of_hash(hashed: str) -> str | None:
    if bcrypt_hash := _BCRYPT.fullmatch(hashed):
        rounds = int(bcrypt_hash["rounds"])
        if not 4 <= rounds <= _MOST_ROUNDS:  # noqa: PLR2004 -- bcrypt's own least
            return f"bcrypt with a cost of {rounds}: use 10 to {_MOST_ROUNDS}"
        return None
    if argon2_hash := _ARGON2.fullmatch(hashed):
        return _problem_of_argon2(argon2_hash)
    if hashed.startswith(("$2a$", "$2b$", "$2y$", "$argon2id$", "$argon2i$")):
        return "the hash is malformed; is it cut off?"
    scheme = next(
        (name for prefix, name in _WEAK.items() if hashed.startswith(prefix)), "plain text or crypt"
    )
    return f"{scheme} is not accepted, bcrypt and argon2id are: make a new line with `nixery password`"


def _problem_of_argon2(match: re.Match[str]) -> str | None:
    kib, passes, lanes = (int(match[name]) for name in ("kib", "passes", "lanes"))
    if kib > _MOST_KIB or passes > _MOST_PASSES or lanes > _MOST_LANES or kib < 8 * lanes:
        return (
            f"argon2 with m={kib}, t={passes}, p={lanes}: use at most m={_MOST_KIB} (KiB), t={_MOST_PASSES}, "
            f"p={_MOST_LANES}, and at least m=8*p"
        )
    if any(len(match[name]) % 4 == 1 for name in ("salt", "digest")):
        return "the hash is malformed; is it cut off?"
    return None


def _cost(hashed: str) -> tuple[int, ...]:
    """Return what the time of a check depends on, as numbers that can be sorted."""
    if match := _BCRYPT.fullmatch(hashed):
        return (0, int(match["rounds"]))
    match = _ARGON2.fullmatch(hashed)
    if match is None:
        raise AssertionError("a hash of an unknown scheme was accepted")
    return (1, int(match["kib"]), int(match["passes"]), int(match["lanes"]), len(match["digest"]))


def _with_same_cost(hashed: str) -> str:
    """Return a hash that takes as long to check, and that no password is known for."""
    if match := _BCRYPT.fullmatch(hashed):
        salt = bcrypt.gensalt(int(match["rounds"])).decode()
        # 31 characters of base64, of which bcrypt's alphabet has all.
        return salt + secrets.token_urlsafe(24)[:31].replace("-", ".").replace("_", "/")
    match = _ARGON2.fullmatch(hashed)
    if match is None:
        raise AssertionError("a hash of an unknown scheme was accepted")

    def random(name: str) -> str:
        size = len(match[name]) * 3 // 4
        return base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=")

    return f"{hashed[: match.start('salt')]}{random('salt')}${random('digest')}"


def _has_hash(password: bytes, hashed: str) -> bool:
    if _BCRYPT.fullmatch(hashed):
        # A longer one is refused as late as a wrong one.
        is_right = bcrypt.checkpw(password[:_BCRYPT_BYTES], hashed.encode())
        return is_right and len(password) <= _BCRYPT_BYTES
    try:
        return argon2.PasswordHasher().verify(hashed, password)
    except VerificationError:
        return False


# Its cost is that of unknown names if the file has no users: the default of argon2-cffi (RFC 9106).
_NO_USERS = (
    "$argon2id$v=19$m=65536,t=3,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)
