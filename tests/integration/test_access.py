"""Who may pull and have built what, over HTTP: rules, passwords, the token service, and two servers of one storage."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import bcrypt
import pytest

from tests.integration.conftest import StartServer
from tests.support.client import MANIFEST, Response
from tests.support.repository import Repository
from tests.support.server import Server

RULES = """
htpasswd = "htpasswd"

[groups]
platform = ["alice"]

[[rule]]
who = ["group:platform"]
may = ["pull", "build", "see-builds", "admin"]

[[rule]]
who = ["user:bob"]
packages = ["shell", "hello"]
may = ["pull"]

[[rule]]
who = ["everyone"]
packages = ["greeting"]
may = ["pull", "build"]
"""

PASSWORDS = {"alice": "alice's password", "bob": "b:o:b"}


@pytest.fixture(scope="module")
def hashes() -> str:
    lines = (
        f"{user}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n"
        for user, password in PASSWORDS.items()
    )
    return "".join(lines)


@pytest.fixture
def access(tmp_path: Path, hashes: str) -> Path:
    (tmp_path / "htpasswd").write_text(hashes)
    file = tmp_path / "access.toml"
    file.write_text(RULES)
    return file


def basic(user: str, password: str | None = None) -> Mapping[str, str]:
    text = f"{user}:{PASSWORDS[user] if password is None else password}"
    return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


def token(server: Server, *scopes: str, login: Mapping[str, str] | None = None) -> dict[str, Any]:
    query = urlencode([("service", "nixery"), *(("scope", scope) for scope in scopes)])
    response = server.client.get(f"/v2/token?{query}", login)
    assert response.status == 200, response
    document: dict[str, Any] = response.json()
    return document


def bearer(issued: Mapping[str, Any]) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {issued['token']}"}


def manifest(server: Server, name: str, headers: Mapping[str, str], reference: str = "latest") -> Response:
    return server.client.get(f"/v2/{name}/manifests/{reference}", {"Accept": MANIFEST, **headers})


def test_a_login_with_the_token_service(start_server: StartServer, access: Path) -> None:
    server = start_server(NIXERY_ACCESS=str(access))
    challenge = server.client.get("/v2/")
    assert challenge.status == 401
    assert challenge.error["code"] == "UNAUTHORIZED"
    realm = f'Bearer realm="http://{server.client.host}:{server.client.port}/v2/token",service="nixery"'
    assert challenge.headers["www-authenticate"] == realm
    assert server.client.get("/v2/", basic("alice")).status == 200
    wrong = server.client.get("/v2/", basic("alice", "wrong"))
    assert (wrong.status, wrong.error["code"]) == (401, "UNAUTHORIZED")
    assert "the user name or the password is wrong" in wrong.error["message"]
    assert server.client.get("/v2/", basic("nobody", "wrong")).body == wrong.body
    refused = server.client.get("/v2/token?service=nixery", basic("alice", "wrong"))
    assert refused.status == 401

    denied = manifest(server, "hello", {})
    assert denied.headers["www-authenticate"] == realm + ',scope="repository:hello:pull"'
    issued = token(server, "repository:hello:pull", login=basic("alice"))
    assert issued["expires_in"] == 300
    assert issued["access_token"] == issued["token"]
    found = manifest(server, "hello", bearer(issued))
    assert found.status == 200
    for blob in [found.json()["config"], *found.json()["layers"]]:
        assert server.client.get(f"/v2/hello/blobs/{blob['digest']}", bearer(issued)).status == 200
        assert server.client.get(f"/v2/hello/blobs/{blob['digest']}").status == 401
    # The token is for one image, and only for pulling it.
    other = manifest(server, "shell/hello", bearer(issued))
    assert other.status == 401
    assert (
        'scope="repository:shell/hello:pull",error="insufficient_scope"' in other.headers["www-authenticate"]
    )
    catalog = server.client.get("/v2/_catalog", bearer(issued))
    assert catalog.status == 401
    assert 'scope="registry:catalog:*",error="insufficient_scope"' in catalog.headers["www-authenticate"]
    assert server.client.get("/v2/token?service=nixery", bearer(issued)).status == 401
    forged = manifest(server, "hello", {"Authorization": f"Bearer {issued['token'][:-8]}AAAAAAAA"})
    assert forged.status == 401
    assert 'error="invalid_token"' in forged.headers["www-authenticate"]


def test_who_may_pull_may_not_have_built(start_server: StartServer, access: Path) -> None:
    server = start_server(NIXERY_ACCESS=str(access))
    cold = manifest(server, "hello", basic("bob"))
    assert (cold.status, cold.error["code"]) == (404, "MANIFEST_UNKNOWN")
    assert "was not built yet" in cold.error["message"]
    assert (
        manifest(server, "shell", basic("bob")).error["message"].startswith("image shell was not built yet")
    )
    assert manifest(server, "hello", basic("alice")).status == 200
    warm = manifest(server, "hello", basic("bob"))
    assert warm.status == 200
    # What bob may not pull looks the same whether or not it exists.
    assert manifest(server, "tool", basic("alice")).status in (200, 404)
    for name in ("tool", "nothing-of-that-name"):
        hidden = manifest(server, name, basic("bob"))
        assert (hidden.status, hidden.error["code"]) == (404, "NAME_UNKNOWN")
        assert hidden.error["message"] == (
            f"there is no image {name} that bob may use here; ask who runs this registry"
        )


def test_everybody_pulls_what_the_rules_give_to_everybody(start_server: StartServer, access: Path) -> None:
    server = start_server(NIXERY_ACCESS=str(access))
    direct = server.client.pull("greeting")  # without asking for a token first
    anonymous = bearer(token(server, "repository:greeting:pull repository:hello:pull"))
    assert manifest(server, "greeting", anonymous, direct.digest).status == 200
    assert manifest(server, "hello", anonymous).status == 401
    assert server.client.get("/v2/", anonymous).status == 200
    empty = token(server, "repository:greeting:pull", login=basic("", ""))
    assert manifest(server, "greeting", bearer(empty)).status == 200
    assert manifest(server, "hello", basic("", "")).status == 401
    assert server.client.get("/v2/", basic("", "")).status == 401
    # A digest leads to an image only under a name that it has.
    private = manifest(server, "hello", basic("alice"))
    digest = private.headers["docker-content-digest"]
    for headers in ({}, anonymous, basic("bob")):
        assert manifest(server, "greeting", headers, digest).status in (401, 404)
    for one in (digest, f"sha256:{'0' * 64}"):
        referrers = server.client.get(f"/v2/greeting/referrers/{one}")
        assert (referrers.status, referrers.json()["manifests"]) == (200, [])
    config = private.json()["config"]["digest"]
    stolen = server.client.get(f"/v2/greeting/blobs/{config}")
    assert (stolen.status, stolen.error["code"]) == (404, "BLOB_UNKNOWN")
    missing = server.client.get(f"/v2/greeting/blobs/sha256:{'0' * 64}")
    assert missing.error["code"] == stolen.error["code"]
    assert (
        missing.error["message"].replace("0" * 64, config.removeprefix("sha256:")) == stolen.error["message"]
    )


def test_another_server_knows_what_belongs_to_an_image(start_server: StartServer, access: Path) -> None:
    first = start_server(NIXERY_ACCESS=str(access))
    image = first.client.pull("greeting")
    issued = token(first, "repository:greeting:pull", login=basic("bob"))
    second = start_server(NIXERY_ACCESS=str(access))
    # The layer first: a client may get each part from another server.
    for digest in (*image.layer_digests, json.loads(image.manifest)["config"]["digest"]):
        assert second.client.get(f"/v2/greeting/blobs/{digest}", bearer(issued)).status == 200
    assert manifest(second, "greeting", bearer(issued), image.digest).status == 200
    assert second.client.get(f"/v2/greeting/blobs/sha256:{'0' * 64}", bearer(issued)).status == 404


def test_lists_have_what_the_asker_may_see(start_server: StartServer, access: Path) -> None:
    server = start_server(NIXERY_ACCESS=str(access))
    for name in ("hello", "greeting"):
        assert manifest(server, name, basic("alice")).status == 200
    # oras and regctl send credentials if they are challenged, and others may see more than everyone.
    challenge = server.client.get("/v2/_catalog")
    assert challenge.status == 401
    assert challenge.headers["www-authenticate"].endswith(',scope="registry:catalog:*"')
    anonymous = bearer(token(server, "registry:catalog:*"))
    names = {
        user: server.client.get("/v2/_catalog", headers).json()["repositories"]
        for user, headers in {"alice": basic("alice"), "bob": basic("bob"), "": anonymous}.items()
    }
    assert names == {"alice": ["greeting", "hello"], "bob": ["greeting", "hello"], "": ["greeting"]}
    assert server.client.get("/v2/greeting/tags/list").json()["tags"] == ["latest"]
    assert server.client.get("/v2/hello/tags/list").status == 401
    builds = {
        user: {one["name"] for one in server.client.get("/api/v1/builds", headers).json()["builds"]}
        for user, headers in {"alice": basic("alice"), "bob": basic("bob"), "": {}}.items()
    }
    assert builds == {"alice": {"greeting", "hello"}, "bob": set(), "": set()}
    build = server.client.get("/api/v1/builds", basic("alice")).json()["builds"][0]["id"]
    for path in (
        f"/api/v1/builds/{build}",
        f"/api/v1/builds/{build}/events",
        f"/builds/{build}",
        f"/builds/{build}/log",
    ):
        assert server.client.get(path, basic("alice")).status == 200
        assert server.client.get(path, basic("bob")).status == 404
    assert server.client.get("/api/v1/images/hello").status == 401
    assert server.client.get("/api/v1/images/hello", basic("bob")).status == 200
    assert server.client.get("/api/v1/digests/hello").json()["digest"] is None
    digest = server.client.get("/api/v1/digests/hello", basic("bob"))
    assert digest.status == 200
    assert digest.json()["digest"].startswith("sha256:")
    assert server.client.get("/images/hello", {"Accept": "text/html"}).status == 401
    assert "hello" not in server.client.get("/images").body.decode().replace("hello-", "")
    assert server.client.get("/metrics").status == 401
    assert server.client.get("/metrics", basic("alice")).status == 200
    assert server.client.get("/healthz").status == 200
    # Each page says who is logged in; none is kept for somebody else.
    for path in ("/", "/help", "/docs"):
        assert b"Logged in as alice" in server.client.get(path, basic("alice")).body
        assert b">Log in</a>" in server.client.get(path).body


def test_a_list_of_tags_asks_for_credentials_that_show_more(
    tmp_path: Path, start_server: StartServer, access: Path
) -> None:
    repository = Repository(tmp_path / "repository")
    repository.commit("1.0")
    repository.git("tag", "1.0")
    access.write_text(RULES.replace('packages = ["greeting"]', 'packages = ["other"]\ntags = ["1.*"]'))
    server = start_server(NIXERY_ACCESS=str(access), NIXERY_PKGS_PATH=None, NIXERY_PKGS_REPO=repository.url)
    for tag in ("1.0", "latest"):
        assert manifest(server, "other", basic("alice"), tag).status == 200
    # A pull that everyone may do needs no token.
    image = server.client.pull("other", "1.0")
    path = "/v2/other/tags/list"
    challenge = server.client.get(path)
    assert challenge.status == 401
    assert challenge.headers["www-authenticate"].endswith(',scope="repository:other:pull"')
    anonymous, alice = (
        server.client.get(path, bearer(token(server, "repository:other:pull", login=login))).json()["tags"]
        for login in (None, basic("alice"))
    )
    assert (anonymous, alice) == (["1.0"], ["1.0", "latest"])
    # The same for digests: clients with a pinned digest send no credentials unless they are asked for them.
    for kind in ("manifests", "blobs", "referrers"):
        missing = f"/v2/other/{kind}/sha256:{'0' * 64}"
        assert server.client.get(missing).status == 401
        assert server.client.get(missing, basic("alice")).status == (200 if kind == "referrers" else 404)
    assert server.client.get(f"/v2/other/manifests/{image.digest}").status == 200


def test_the_file_is_loaded_again(start_server: StartServer, access: Path) -> None:
    server = start_server(NIXERY_ACCESS=str(access))
    assert manifest(server, "greeting", {}).status == 200
    access.write_text('[[rule]]\nwho = ["nobody"]\nmay = ["pull"]\n')
    deadline = time.monotonic() + 60
    while "the access file has a mistake" not in server.log and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "rule 1, who 1: 'nobody' matches no identity" in server.log
    assert manifest(server, "greeting", {}).status == 200
    access.write_text(RULES.replace('["greeting"]', '["nothing"]'))
    while manifest(server, "greeting", {}).status == 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert manifest(server, "greeting", {}).status == 401
    assert manifest(server, "greeting", basic("alice")).status == 200


def test_a_wrong_file_is_a_line_at_the_start_for_each_mistake(
    tmp_path: Path, start_server: StartServer
) -> None:
    (tmp_path / "access.toml").write_text(
        'htpaswd = "users"\n[[rule]]\nwho = ["everyone"]\nmay = ["pul"]\n[[rule]]\nwho = []\nmay = ["pull"]\n'
    )
    with pytest.raises(AssertionError) as failure:
        start_server(NIXERY_ACCESS=str(tmp_path / "access.toml"))
    text = str(failure.value)
    for line in (
        "htpaswd: there is no such key; did you mean htpasswd?",
        "rule 1, may 1: should be 'pull'",
        "rule 2, who: the list is empty",
    ):
        assert line in text, text


def test_without_rules_credentials_are_ignored(start_server: StartServer) -> None:
    server = start_server()
    assert server.client.get("/v2/", basic("alice", "wrong")).status == 200
    assert manifest(server, "greeting", basic("alice", "wrong")).status == 200
    assert server.client.get("/v2/token").status == 404


def test_packages_of_a_tag_are_for_who_may_pull_at_it(
    tmp_path: Path, start_server: StartServer, access: Path
) -> None:
    access.write_text(RULES.replace("who =", 'tags = ["latest"]\nwho ='))
    repository = Repository(tmp_path / "repository")
    repository.commit("1.0")
    repository.git("branch", "private")
    server = start_server(
        NIXERY_ACCESS=str(access), NIXERY_PKGS_REPO=repository.url, NIXERY_PKGS_PATH=None, NIXERY_INDEX="1"
    )
    for path in (
        "packages?q=hello&tag=",
        "packages/hello?tag=",
        "names?q=hello&tag=",
        "meta-packages?tag=",
        "index?tag=",
    ):
        shown = server.client.get(f"/api/v1/{path}latest", basic("alice"))
        assert shown.status == 200, shown
        for headers in ({}, basic("alice")):
            hidden = server.client.get(f"/api/v1/{path}private", headers)
            missing = server.client.get(f"/api/v1/{path}nothing", headers)
            assert (hidden.status, missing.status) == (404, 404), path
            assert hidden.body.replace(b"private", b"nothing") == missing.body
    assert '"reference": "private"' not in server.log
