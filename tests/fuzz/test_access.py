"""For random rules, no route of the OpenAPI description answers with what they deny.

An oracle of its own decides: it knows each image, and what a rule means, in the simplest words.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nixery.access.api_tokens import ApiTokens
from nixery.access.authentication import Authenticator, Verifiers
from nixery.access.failed_logins import FailedLogins
from nixery.access.identity import CredentialsRefused, Identity, Kind, Limits, Right
from nixery.access.loading import AccessRules, Rules
from nixery.access.oidc import OidcIssuers
from nixery.access.policy import Policy, Rule
from nixery.access.quotas import Quotas
from nixery.access.registry_tokens import RegistryTokens, SigningKeys
from nixery.builds.coordinator import BuildCoordinator
from nixery.builds.descriptions import (
    DescribedLayer,
    DescribedPackage,
    ImageDescription,
    ImageDescriptions,
    Shared,
)
from nixery.builds.events import Build, Failed, Started
from nixery.builds.history import BuildHistory
from nixery.builds.image import Image
from nixery.builds.images import Found, Images
from nixery.builds.index_records import Progress
from nixery.builds.package_index import PackageIndex
from nixery.builds.package_search import FoundPackage, PackageSearch
from nixery.builds.pins import Pinned
from nixery.errors import (
    BuildNotAllowed,
    NixeryError,
    PackagesUnavailable,
    PlatformFailed,
    Reason,
    UnavailablePackage,
)
from nixery.image.name import ImageRequest, requests_for
from nixery.image.platform import AMD64
from nixery.nix.packages import Attribute
from nixery.server.access_control import AccessControl
from nixery.server.api import Api, Builds, ImageDocuments, Packages
from nixery.server.app import Application
from nixery.server.build_cancellation import BuildCancellation
from nixery.server.http import AnswerWriter
from nixery.server.observation import Observation
from nixery.server.pages.pages import Pages
from nixery.server.published_builds import FollowerBounds, PublishedBuilds
from nixery.server.published_images import PublishedImages
from nixery.server.published_packages import PublishedPackages
from nixery.server.registry import Registry
from nixery.server.registry.blobs import Blobs
from nixery.server.registry.discovery import Discovery
from nixery.server.registry.manifests import Manifests
from nixery.server.registry.permissions import Permissions
from nixery.sources.source import Pin
from nixery.storage.blobs import BlobStore, SmallBlobs
from nixery.storage.catalogue import Catalogue
from nixery.storage.filesystem import FilesystemDriver
from nixery.storage.leases import Leases
from nixery.storage.records import RecordStore
from nixery.telemetry.metrics import RequestCounts
from tests.fuzz.application import ApplicationUnderTest, RecordingBuilder
from tests.fuzz.effort import examples
from tests.support.client import Response
from tests.unit.server.conftest import PIN, FakeIndex, store_image

pytestmark = pytest.mark.xdist_group("fuzz")

_DESCRIPTION = Path(__file__).parents[2] / "docs" / "reference" / "openapi.yaml"

# Words that occur in no other text. The last one is similar to the one before, and so a near name of it.
WORDS = ("zulualpha", "zulubravo", "zulucharlie", "zuluc")
TAGS = ("latest", "1.0")
NAMES = ("zulualpha", "zulubravo", "zulucharlie", "zulualpha/zulubravo", "shell/zulubravo", "amd64")
MISSING = "zulucharli"
USER = "someone"


@dataclass(frozen=True)
class Stored:
    """An image of one name and tag."""

    name: str
    tag: str
    image: Image
    layer: str
    config: str
    build: Build

    @property
    def manifest(self) -> str:
        return str(self.image.manifest.descriptor.digest)

    @property
    def secrets(self) -> Sequence[str]:
        """What only an answer about this image has."""
        return (self.manifest, self.layer, self.config, self.build.id)


@dataclass
class Server:
    """The application, its images, and the rules that apply."""

    stored: Sequence[Stored]
    policy: Policy = field(default_factory=lambda: Policy(()))
    application: ApplicationUnderTest = field(init=False)

    def ask(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> Response:
        # A request of the API has a body of JSON; of others, no body is read.
        body = b""
        if method == "POST" and path == "/api/v1/builds":
            body = json.dumps({"name": query.partition("=")[2] or NAMES[0]}).encode()
            headers = {**headers, "content-type": "application/json"}
        return self.application.request(method, path, query.encode(), headers.items(), body)


class _ImagesOf(Images):
    """Has the stored images, and builds none."""

    def __init__(self, stored: Sequence[Stored]) -> None:
        self._stored = {(requests_for(one.name, [AMD64]), one.tag): one for one in stored}

    async def get(self, requests: tuple[ImageRequest, ...], tag: str, *, may_build: bool = True) -> Found:
        found = self._stored.get((requests, tag))
        if found is not None:
            return Found(found.image, Pinned(PIN, None), tag)
        if not may_build:
            raise BuildNotAllowed("/".join(requests[0].requested))
        # As the evaluation of a misspelt name: with near names.
        missing = UnavailablePackage(requests[0].requested[0], Reason.MISSING, near_names=WORDS)
        raise PlatformFailed("linux/amd64", PackagesUnavailable((missing,)))

    async def begin(self, requests: Sequence[ImageRequest], tag: str) -> list[Build]:
        found = self._stored.get((tuple(requests), tag))
        return [found.build if found is not None else Build.of(requests[0], PIN, tag=tag)]


class _Descriptions:
    def __init__(self, stored: Sequence[Stored], history: BuildHistory) -> None:
        self._stored = {(requests_for(one.name, [AMD64])[0], one.tag): one for one in stored}
        self._history = history
        self._tag = "latest"

    async def pin(self, tag: str) -> Pin:
        self._tag = tag
        return PIN

    ignores_tags = False

    def exact_tag(self, _pin: object) -> str | None:
        return None

    @asynccontextmanager
    async def closures(self, images: Sequence[ImageDescription]) -> AsyncIterator[list[None]]:
        yield [None for _ in images]

    async def digest(self, request: ImageRequest, _pin: object) -> str | None:
        found = self._stored.get((request, self._tag))
        return None if found is None else found.manifest

    async def describe(
        self, request: ImageRequest, _pin: object, *, compare: bool
    ) -> ImageDescription | None:
        found = self._stored.get((request, self._tag))
        if found is None:
            return None
        packages = tuple(DescribedPackage(word, "1", (), "", word) for word in request.requested)
        layers = (DescribedLayer(found.layer, 1, request.requested),)
        others = tuple(Shared(report, 1, 1) for report in self._history.recent()) if compare else ()
        return ImageDescription("linux/amd64", found.manifest, packages, layers, {}, {}, others)


class _NoBuilds:
    """A ``BuildCoordinator`` without builds."""

    def requesters(self, build: str) -> None:
        assert build


class _Index(FakeIndex):
    """The words, none of which is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        failures = tuple((word, f"attribute {word} is missing") for word in WORDS)
        self.progress = Progress("r1", 4, 4, failures, 4, is_complete=False)
        self.meta = [(word, None) for word in WORDS]
        self.attributes = {word: Attribute((word,), "package", version="1") for word in WORDS}

    async def names(self, tag: str) -> PackageSearch:  # noqa: ARG002 -- all tags are the same
        return PackageSearch([FoundPackage(word, word, "1", "a thing") for word in WORDS])


@dataclass
class _Rules:
    """``AccessRules`` without a file."""

    tokens: RegistryTokens
    rules: Rules
    tested: Server

    @property
    def current(self) -> Rules:
        self.rules = replace(self.rules, policy=self.tested.policy)
        return self.rules


class _Tokens:
    """API tokens: one user, and what their credentials are limited to."""

    def __init__(self) -> None:
        self.limits: Mapping[str, Limits | None] = {}

    async def verify(self, token: str) -> Identity:
        if token not in self.limits:
            raise CredentialsRefused("unknown")
        return Identity(Kind.API_TOKEN, USER, frozenset({"some"}), limits=self.limits[token])


async def _stored(blobs: BlobStore, catalogue: Catalogue, history: BuildHistory) -> list[Stored]:
    found = []
    for name in NAMES:
        for tag in TAGS:
            image = await store_image(blobs, [f"bytes of {name} {tag}".encode()], f"title of {tag}")
            document = json.loads(image.manifest.content)
            (request,) = requests_for(name, [AMD64])
            build = Build.of(request, PIN, tag=tag)
            history.observe(build, Started())
            history.observe(build, Failed(NixeryError(f"cannot build {name}")))
            await catalogue.record_tag(name, tag, image.manifest.descriptor.digest)
            await catalogue.record_name(name, tag, image.manifest.descriptor.digest)
            digests = document["layers"][0]["digest"], document["config"]["digest"]
            found.append(Stored(name, tag, image, *digests, build))
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, _Tokens]]:
    directory = tmp_path_factory.mktemp("access")
    temporary = directory / "temporary"
    temporary.mkdir()
    driver = FilesystemDriver(directory, temporary)
    blobs, records = BlobStore(driver), RecordStore(driver)
    catalogue, leases, history = Catalogue(records), Leases(records, 3600), BuildHistory(records)
    with asyncio.Runner() as runner:
        stored = runner.run(_stored(blobs, catalogue, history))
        platforms, writer = [AMD64], AnswerWriter()
        images = _ImagesOf(stored)
        permissions = Permissions(catalogue, blobs, platforms)
        registry = Registry(
            Manifests(images, blobs, leases, catalogue, permissions),
            Blobs(blobs, SmallBlobs(blobs), leases, permissions),
            Discovery(catalogue, permissions),
            permissions,
        )
        published = PublishedBuilds(history, FollowerBounds(10, 10), public=True)
        packages = PublishedPackages(cast("PackageIndex", _Index()))
        descriptions = cast("ImageDescriptions", _Descriptions(stored, history))
        cancellation = BuildCancellation(
            cast("BuildCoordinator", _NoBuilds()), published, None, private=False
        )
        api = Api(
            Packages(packages, writer),
            Builds(published, images, cancellation, platforms),
            ImageDocuments(descriptions, platforms, writer, compare=True),
        )
        names = PublishedImages(catalogue, public=True)
        pages = Pages(published, cancellation, packages, descriptions, names, platforms, writer)
        tokens = _Tokens()
        signed = RegistryTokens(SigningKeys(records), 300)
        verifiers = Verifiers(signed, cast("ApiTokens", tokens), FailedLogins())
        tested = Server(stored)
        current = _Rules(signed, Rules(tested.policy, Authenticator(verifiers), OidcIssuers([])), tested)
        access = AccessControl(cast("AccessRules", current), Quotas(), platforms, bytes(32))
        below = {"/api/v1/": api.answer, "/": pages.answer}
        application = Application(
            registry.answer,
            Observation(RequestCounts()),
            {},
            below,
            access=access,
            error_page=pages.error_page,
        )
        tested.application = ApplicationUnderTest(application, RecordingBuilder(), runner)
        yield tested, tokens
        runner.run(history.close())
        runner.run(leases.close())


# The oracle


def _matches(patterns: Sequence[str], text: str) -> bool:
    return any(text == one or (one.endswith("*") and text.startswith(one[:-1])) for one in patterns)


@dataclass(frozen=True)
class Asker:
    """An identity and the rules that it is subject to."""

    rules: Sequence[Rule]
    limits: Limits | None
    is_anonymous: bool

    def may(self, right: Right, name: str, tag: str) -> bool:
        words = name.split("/")
        return all(self._may(right, word, lambda rule: _matches(rule.tags, tag)) for word in words)

    def may_see_name(self, name: str) -> bool:
        """Whether some tag may be pulled: which ones there are is not asked, so rules for some tags forbid nothing."""
        return all(self._may_see(word) for word in name.split("/"))

    def _may_see(self, word: str) -> bool:
        return self._may(Right.PULL, word, lambda rule: Right.PULL in rule.may or rule.tags == ("*",))

    def _may(self, right: Right, word: str, applies: Callable[[Rule], bool]) -> bool:
        if self.limits is not None and (
            right not in self.limits.rights or not _matches(self.limits.packages, word)
        ):
            return False
        for rule in self.rules:
            if self._is_for_us(rule) and applies(rule) and _matches(rule.packages, word):
                return right in rule.may
        return False

    def _is_for_us(self, rule: Rule) -> bool:
        (who,) = rule.who
        if self.is_anonymous:
            return who in {"everyone", "anonymous"}
        return who in {"everyone", "authenticated", f"user:{USER}", "group:some"}


_PATTERNS = st.lists(st.sampled_from([*WORDS, "shell", "zulu*", "zulub*", "*"]), min_size=1, max_size=3)
rules = st.builds(
    Rule,
    st.sampled_from(
        ["everyone", "anonymous", "authenticated", f"user:{USER}", "group:some", "group:other"]
    ).map(lambda who: (who,)),
    st.frozensets(st.sampled_from(Right)),
    _PATTERNS.map(tuple),
    st.sampled_from([("*",), ("*",), ("latest",), ("1*",)]),
)
limits = st.none() | st.builds(Limits, st.frozensets(st.sampled_from(Right)), _PATTERNS.map(tuple))


def _values(stored: Sequence[Stored]) -> Mapping[str, Sequence[str]]:
    """Return values of the parameters of routes."""
    digests = [digest for one in stored for digest in (one.manifest, one.layer, one.config)]
    images = [f"{name}:{tag}" for name in (*NAMES, MISSING) for tag in TAGS]
    return {
        "name": (*NAMES, MISSING, "shell/zulubravo/zulubravo", "zulubravo/zulualpha"),
        "reference": (*TAGS, *digests),
        "digest": digests,
        "package": (*WORDS, MISSING, "pkgs.zulubravo", "zulub__72avo"),
        "image": images,
        "build": [one.build.id for one in stored],
        "session": ("1",),
        "file": ("style.css",),
        # The binary cache is off here; tests/integration/test_binary_cache.py has it with rules.
        "hash": ("0" * 32,),
        "nar-hash": ("0" * 64,),
    }


_QUERIES = (
    "",
    "q=zulu",
    f"q={MISSING}+zulubravo",
    "n=1",
    "limit=100&q=zulub",
    "why=zulucharlie",
    "after=zulua",
)


def _routes() -> Sequence[tuple[str, str]]:
    document = yaml.safe_load(_DESCRIPTION.read_text())
    return [
        (method.upper(), path)
        for path, item in document["paths"].items()
        for method in item
        if method in {"get", "head", "post", "put", "patch", "delete"}
    ]


ROUTES = _routes()


@given(st.data())
@examples(25)
def test_no_route_answers_what_the_rules_deny(server: tuple[Server, _Tokens], data: st.DataObject) -> None:
    tested, tokens = server
    drawn = data.draw(st.lists(rules, min_size=1, max_size=4))
    tested.policy = Policy(drawn, shows_denials=data.draw(st.booleans()))
    is_anonymous = data.draw(st.booleans())
    limited = None if is_anonymous else data.draw(limits)
    asker = Asker(drawn, limited, is_anonymous)
    headers: dict[str, str] = {}
    if not is_anonymous:
        token = f"nixery_{abs(hash(limited))}"
        tokens.limits = {token: limited}
        headers["authorization"] = f"Bearer {token}"
    values = _values(tested.stored)
    for method, route in ROUTES:
        path = re.sub(r"{(\w+)}", lambda match: data.draw(st.sampled_from(values[match[1]])), route)
        query = data.draw(st.sampled_from(_QUERIES))
        more = data.draw(
            st.sampled_from([{}, {"accept": "text/html"}, {"if-none-match": "*"}, {"range": "bytes=0-3"}])
        )
        _check(tested, asker, (method, path, query), {**headers, **more})


def _check(tested: Server, asker: Asker, sent: tuple[str, str, str], headers: Mapping[str, str]) -> None:
    answer = tested.ask(*sent, headers)
    # Texts are compared here, and not by pytest, which takes minutes to describe how two pages differ.
    wrong = [*_leaks(tested, asker, sent, answer), *_without_right(tested, asker, sent, answer)]
    if (
        answer.status in {200, 206, 304, 307}
        and not asker.is_anonymous
        and not sent[1].startswith("/static/")
    ):
        wrong += ["public"] if "public" in answer.headers.get("cache-control", "") else []
    assert not wrong, (sent, answer.status)
    assert answer.status < 500, (sent, answer.status)


def _leaks(tested: Server, asker: Asker, sent: tuple[str, str, str], answer: Response) -> Iterator[str]:
    """Yield digests, bytes and names in an answer that the asker may not see, unless they sent them."""
    method, path, query = sent
    # Header fields name the digest of a manifest by tag, so those are searched as well.
    said = answer.body.decode(errors="replace") + json.dumps(answer.headers)
    # The body of a build has a name, too.
    asked = f"{path}?{query} {NAMES[0]}" if method == "POST" else f"{path}?{query}"
    allowing = [Right.PULL, Right.SEE_BUILDS, *([Right.BUILD] if method == "POST" else [])]
    for one in tested.stored:
        if not any(asker.may(right, one.name, one.tag) for right in allowing):
            secrets = [*one.secrets, f"bytes of {one.name} {one.tag}"]
            yield from (secret for secret in secrets if secret in said and secret not in asked)
    # One word is the beginning of another one.
    said_words = set(re.findall(r"zulu\w+", said))
    for word in said_words.intersection(WORDS):
        is_shown = asker.may_see_name(word) or any(
            word in one.name.split("/") and asker.may(Right.SEE_BUILDS, one.name, one.tag)
            for one in tested.stored
        )
        if not is_shown and word not in asked:
            yield word


def _without_right(
    tested: Server, asker: Asker, sent: tuple[str, str, str], answer: Response
) -> Iterator[str]:
    """Yield a digest or a tag that was answered under a name under which the asker may not pull it.

    Not for referrers: the list of a manifest that does not exist is empty, as here is that of one that does.
    """
    match = re.fullmatch(r"/v2/(.+)/(?:manifests|blobs)/([^/]+)", sent[1])
    if match is None or answer.status not in {200, 206, 304, 307, 416}:
        return
    wanted, reference = requests_for(match[1], [AMD64]), match[2]
    if not any(
        requests_for(one.name, [AMD64]) == wanted
        and (reference == one.tag or reference in one.secrets)
        and asker.may(Right.PULL, one.name, one.tag)
        for one in tested.stored
    ):
        yield reference


@given(st.lists(rules, min_size=1, max_size=4), st.sampled_from(NAMES), st.sampled_from(["GET", "HEAD"]))
@examples(60)
def test_refused_is_like_missing(
    server: tuple[Server, _Tokens], drawn: list[Rule], name: str, method: str
) -> None:
    tested, tokens = server
    tokens.limits = {"nixery_1": None}
    tested.policy = Policy(drawn)
    if Asker(drawn, None, is_anonymous=False).may(Right.PULL, name, "1.0"):
        return
    one = next(one for one in tested.stored if (one.name, one.tag) == (name, "1.0"))
    zeros = f"sha256:{'0' * 64}"
    # Of each pair, the first is stored. No rule makes a difference between them.
    for route, stored, missing in (
        (f"/v2/{name}/manifests/", "1.0", "1.5"),
        (f"/api/v1/images/{name}:", "1.0", "1.5"),
        (f"/api/v1/digests/{name}:", "1.0", "1.5"),
        (f"/v2/{name}/manifests/", one.manifest, zeros),
        (f"/v2/{name}/blobs/", one.layer, zeros),
        (f"/v2/{name}/referrers/", one.manifest, zeros),
    ):
        headers = {"authorization": "Bearer nixery_1", "if-none-match": "*"}
        refused, unknown = (tested.ask(method, route + end, "", headers) for end in (stored, missing))
        assert (refused.status, refused.body) == (
            unknown.status,
            unknown.body.replace(missing.encode(), stored.encode()),
        ), route
