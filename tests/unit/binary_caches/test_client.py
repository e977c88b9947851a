from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Mapping

import pytest
import trustme

from nixery.binary_caches.client import ABSENT, COOLDOWN, BinaryCaches
from nixery.binary_caches.configuration import BinaryCache, CacheConfiguration
from nixery.binary_caches.decompression import PIECE
from nixery.binary_caches.narinfo import Compression, NarInfo, Trust
from nixery.binary_caches.transports import Patience
from nixery.closure import StorePath
from nixery.errors import BinaryCacheFailed, SettingsError
from tests.support.binary_cache import (
    COMPRESS,
    Answer,
    CacheServer,
    SigningKey,
    cache_server,
    http2_cache_server,
    nar_of_file,
    narinfo_name,
    path_info,
    store_path,
)
from tests.support.forward_proxy import forward_proxy
from tests.support.server import HOST

KEY = SigningKey()
_LIMIT = 1 << 24
CONTENT = hashlib.sha256(b"content").digest() * 40_000  # several pieces
BROKEN = "breaks off its answer: peer closed connection without sending complete message body (received {} bytes, expected {})"
PATIENCE = Patience(connect=10, answer=30, silence=30, attempts=3, pause=0.001)
IMPATIENCE = Patience(connect=10, answer=1, silence=0.5, attempts=3, pause=0.001)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def cache() -> Iterator[CacheServer]:
    with cache_server() as server:
        yield server


class Clients:
    """Makes clients, and closes them at the end of the test."""

    def __init__(self) -> None:
        self._made: list[BinaryCaches] = []

    def __call__(
        self,
        *urls: str,
        clock: Clock | None = None,
        authorities: bytes = b"",
        patience: Patience = PATIENCE,
    ) -> BinaryCaches:
        configuration = CacheConfiguration(
            tuple(map(BinaryCache.parse, urls)), Trust.parse(KEY.public), authorities
        )
        self._made.append(BinaryCaches(configuration, patience, clock or Clock()))
        return self._made[-1]

    async def close(self) -> None:
        for client in self._made:
            await client.close()


@pytest.fixture
async def caches() -> AsyncIterator[Clients]:
    clients = Clients()
    yield clients
    await clients.close()


async def found(client: BinaryCaches, path: StorePath) -> NarInfo:
    narinfo = await client.look_up(path)
    assert narinfo is not None, client.explain(path).reason
    return narinfo


def content_of(client: BinaryCaches, narinfo: NarInfo) -> bytes:
    content = bytearray()
    with client.open(narinfo) as pieces:
        for piece in pieces:
            assert 0 < len(piece) <= PIECE
            content += piece
    return bytes(content)


@pytest.mark.parametrize("compression", COMPRESS)
async def test_paths_and_their_contents_are_found(
    cache: CacheServer, caches: Clients, compression: Compression
) -> None:
    client = caches(cache.url)
    path = cache.add("hello", CONTENT, KEY, compression)
    narinfo = await found(client, path)
    nar = nar_of_file(CONTENT)
    assert narinfo.info == path_info("hello", nar)
    assert content_of(client, narinfo) == nar


async def test_an_answer_without_a_length_is_read_as_well(cache: CacheServer, caches: Clients) -> None:
    client = caches(cache.url)
    path = cache.add("hello", CONTENT, KEY)
    for name in (narinfo_name(path), "nar/hello.nar"):
        answer = cache.answers[name]
        assert isinstance(answer, Answer)
        answer.chunked = True
    narinfo = await found(client, path)
    assert content_of(client, narinfo) == nar_of_file(CONTENT)


async def test_a_nar_that_is_not_wanted_any_more_is_not_asked_for_again(
    cache: CacheServer, caches: Clients
) -> None:
    client = caches(cache.url)
    path = cache.add("hello", CONTENT, KEY)
    narinfo = await found(client, path)
    cache.answers["nar/hello.nar"] = Answer(b"", 503)
    with pytest.raises(BinaryCacheFailed), client.open(narinfo, is_wanted=lambda: False) as pieces:
        list(pieces)
    assert cache.requested("nar/hello.nar") == 1


async def test_many_paths_are_asked_for_at_once(cache: CacheServer, caches: Clients) -> None:
    client = caches(cache.url)
    paths = [cache.add(f"package-{number}", b"", KEY) for number in range(200)]
    absent = store_path("absent")
    assert set(await client.find([*paths, absent], _LIMIT)) == set(paths)
    assert cache.requested("nix-cache-info") == 1


async def test_many_signatures_are_checked_outside_of_the_event_loop(
    cache: CacheServer, caches: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    read = Trust.read

    def noting(self: Trust, content: bytes, path: StorePath, name: str) -> NarInfo:
        threads.append(threading.current_thread())
        return read(self, content, path, name)

    monkeypatch.setattr(Trust, "read", noting)
    client = caches(cache.url)
    path = cache.add("package", CONTENT, KEY)
    answer = cache.answers[narinfo_name(path)]
    assert isinstance(answer, Answer)
    assert isinstance(answer.content, bytes)
    answer.content += 60 * f"Sig: {KEY.name}:{'A' * 86}==\n".encode()
    assert (await found(client, path)).info.path == path
    assert threading.main_thread() not in threads


async def test_caches_are_asked_in_the_order_of_their_priorities(cache: CacheServer, caches: Clients) -> None:
    with cache_server() as other:
        other.answers["nix-cache-info"] = Answer(b"StoreDir: /nix/store\nPriority: 30\n")
        path = cache.add("hello", b"", KEY)
        other.add("hello", b"", KEY)
        client = caches(cache.url, other.url)
        assert (await found(client, path)).cache == other.url
        # The operator's number counts more than the cache's.
        client = caches(f"{cache.url}?priority=10", other.url)
        assert (await found(client, path)).cache == cache.url
        assert [state.priority for state in await client.states()] == [10, 30]


async def test_an_absent_path_is_asked_for_again_after_a_while(cache: CacheServer, caches: Clients) -> None:
    clock = Clock()
    client = caches(cache.url, clock=clock)
    path = store_path("hello")
    assert await client.look_up(path) is None
    assert client.explain(path).reason == f"{cache.url} does not have it"
    assert cache.add("hello", b"", KEY) == path
    assert await client.look_up(path) is None
    assert cache.requested(narinfo_name(path)) == 1
    clock.now += ABSENT
    assert (await found(client, path)).info.path == path


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_a_missing_path_of_one_cache_is_taken_from_the_next(
    cache: CacheServer, caches: Clients, status: int
) -> None:
    with cache_server() as other:
        path = other.add("hello", b"", KEY)
        cache.answers[narinfo_name(path)] = Answer(b"<Error/>", status)
        client = caches(f"{cache.url}?priority=1", other.url)
        assert (await found(client, path)).cache == other.url
        # It stays in use.
        assert [state.problem for state in await client.states()] == ["", ""]


def hang(cache: CacheServer) -> Iterator[bytes]:
    yield b"Store"
    cache.hanging.wait()


def endless(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


async def test_a_cache_that_fails_hides_no_other_ones_answer_and_rests(
    cache: CacheServer, caches: Clients
) -> None:
    clock = Clock()
    with cache_server() as other:
        path = other.add("hello", b"", KEY)
        for answer, reason in (
            (Answer(b"", 500), "answers with status 500"),
            (lambda _: Answer(hang(cache), length=100), "does not answer in time"),
            (Answer(b"Store", length=100), BROKEN.format(5, 100)),
        ):
            cache.answers[narinfo_name(path)] = answer
            client = caches(f"{cache.url}?priority=1", other.url, clock=clock, patience=IMPATIENCE)
            assert (await found(client, path)).cache == other.url
            assert client._caches[0].problem == reason
            before = len(cache.requests)
            assert (await found(client, path)).cache == other.url
            assert len(cache.requests) == before
            clock.now += COOLDOWN
            cache.add("hello", b"", KEY)
            assert (await found(client, path)).cache == cache.url


@pytest.mark.parametrize("length", [None, 1 << 40])
async def test_an_endless_narinfo_is_refused(cache: CacheServer, caches: Clients, length: int | None) -> None:
    path = store_path("hello")
    client = caches(cache.url)
    cache.answers[narinfo_name(path)] = lambda _: Answer(
        endless(b"x" * 65536), length=length, chunked=length is None
    )
    assert await client.look_up(path) is None
    assert "sends more than 1,048,576 bytes" in client.explain(path).reason


async def test_the_body_of_an_error_is_read_up_to_a_limit(cache: CacheServer, caches: Clients) -> None:
    path = store_path("hello")
    client = caches(cache.url)
    sent = []

    def body() -> Iterator[bytes]:
        for _ in range(1000):
            sent.append(1)
            yield bytes(1024 * 1024)

    cache.answers[narinfo_name(path)] = lambda _: Answer(body(), 404, chunked=True)
    assert await client.look_up(path) is None
    # Buffers of the system may hold some more than the client reads.
    assert len(sent) < 100


async def test_a_server_that_is_no_cache_is_not_used(cache: CacheServer, caches: Clients) -> None:
    path = cache.add("hello", b"", KEY)
    for answer, reason in (
        (Answer(b"", 404), "has no nix-cache-info, so it is no binary cache"),
        (Answer(b"StoreDir: /gnu/store\n"), "is of the store directory '/gnu/store', not /nix/store"),
        (Answer(b"", 401), "asks for another login: check the netrc-file of Nix's configuration"),
    ):
        cache.answers["nix-cache-info"] = answer
        client = caches(cache.url)
        assert await client.look_up(path) is None
        assert client.explain(path).reason == f"{cache.url} is not used: it {reason}"


async def test_an_unreachable_cache_is_named(caches: Clients) -> None:
    client = caches("http://127.0.0.1:9")
    assert await client.look_up(store_path("hello")) is None
    assert client.explain(store_path("hello")).reason == (
        "http://127.0.0.1:9 is not used: it cannot be reached: All connection attempts failed"
    )


async def test_untrusted_narinfos_are_refused_with_the_reason(cache: CacheServer, caches: Clients) -> None:
    client = caches(cache.url)
    good = path_info("good", nar_of_file(b""))
    wrong = {
        cache.add("unsigned", b"", None): "it has no signature",
        cache.add("unknown", b"", SigningKey("other-1")): "it is signed by other-1",
        cache.add("foreign", b"", SigningKey(seed=b"x" * 32)): "its signature of the key test-1 is wrong",
        cache.add(
            "swapped", b"", None, fields={"Sig": KEY.sign(good)}
        ): "its signature of the key test-1 is wrong",
        cache.add("another", b"", KEY, fields={"StorePath": str(good.path)}): "it is of",
        cache.add(
            "outside", b"", KEY, fields={"References": "../../etc/passwd"}
        ): "is not the name of a store path",
        cache.add("added", b"", KEY, fields={"References": good.path.base_name}): "is wrong",
        cache.add(
            "elsewhere", b"", KEY, fields={"URL": "http://127.0.0.1:9/x.nar"}
        ): "is not a path below the cache",
    }
    for path, reason in wrong.items():
        assert await client.look_up(path) is None
        assert reason in client.explain(path).reason


async def test_a_trusted_cache_needs_no_signatures(cache: CacheServer, caches: Clients) -> None:
    path = cache.add("unsigned", b"", None)
    assert (await found(caches(f"{cache.url}?trusted=1"), path)).info.path == path


async def test_a_nar_that_breaks_off_is_resumed(cache: CacheServer, caches: Clients) -> None:
    client = caches(cache.url)
    path = cache.add("hello", CONTENT, KEY)
    whole = cache.answers["nar/hello.nar"]
    assert isinstance(whole, Answer)
    assert isinstance(whole.content, bytes)
    nar = whole.content
    starts = []

    def broken(headers: Mapping[str, str]) -> Answer:
        starts.append(headers.get("Range"))
        if len(starts) == 1:
            return Answer(nar[:500_000], length=len(nar))
        return Answer(nar)

    cache.answers["nar/hello.nar"] = broken
    assert content_of(client, await found(client, path)) == nar
    assert starts == [None, "bytes=500000-"]

    # A server without ranges sends all of it again.
    def without_ranges(headers: Mapping[str, str]) -> Answer:
        starts.append(headers.get("Range"))
        return Answer(iter([nar if len(starts) > 1 else nar[:500_000]]), length=len(nar))

    starts.clear()
    cache.answers["nar/hello.nar"] = without_ranges
    assert content_of(client, await found(client, path)) == nar
    assert starts == [None, "bytes=500000-"]


async def test_a_temporary_failure_is_retried(cache: CacheServer, caches: Clients) -> None:
    client = caches(cache.url)
    path = cache.add("hello", CONTENT, KEY)
    whole = cache.answers["nar/hello.nar"]
    assert isinstance(whole, Answer)
    answers = iter([Answer(b"", 503), Answer(b"", 429), whole])
    cache.answers["nar/hello.nar"] = lambda _: next(answers)
    assert content_of(client, await found(client, path)) == nar_of_file(CONTENT)


async def test_wrong_nars_are_refused_with_the_reason(cache: CacheServer, caches: Clients) -> None:
    client = caches(cache.url)
    path = cache.add("hello", CONTENT, KEY, "zstd")
    narinfo = await found(client, path)
    nar = nar_of_file(CONTENT)
    compress = COMPRESS["zstd"]
    for answer, reason in (
        (Answer(b"", 404), "it has no such file"),
        (Answer(b"", 500), "it answers with status 500"),
        (Answer(compress(nar[:-8])), "it is cut off: 8 bytes of its NAR are missing"),
        (Answer(compress(nar)[:-9]), "it is cut off"),
        (Answer(compress(nar + b"x")), "it decompresses to more bytes than its NarSize"),
        (Answer(compress(nar) + b"rubbish!"), "it cannot be decompressed"),
        (Answer(b"no zstd at all"), "it cannot be decompressed"),
        (Answer(compress(bytes(1 << 30))), "it decompresses to more bytes than its NarSize"),
        (Answer(nar, headers={"Content-Encoding": "gzip"}), "it compresses its answers although it must not"),
        (Answer(nar, length=len(nar) + 1), "it"),
        (Answer(b"", 302, {"Location": "file:///etc/passwd"}), "it redirects to another scheme"),
        (Answer(b"", 302, {"Location": "nar/hello.nar"}), "it"),
    ):
        cache.answers["nar/hello.nar"] = answer
        with pytest.raises(BinaryCacheFailed) as raised:
            content_of(client, narinfo)
        assert str(raised.value).startswith(
            f"the binary cache {cache.url} failed: nar/hello.nar, of {path}: {reason}"
        )


async def test_endless_and_hanging_nars_end(cache: CacheServer, caches: Clients) -> None:
    client = caches(cache.url, patience=IMPATIENCE)
    narinfo = await found(client, cache.add("hello", CONTENT, KEY))
    for answer, reason in (
        (Answer(endless(bytes(65536)), chunked=True), "it sends more bytes than its narinfo says"),
        (lambda _: Answer(hang(cache), length=1000), "it sends nothing for too long"),
    ):
        cache.answers["nar/hello.nar"] = answer
        with pytest.raises(BinaryCacheFailed, match=reason):
            content_of(client, narinfo)


async def test_a_login_goes_to_the_cache_and_to_no_other_host(cache: CacheServer, caches: Clients) -> None:
    with cache_server() as other:
        path = cache.add("hello", CONTENT, KEY)
        for name in (narinfo_name(path), "nar/hello.nar"):
            other.answers[name] = cache.answers[name]
            cache.answers[name] = Answer(b"", 302, {"Location": f"{other.url}/{name}"})
        client = caches(cache.url.replace("http://", "http://user:p%40ss@"))
        narinfo = await found(client, path)
        assert narinfo.cache == cache.url
        assert content_of(client, narinfo) == nar_of_file(CONTENT)
        logins = [{name.lower(): value for name, value in headers.items()} for _, headers in cache.requests]
        assert {headers["authorization"] for headers in logins} == {"Basic dXNlcjpwQHNz"}
        assert len(other.requests) == 2
        assert not any("authorization" in {name.lower() for name in headers} for _, headers in other.requests)


def certified(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_http2_takes_one_connection(caches: Clients) -> None:
    authority = trustme.CA()
    with http2_cache_server(certified(authority, HOST)) as cache:
        paths = [cache.add(f"package-{number}", b"", KEY) for number in range(200)]
        client = caches(cache.url, authorities=authority.cert_pem.bytes())
        assert set(await client.find([*paths, store_path("absent")], _LIMIT)) == set(paths)
        assert cache.connections == 1
        # Without the authority, the certificate is not trusted.
        client = caches(cache.url)
        assert await client.look_up(paths[0]) is None
        assert "certificate verify failed" in client.explain(paths[0]).reason


async def test_caches_are_reached_through_a_proxy(caches: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    with cache_server(certified(authority, "cache.example.org")) as cache:
        path = cache.add("hello", CONTENT, KEY)
        port = int(cache.url.rpartition(":")[2])
        with forward_proxy({"cache.example.org": port}, "me:sesame") as proxy:
            monkeypatch.setenv("https_proxy", proxy.url)
            client = caches("https://cache.example.org", authorities=authority.cert_pem.bytes())
            assert content_of(client, await found(client, path)) == nar_of_file(CONTENT)
            assert set(proxy.targets) == {"cache.example.org:443"}
            await client.close()


async def test_a_redirect_from_https_to_http_is_refused(cache: CacheServer, caches: Clients) -> None:
    authority = trustme.CA()
    with cache_server(certified(authority, HOST)) as secure:
        path = secure.add("hello", CONTENT, KEY)
        client = caches(secure.url, authorities=authority.cert_pem.bytes())
        narinfo = await found(client, path)
        for name in (narinfo_name(path), "nar/hello.nar"):
            cache.answers[name] = secure.answers[name]
            secure.answers[name] = Answer(b"", 307, {"Location": f"{cache.url}/{name}"})
        assert await client.look_up(path) is None
        assert client.explain(path).reason == f"{secure.url} redirects to another scheme"
        with pytest.raises(BinaryCacheFailed, match="redirects to another scheme"):
            content_of(client, narinfo)
        assert not cache.requests


async def test_a_failed_cache_is_tried_again_beside_the_others(cache: CacheServer, caches: Clients) -> None:
    clock = Clock()
    with cache_server() as other:
        path = cache.add("hello", b"", KEY)
        other.add("hello", b"", KEY)
        cache.answers["nix-cache-info"] = Answer(b"", 404)
        client = caches(f"{cache.url}?priority=1", other.url, clock=clock)
        assert (await found(client, path)).cache == other.url
        assert cache.requested("nix-cache-info") == 1
        assert (await found(client, path)).cache == other.url
        assert cache.requested("nix-cache-info") == 1
        clock.now += COOLDOWN
        cache.answers["nix-cache-info"] = other.answers["nix-cache-info"]
        assert (await found(client, path)).cache == other.url
        await client.states()
        assert (await found(client, path)).cache == cache.url


async def test_a_remembered_narinfo_is_checked_again(cache: CacheServer, caches: Clients) -> None:
    client = caches(cache.url)
    path = cache.add("hello", b"", KEY)
    narinfo = await found(client, path)
    assert client.read(narinfo.text.encode(), path, narinfo.cache) == narinfo
    with pytest.raises(ValueError, match="it is of"):
        client.read(narinfo.text.encode(), store_path("other"), narinfo.cache)
    with pytest.raises(ValueError, match="the binary cache https://gone is not configured"):
        client.read(narinfo.text.encode(), path, "https://gone")


async def test_authorities_that_are_no_certificates_are_refused(caches: Clients) -> None:
    for wrong in (
        b"no certificate",
        b"\xff",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ):
        with pytest.raises(SettingsError, match="has no certificates in PEM"):
            caches("https://cache.example.org", authorities=wrong)
