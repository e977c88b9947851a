"""Every client with right, wrong, expired, foreign and no credentials, at a server with access rules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.clients.client import Outcome, Shell
from tests.acceptance.clients.logins import COMPILED, Case, Commands, Credentials, LoginClient, commands_of
from tests.acceptance.clients.private_bases import running_builder
from tests.acceptance.conftest import RUNNING, Notes
from tests.acceptance.registry_with_access import PASSWORD, TAGS, VISITOR, Registry
from tests.support.file_systems import short_lived_directory

_VISITOR = Credentials(VISITOR, PASSWORD)

# The messages of the server.
_MESSAGES = {
    Case.WRONG: "authentication failed: the user name or the password is wrong",
    Case.EXPIRED: "authentication failed: the API token expired on ",
    Case.FOREIGN: "authentication failed: the API token is wrong, or was revoked",
    Case.UNRELATED: "there is no image hello that visitor may use here; ask who runs this registry",
    Case.MISSING: "authentication required: log in to pull hello",
}


# What clients show that do not show these, at least.
_HINTS = {
    Case.WRONG: "401|unauthorized",
    Case.EXPIRED: "401|unauthorized",
    Case.FOREIGN: "401|unauthorized",
    Case.UNRELATED: "not found|does not exist",
    Case.MISSING: "401|unauthorized|authorization failed|access denied|no basic auth credentials",
}


@pytest.fixture(scope="session")
def login_client(request: pytest.FixtureRequest, access: Registry) -> Iterator[LoginClient]:
    name: str = request.param
    with (
        short_lived_directory(f"nixery-{name}-") as directory,
        _running(name, directory, access.server.port) as (commands, versions),
    ):
        yield LoginClient(commands, versions, access.host)


@contextmanager
def _running(name: str, directory: Path, port: int) -> Iterator[tuple[Commands, Mapping[str, str]]]:
    if name in COMPILED:
        commands = COMPILED[name](Shell(directory))
        yield commands, commands.versions()
    elif name in RUNNING:
        with RUNNING[name](directory, port) as client:
            yield commands_of(client), client.versions()
    else:
        with running_builder(name, directory, port) as running:
            yield running


@pytest.fixture
def remarks(login_client: LoginClient, request: pytest.FixtureRequest) -> Notes:
    properties: list[tuple[str, object]] = request.node.user_properties
    properties.append(("versions", dict(login_client.versions)))
    return Notes(properties)


def right(client: LoginClient) -> Credentials:
    return Credentials(client.name, PASSWORD)


def _preface(requests: list[tuple[str, str, int]]) -> list[tuple[str, int]]:
    """Return the requests that are for no manifest and no blob, or that were not answered."""
    return [
        (path if path in ("/v2/", "/v2/token") else "image", status)
        for _, path, status in requests
        if path in ("/v2/", "/v2/token") or status != 200
    ]


def test_pull_without_credentials(login_client: LoginClient, access: Registry, remarks: Notes) -> None:
    before = len(access.requests)
    login_client.pull("other:latest", None).expect_success()
    preface = _preface(access.requests[before:])
    # Clients that ask first get a token without credentials; others get the image at once.
    expected = [("/v2/", 401), ("/v2/token", 200)] if login_client.commands.asks_first else []
    assert preface == expected
    remarks.note(f"{len(preface)} more requests")


def test_login(login_client: LoginClient, remarks: Notes) -> None:
    outcome = login_client.login(right(login_client))
    if outcome is None:
        remarks.note("no login")
        return
    outcome.expect_success()
    wrong = login_client.login(Credentials(login_client.name, "wrong"))
    assert wrong is not None
    if not login_client.commands.login_asks:
        remarks.note("does not ask the registry")
        return
    assert wrong.status != 0
    assert (_MESSAGES[Case.WRONG] in wrong.output) == login_client.commands.login_shows
    remarks.note("wrong password: shows why" if login_client.commands.login_shows else "refused without why")


def test_pull_with_a_password(login_client: LoginClient, access: Registry, remarks: Notes) -> None:
    before = len(access.requests)
    login_client.pull("hello:latest", right(login_client)).expect_success()
    preface = Counter(_preface(access.requests[before:]))
    if login_client.commands.asks_first:
        assert preface == {("/v2/", 401): 1, ("/v2/token", 200): 1}
    else:
        # containerd gets one token to resolve the tag, and one to fetch.
        assert preface.keys() == {("image", 401), ("/v2/token", 200)}
        assert set(preface.values()) <= {1, 2}
    remarks.note(f"{preface.total()} more requests")


@pytest.mark.usefixtures("remarks")
def test_pull_with_an_api_token(login_client: LoginClient, access: Registry) -> None:
    login_client.pull("hello:1.0", Credentials("robot", access.token)).expect_success()


def _expect(case: Case, login_client: LoginClient, outcome: Outcome, notes: Notes) -> None:
    notes.message(outcome.output)
    shown = "shows why" if case in login_client.commands.shows else "status only"
    notes.note("names the login" if "docker login" in outcome.output else shown)
    assert outcome.status != 0
    assert (_MESSAGES[case] in outcome.output) == (case in login_client.commands.shows), outcome.output
    if case not in login_client.commands.shows:
        assert re.search(_HINTS[case], outcome.output, re.IGNORECASE), outcome.output


def test_wrong_password(login_client: LoginClient, remarks: Notes) -> None:
    outcome = login_client.pull("hello:latest", Credentials(login_client.name, "wrong"))
    _expect(Case.WRONG, login_client, outcome, remarks)


def test_expired_token(login_client: LoginClient, access: Registry, remarks: Notes) -> None:
    outcome = login_client.pull("hello:latest", Credentials("robot", access.expired))
    _expect(Case.EXPIRED, login_client, outcome, remarks)


def test_token_of_another_registry(login_client: LoginClient, access: Registry, remarks: Notes) -> None:
    outcome = login_client.pull("hello:latest", Credentials("robot", access.foreign))
    _expect(Case.FOREIGN, login_client, outcome, remarks)


def test_user_without_the_right(login_client: LoginClient, remarks: Notes) -> None:
    outcome = login_client.pull("hello:latest", _VISITOR)
    _expect(Case.UNRELATED, login_client, outcome, remarks)


def test_no_credentials(login_client: LoginClient, remarks: Notes) -> None:
    outcome = login_client.pull("hello:latest", None)
    _expect(Case.MISSING, login_client, outcome, remarks)


def _lists(outcome: Outcome, tag: str) -> bool:
    return re.search(rf'(^|[\s"]){re.escape(tag)}($|[\s"])', outcome.expect_success()) is not None


def test_list_of_tags(login_client: LoginClient, remarks: Notes) -> None:
    listed = login_client.tags("hello", right(login_client))
    if listed is None:
        remarks.note("no command")
        return
    partly = login_client.tags("environment", right(login_client))
    assert partly is not None
    for tag in TAGS:
        assert _lists(listed, tag), listed.output
        # Everyone sees one of them: a client sends its credentials only if it is asked for them.
        assert _lists(partly, tag), partly.output
    shown = login_client.tags("environment", None)
    assert shown is not None
    assert [tag for tag in TAGS if _lists(shown, tag)] == ["1.0"], shown.output
    everyone = login_client.tags("other", None)
    refused = login_client.tags("hello", None)
    assert everyone is not None
    assert refused is not None
    assert TAGS[0] in everyone.expect_success()
    assert refused.status != 0


def test_list_of_images(login_client: LoginClient, remarks: Notes) -> None:
    """A client with credentials lists what they allow, one without any what everyone may pull."""
    listed = login_client.catalog(right(login_client))
    everyone = login_client.catalog(None)
    if listed is None or everyone is None:
        remarks.note("no command")
        return
    assert {"hello", "other"} <= set(re.findall(r"\w+", listed.expect_success())), listed.output
    words = set(re.findall(r"\w+", everyone.expect_success()))
    assert "other" in words
    assert "hello" not in words


@pytest.mark.parametrize("name", ["hello", "environment"])
def test_tags_as_updaters_list_them(access: Registry, name: str) -> None:
    """Renovate and ArgoCD's image updater: challenge, token with the scope of the image, pages of tags."""
    client = access.server.client
    challenge = client.get(f"/v2/{name}/tags/list?n=2")
    assert challenge.status == 401
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge.headers["www-authenticate"]))
    assert fields["scope"] == f"repository:{name}:pull"
    basic = {"Authorization": Credentials("robot", access.token).authorization}
    path = fields["realm"].removeprefix(f"http://{access.host}")
    issued = client.get(f"{path}?service={fields['service']}&scope={fields['scope']}", basic).json()
    tags: list[str] = []
    following: str | None = f"/v2/{name}/tags/list?n=2"
    while following is not None:
        page = client.get(following, {"Authorization": f"Bearer {issued['token']}"})
        assert page.status == 200
        tags += page.json()["tags"]
        link = re.fullmatch(r'<([^>]+)>; rel="next"', page.headers.get("link", ""))
        following = None if link is None else link[1]
    assert tags == [*TAGS, "latest"]
