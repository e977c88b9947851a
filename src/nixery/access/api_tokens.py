"""API tokens: random credentials for programs, which replicas share through the storage.

A token is ``nixery_<id>_<secret>``. The storage has a record of each, with the SHA-256 of the secret: a secret of 256
random bits cannot be found by trying, so it needs no slow hash, and checking it costs microseconds.

A server reads the record of a token at most once a minute, so a token that another process revoked works for a minute
at most. Unknown ids cost no read each: the server lists the ids, at most every two seconds. So while wrong tokens are
sent, a new one works after two seconds at the latest.

The last use has a record of its own, which a server renews at most once an hour. It must not write the token's record:
it could restore one that was revoked at that moment.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated

import structlog
from pydantic import AfterValidator, BaseModel, Field

from nixery.access.identity import (
    ANONYMOUS,
    LONGEST_TEXT,
    MOST_GROUPS,
    CredentialsRefused,
    Identity,
    Kind,
    Limits,
    Right,
    is_text,
)
from nixery.caching import SingleFlight, TTLCache
from nixery.errors import ApiTokenRefused, StorageError
from nixery.storage.records import API_TOKEN_USES, API_TOKENS, KINDS, RecordStore, decode

# Seconds for which a record is remembered. `authentication` remembers identities for a quarter of a minute more, so
# another process's revocation takes a minute.
_REMEMBERED = 45.0

# Seconds between two listings of the ids, while unknown ones are sent.
_LISTED_EVERY = 2.0

# Seconds between two records of the use of a token.
_USE_RECORDED_EVERY = 3600.0

# Tokens of a storage, expired ones included.
MOST_TOKENS = 5000

# Package patterns of a token.
_MOST_PATTERNS = 100

# Seconds. Ten years: an expiry in the far future is a typing error.
LONGEST_LIFE = 3650 * 24 * 3600

# Bytes of remembered records, and of ids whose use was recorded.
_CAPACITY = 8 * 1024 * 1024

# Records that are read at the same time.
_CONCURRENT = 16

_ID_BYTES, _SECRET_BYTES = 8, 32
_TOKEN = re.compile(r"nixery_(?P<id>[0-9a-f]{16})_(?P<secret>[A-Za-z0-9_-]{43})", re.ASCII)
_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)

_WRONG = "the API token is wrong, or was revoked"

_log = structlog.get_logger(__name__)


def _checked(text: str) -> str:
    if not is_text(text):
        raise ValueError("too long, or not printable")
    return text


_Text = Annotated[str, AfterValidator(_checked)]

# Seconds since the epoch: to the year 5138.
_Time = Annotated[float, Field(ge=0, le=1e11)]


class ApiTokenRecord(BaseModel):
    """A token in the storage; see ``ApiToken``. A later version may add members and rights."""

    hashed: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: _Text
    groups: tuple[_Text, ...] = Field(max_length=MOST_GROUPS)
    rights: tuple[str, ...]
    packages: tuple[_Text, ...] = Field(min_length=1, max_length=_MOST_PATTERNS)
    created: _Time
    expires: _Time | None
    note: str


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token without its secret.

    Attributes:
        id: 16 hexadecimal digits, the part of the token that is no secret.
        identity: of requests with the token, with its rights and package patterns as limits.
        created: in seconds since the epoch.
        expires: likewise; ``None`` for never.
        note: of the operator.
        used: about when the token was last used, within an hour; ``None`` if not known. Only set by ``list``.
    """

    id: str
    identity: Identity
    created: float
    expires: float | None
    note: str
    used: float | None = None


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the storage has of an id.

    Attributes:
        token: ``None`` if there is no record, or a torn one.
        hashed: SHA-256 of the secret, in hexadecimal digits.
    """

    token: ApiToken | None = None
    hashed: str = ""


class ApiTokens:
    """The tokens of a storage.

    Args:
        records: of the storage.
        clock: seconds since the epoch.
        monotonic: seconds; only differences matter.
    """

    def __init__(
        self,
        records: RecordStore,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._clock = clock
        self._monotonic = monotonic
        self._remembered: TTLCache[str, _Stored] = TTLCache(_CAPACITY, monotonic)
        self._uses: TTLCache[str, bool] = TTLCache(_CAPACITY, monotonic)
        self._ids: frozenset[str] = frozenset()
        self._listed = float("-inf")
        self._revoked: set[str] = set()
        self._readings: SingleFlight[str, None] = SingleFlight()

    async def create(
        self,
        name: str,
        *,
        groups: Collection[str] = (),
        rights: Collection[Right] = (Right.PULL,),
        packages: Collection[str] = ("*",),
        expires_in: float | None = None,
        note: str = "",
    ) -> tuple[str, ApiToken]:
        """Create a token; return its text, which the storage does not keep, and what the storage keeps.

        Args:
            name: who the token identifies.
            groups: of this identity.
            rights: that the token can be used for, whatever more the rules allow its identity.
            packages: patterns of names that it can be used for, as in a rule.
            expires_in: seconds; ``None`` for a token that does not expire.
            note: for operators, such as what the token is for.

        Raises:
            ApiTokenRefused: an argument cannot be used, or there are too many tokens.
            StorageError: the storage cannot be read or written.
        """
        if problem := _problem(name, groups, rights, packages, expires_in, note):
            raise ApiTokenRefused(problem)
        if len(await self._list_ids()) >= MOST_TOKENS:
            raise ApiTokenRefused(
                f"the storage has {MOST_TOKENS} API tokens, which is the limit; revoke those that are not used"
            )
        now = self._clock()
        identity = secrets.token_hex(_ID_BYTES)
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        record = ApiTokenRecord(
            hashed=_hash(secret),
            name=name,
            groups=tuple(sorted(set(groups))),
            rights=tuple(sorted(set(rights))),
            packages=tuple(dict.fromkeys(packages)),
            created=now,
            expires=None if expires_in is None else now + expires_in,
            note=note,
        )
        content = record.model_dump_json().encode()
        bounds = KINDS[API_TOKENS]
        if len(content) > bounds.largest or content.count(b",") > (bounds.commas or 0):
            raise ApiTokenRefused(
                f"the groups and package patterns of an API token have more than {bounds.largest} bytes, or "
                f"{bounds.commas} commas; use fewer of them"
            )
        await self._records.put(API_TOKENS, identity, content)
        self._ids |= {identity}
        return f"nixery_{identity}_{secret}", _token(identity, record)

    async def list(self) -> list[ApiToken]:
        """Return all tokens, expired ones included, the oldest first.

        Raises:
            StorageError: the storage cannot be read.
        """
        used: dict[str, float] = {}
        async with aclosing(self._records.scan(API_TOKEN_USES)) as uses:
            async for use in uses:
                used[use.key] = use.modified
                if len(used) > 2 * MOST_TOKENS:
                    break
        ids = sorted(await self._list_ids())
        found: list[ApiToken] = []
        for start in range(0, len(ids), _CONCURRENT):
            read = await asyncio.gather(*map(self._read, ids[start : start + _CONCURRENT]))
            found += [
                replace(one.token, used=used.get(one.token.id)) for one in read if one.token is not None
            ]
        return sorted(found, key=lambda token: (token.created, token.id))

    async def revoke(self, identity: str) -> bool:
        """Delete a token; return whether there was one.

        Args:
            identity: the token's id.

        Raises:
            StorageError: the storage cannot be read or written.
        """
        if _ID.fullmatch(identity) is None:
            return False
        # A record that cannot be read may be one of a later version, which accepts it.
        existed = identity in await self._list_ids()
        await self._records.delete(API_TOKENS, identity)
        await self._records.delete(API_TOKEN_USES, identity)
        # A read that began before the deletion may end after it.
        self._revoked.add(identity)
        self._remember(identity, _Stored())
        return existed

    async def verify(self, token: str) -> Identity:
        """Return whom a token identifies, with the limits of the token.

        Raises:
            CredentialsRefused: it is wrong, expired or revoked.
            StorageError: the storage cannot be read.
        """
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise CredentialsRefused(_WRONG)
        identity = match["id"]
        found = self._remembered.get(identity)
        if found is None and await self._is_listed(identity):
            await self._readings.run(identity, lambda: self._reread(identity))
            found = self._remembered.get(identity)
        known = None if found is None else found.token
        if found is None or known is None or not hmac.compare_digest(_hash(match["secret"]), found.hashed):
            raise CredentialsRefused(_WRONG)
        if known.expires is not None and self._clock() >= known.expires:
            # Only for who has the secret.
            message = f"the API token expired on {_date(known.expires)}; ask for a new one"
            raise CredentialsRefused(message, known.identity.name)
        await self._record_use(identity)
        return known.identity

    async def close(self) -> None:
        """End the reads that are in progress."""
        await self._readings.close()

    async def _is_listed(self, identity: str) -> bool:
        if identity not in self._ids and self._monotonic() - self._listed >= _LISTED_EVERY:
            # No id is the empty text. The listing works for all requests that wait for it.
            await self._readings.run("", self._relist)
        return identity in self._ids

    async def _relist(self) -> None:
        # From its beginning: what was created meanwhile may not be in it.
        begun = self._monotonic()
        self._ids = await self._list_ids()
        self._listed = begun

    async def _list_ids(self) -> frozenset[str]:
        ids: set[str] = set()
        async with aclosing(self._records.scan(API_TOKENS)) as listing:
            async for listed in listing:
                if _ID.fullmatch(listed.key):
                    ids.add(listed.key)
                # Servers that create at the same time may exceed the limit by a few.
                if len(ids) >= 2 * MOST_TOKENS:
                    break
        return frozenset(ids)

    async def _reread(self, identity: str) -> None:
        self._remember(identity, await self._read(identity))

    def _remember(self, identity: str, stored: _Stored) -> None:
        known = _Stored() if identity in self._revoked else stored
        # Ids are not used again, so a missing record stays missing.
        self._remembered.put(identity, known, _size(known.token), _REMEMBERED)

    async def _read(self, identity: str) -> _Stored:
        content = await self._records.get(API_TOKENS, identity)
        record = decode(read_api_token, content)
        return _Stored() if record is None else _Stored(_token(identity, record), record.hashed)

    async def _record_use(self, identity: str) -> None:
        if self._uses.get(identity):
            return
        # Before the write: many requests at once record one use, and a storage that cannot be written is not asked
        # by each.
        self._uses.put(identity, True, len(identity), _USE_RECORDED_EVERY)
        try:
            await self._records.renew(API_TOKEN_USES, identity, b"{}")
        except StorageError as error:
            _log.warning("cannot record the use of an API token", token=identity, reason=str(error))


def read_api_token(content: bytes) -> ApiTokenRecord:
    """Read the record of a token.

    Raises:
        ValueError: it is torn.
    """
    return ApiTokenRecord.model_validate_json(content)


def token_id(text: str) -> str | None:
    """Return the id in a token, or the id itself; ``None`` for other texts."""
    match = _TOKEN.fullmatch(text)
    if match is not None:
        return match["id"]
    return text if _ID.fullmatch(text) else None


def _token(identity: str, record: ApiTokenRecord) -> ApiToken:
    # Unknown rights are those of a later version.
    rights = frozenset(right for right in Right if right.value in record.rights)
    limits = Limits(rights, record.packages)
    return ApiToken(
        identity,
        Identity(Kind.API_TOKEN, record.name, frozenset(record.groups), limits=limits),
        record.created,
        record.expires,
        record.note,
    )


def _size(token: ApiToken | None) -> int:
    """Return about how many bytes of memory a token takes."""
    if token is None:
        return 0
    limits = token.identity.limits or Limits()
    texts = (token.identity.name, token.note, *token.identity.groups, *limits.packages)
    return 1024 + sum(64 + len(text) for text in texts)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _problem(
    name: str,
    groups: Collection[str],
    rights: Collection[Right],
    packages: Collection[str],
    expires_in: float | None,
    note: str,
) -> str | None:
    problem = None
    if not is_text(name) or name == str(ANONYMOUS):
        problem = (
            f"the user of an API token has 1 to {LONGEST_TEXT} printable characters, and is not {ANONYMOUS}"
        )
    elif len(groups) > MOST_GROUPS or not all(map(is_text, groups)):
        problem = f"the groups of an API token are at most {MOST_GROUPS}, of 1 to {LONGEST_TEXT} printable characters"
    elif not rights:
        problem = f"an API token needs at least one right: {', '.join(Right)}"
    elif not 0 < len(packages) <= _MOST_PATTERNS or not all(map(is_text, packages)):
        problem = (
            f"the package patterns of an API token are 1 to {_MOST_PATTERNS}, of 1 to {LONGEST_TEXT} printable "
            "characters"
        )
    elif any("/" in pattern for pattern in packages):
        problem = "a package pattern is for one part of an image's name, so it has no slash"
    elif expires_in is not None and not 0 < expires_in <= LONGEST_LIFE:
        problem = "an API token expires after 1 second to 3650 days, or never"
    elif note and not is_text(note):
        problem = f"the note of an API token has at most {LONGEST_TEXT} printable characters"
    return problem
