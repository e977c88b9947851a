"""API tokens in the records of a real directory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nixery.access import api_tokens
from nixery.access.api_tokens import ApiTokens, token_id
from nixery.access.identity import CredentialsRefused, Kind, Limits, Right
from nixery.errors import ApiTokenRefused, StorageError
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.records import API_TOKEN_USES, API_TOKENS, KINDS, ListedRecord, RecordStore

DAY = 24 * 3600.0
NOW = 1_800_000_000.0
UNKNOWN = f"nixery_{'0' * 16}_{'A' * 43}"


class Records(RecordStore):
    """Counts requests to the storage, which may fail."""

    def __init__(self, directory: Path) -> None:
        (directory / "temporary").mkdir(exist_ok=True)
        super().__init__(FilesystemDriver(directory, directory / "temporary"))
        self.requests: list[str] = []
        self.fails = False

    def _count(self, what: str) -> None:
        self.requests.append(what)
        if self.fails:
            raise StorageError("the storage is down")

    async def get(self, kind: str, key: str) -> bytes | None:
        self._count("get")
        return await super().get(kind, key)

    async def renew(self, kind: str, key: str, content: bytes) -> None:
        self._count("renew")
        await super().renew(kind, key, content)

    async def scan(self, kind: str, prefix: str = "", after: str = "") -> AsyncGenerator[ListedRecord, None]:
        self._count("scan")
        async for listed in super().scan(kind, prefix, after):
            yield listed


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(records: Records, clock: Clock) -> ApiTokens:
    return ApiTokens(records, clock, clock)


def another_server(tokens: ApiTokens, clock: Clock) -> tuple[ApiTokens, Records]:
    driver = tokens._records._driver
    assert isinstance(driver, FilesystemDriver)
    records = Records(driver._root)
    return ApiTokens(records, clock, clock), records


async def refused(tokens: ApiTokens, text: str) -> str:
    with pytest.raises(CredentialsRefused) as caught:
        await tokens.verify(text)
    return str(caught.value)


async def test_a_token_identifies_with_its_limits(tokens: ApiTokens, clock: Clock) -> None:
    text, created = await tokens.create(
        "ci",
        groups=["builders", "all", "all"],
        rights=[Right.BUILD, Right.PULL],
        packages=["git*", "shell"],
        expires_in=30 * DAY,
        note="of the pipeline",
    )
    identity = await tokens.verify(text)
    assert identity == created.identity
    assert (identity.kind, identity.name) == (Kind.API_TOKEN, "ci")
    assert identity.groups == frozenset({"builders", "all"})
    assert identity.limits == Limits(frozenset({Right.PULL, Right.BUILD}), ("git*", "shell"))
    assert (created.created, created.expires) == (NOW, NOW + 30 * DAY)
    other, _ = another_server(tokens, clock)
    assert await other.verify(text) == identity


async def test_the_secret_is_random_and_not_stored(tokens: ApiTokens, tmp_path: Path) -> None:
    texts = [(await tokens.create("ci"))[0] for _ in range(20)]
    assert len({text.split("_", 2)[2][:8] for text in texts}) == 20
    stored = [path.read_text() for path in (tmp_path / "records").rglob("*") if path.is_file()]
    assert len(stored) == 20
    assert not [text for text in texts if any(text[24:] in content for content in stored)]


async def test_wrong_tokens_are_refused_alike(tokens: ApiTokens) -> None:
    text, created = await tokens.create("ci")
    revoked, other = await tokens.create("ci")
    assert await tokens.revoke(other.id)
    wrong = [
        UNKNOWN,
        revoked,
        text[:-1],
        text + "A",
        text + "\n",
        f"nixery_{created.id}_{'A' * 43}",
        f"nixery_{created.id}_{'ü' * 43}",
        f"nixery_{created.id.upper()}_{text[24:]}" + "x",
        f"nixery_../{'a' * 13}_{'A' * 43}",
        "",
        "nixery_" * 10_000,
    ]
    assert {await refused(tokens, one) for one in wrong} == {"the API token is wrong, or was revoked"}
    assert (await tokens.verify(text)).name == "ci"


async def test_an_expired_token_says_so_to_who_has_its_secret(tokens: ApiTokens, clock: Clock) -> None:
    text, created = await tokens.create("ci", expires_in=DAY)
    clock.now += DAY - 1
    await tokens.verify(text)
    clock.now += 1
    assert await refused(tokens, text) == "the API token expired on 2027-01-16 08:00 UTC; ask for a new one"
    assert "wrong" in await refused(tokens, f"nixery_{created.id}_{'A' * 43}")


async def test_another_server_refuses_a_revoked_token_within_a_minute(
    tokens: ApiTokens, clock: Clock
) -> None:
    text, created = await tokens.create("ci")
    other, _ = another_server(tokens, clock)
    await other.verify(text)
    assert await tokens.revoke(created.id)
    assert not await tokens.revoke(created.id)
    await refused(tokens, text)
    clock.now += 46
    await refused(other, text)


async def test_a_read_that_began_before_a_revocation_does_not_undo_it(
    tokens: ApiTokens, records: Records, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    text, created = await tokens.create("ci")
    has_read, may_end = asyncio.Event(), asyncio.Event()
    read = records.get

    async def slow(kind: str, key: str) -> bytes | None:
        content = await read(kind, key)
        has_read.set()
        await may_end.wait()
        return content

    monkeypatch.setattr(records, "get", slow)
    verification = asyncio.create_task(tokens.verify(text))
    await has_read.wait()
    await tokens.revoke(created.id)
    may_end.set()
    with pytest.raises(CredentialsRefused):
        await verification
    clock.now += 61
    await refused(tokens, text)


async def test_a_use_does_not_restore_a_revoked_token(tokens: ApiTokens, clock: Clock) -> None:
    text, created = await tokens.create("ci")
    other, _ = another_server(tokens, clock)
    await other.verify(text)
    await tokens.revoke(created.id)
    clock.now += 40
    other._uses.put(created.id, False, 1, 1)  # as if an hour had passed
    await other.verify(text)  # still remembered
    assert await tokens.list() == []
    clock.now += 6
    await refused(other, text)


async def test_requests_with_a_good_token_cost_the_storage_little(tokens: ApiTokens, clock: Clock) -> None:
    text, _ = await tokens.create("ci")
    other, records = another_server(tokens, clock)
    await asyncio.gather(*(other.verify(text) for _ in range(50)))
    assert sorted(records.requests) == ["get", "renew", "scan"]
    for _ in range(59):
        clock.now += 60
        await other.verify(text)
    assert sorted(set(records.requests)) == ["get", "renew", "scan"]
    assert records.requests.count("renew") == 1
    assert records.requests.count("scan") == 1
    assert records.requests.count("get") == 60
    clock.now += 60
    await other.verify(text)
    assert records.requests.count("renew") == 2


async def test_wrong_tokens_cost_the_storage_one_listing_every_two_seconds(
    tokens: ApiTokens, records: Records, clock: Clock
) -> None:
    await tokens.create("ci")
    records.requests.clear()
    for round_ in range(3):
        for number in range(500):
            await refused(tokens, f"nixery_{round_:08x}{number:08x}_{'A' * 43}")
        clock.now += 2
    assert records.requests == ["scan"] * 3


async def test_a_new_token_works_during_a_flood_after_two_seconds(tokens: ApiTokens, clock: Clock) -> None:
    other, _ = another_server(tokens, clock)
    await refused(other, UNKNOWN)
    text, _ = await tokens.create("ci")
    assert (await tokens.verify(text)).name == "ci"  # here, at once
    clock.now += 2
    assert (await other.verify(text)).name == "ci"


async def test_a_storage_that_is_down_makes_no_token_wrong(tokens: ApiTokens, clock: Clock) -> None:
    text, _ = await tokens.create("ci")
    known, of_known = another_server(tokens, clock)
    await known.verify(text)
    other, records = another_server(tokens, clock)
    records.fails = of_known.fails = True
    for _ in range(2):
        with pytest.raises(StorageError):
            await other.verify(text)
    await known.verify(text)
    clock.now += 61
    with pytest.raises(StorageError):
        await known.verify(text)
    records.fails = False
    await other.verify(text)


async def test_a_use_that_cannot_be_recorded_is_only_logged(
    tokens: ApiTokens, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, created = await tokens.create("ci")

    async def fail(_kind: str, _key: str, _content: bytes) -> None:
        raise StorageError("read-only")

    monkeypatch.setattr(records, "renew", fail)
    with capture_logs() as logs:
        await tokens.verify(text)
        await tokens.verify(text)
    (entry,) = logs
    assert entry["token"] == created.id
    assert text not in str(entry)


async def test_tokens_are_listed_with_their_last_use(tokens: ApiTokens, clock: Clock) -> None:
    first, _ = await tokens.create("one", expires_in=10, note="x")
    clock.now += 1
    await tokens.create("two")
    await tokens.verify(first)
    clock.now += DAY
    one, two = await tokens.list()
    assert (one.identity.name, two.identity.name) == ("one", "two")
    assert one.used is not None
    assert (one.note, two.used, two.expires) == ("x", None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"hashed": "ü" * 64},
        {"hashed": ""},
        {"name": ""},
        {"name": "a\x1b[2J"},
        {"groups": ["g"] * 201},
        {"packages": []},
        {"expires": float("nan")},
        {"expires": 1e300},
        {"created": "never"},
    ],
)
async def test_a_planted_record_is_no_token(
    tokens: ApiTokens, records: Records, clock: Clock, change: dict[str, object]
) -> None:
    text, created = await tokens.create("ci")
    content = json.loads(await records.get(API_TOKENS, created.id) or b"")
    await records.put(API_TOKENS, created.id, json.dumps(content | change).encode())
    other, _ = another_server(tokens, clock)
    await refused(other, text)
    assert await other.list() == []


async def test_a_record_of_a_later_version_is_a_token(
    tokens: ApiTokens, records: Records, clock: Clock
) -> None:
    text, created = await tokens.create("ci")
    content = json.loads(await records.get(API_TOKENS, created.id) or b"")
    later = content | {"rights": ["pull", "push-cache"], "colour": "blue"}
    await records.put(API_TOKENS, created.id, json.dumps(later).encode())
    other, _ = another_server(tokens, clock)
    assert (await other.verify(text)).limits == Limits(frozenset({Right.PULL}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "the user"),
        ({"name": "a\nb"}, "the user"),
        ({"name": "anonymous"}, "is not anonymous"),
        ({"groups": ["g"] * 201}, "the groups"),
        ({"groups": ["x" * 257]}, "the groups"),
        ({"groups": [f"{number}{',' * 200}" for number in range(100)]}, "commas"),
        ({"groups": [f"{number:256}" for number in range(200)]}, "bytes"),
        ({"rights": []}, "at least one right: pull, build, see-builds, admin"),
        ({"packages": []}, "the package patterns"),
        ({"packages": ["shell/*"]}, "no slash"),
        ({"expires_in": 0}, "expires after"),
        ({"expires_in": 1e12}, "expires after"),
        ({"note": "x" * 257}, "the note"),
    ],
)
async def test_a_token_that_could_not_be_used_is_not_created(
    tokens: ApiTokens, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ApiTokenRefused, match=message):
        await tokens.create(**{"name": "ci", **arguments})  # type: ignore[arg-type]
    assert await tokens.list() == []


async def test_the_number_of_tokens_is_bounded(tokens: ApiTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_tokens, "MOST_TOKENS", 3)
    created = [(await tokens.create("ci"))[1] for _ in range(3)]
    with pytest.raises(ApiTokenRefused, match="has 3 API tokens"):
        await tokens.create("ci")
    await tokens.revoke(created[0].id)
    await tokens.create("ci")


async def test_ids_are_found_in_tokens(tokens: ApiTokens) -> None:
    text, created = await tokens.create("ci")
    assert token_id(text) == token_id(created.id) == created.id
    assert token_id(text[:-1]) is token_id("../..") is token_id("") is None
    assert not await tokens.revoke("../../version")
    assert KINDS[API_TOKEN_USES].most > api_tokens.MOST_TOKENS
