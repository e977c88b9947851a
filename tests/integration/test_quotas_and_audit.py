"""Quotas and the audit log of a real server."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bcrypt

from tests.integration.conftest import StartServer
from tests.integration.test_pages import post
from tests.support.command_line import CommandLine
from tests.support.server import Server

_RULES = """
htpasswd = "htpasswd"
show-denials = true

[[rule]]
who = ["authenticated"]
packages = ["greeting"]
may = ["pull"]

[[rule]]
who = ["everyone"]
may = ["pull", "build"]

[[quota]]
who = ["user:alice"]
builds-per-hour = 0

[[quota]]
who = ["everyone"]
requests-per-minute = 1000
builds-per-hour = 1
"""

_PASSWORD = "correct horse battery"  # noqa: S105 -- of a test


def _login(password: str) -> Mapping[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'alice:{password}'.encode()).decode()}"}


def _events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_builds_beyond_a_quota_are_refused_and_all_that_happened_is_in_the_audit_log(
    start_server: StartServer, tmp_path: Path
) -> None:
    hashed = bcrypt.hashpw(_PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (tmp_path / "htpasswd").write_text(f"alice:{hashed}\n")
    (tmp_path / "access.toml").write_text(_RULES)
    audit = tmp_path / "audit.jsonl"
    server = start_server(NIXERY_ACCESS=str(tmp_path / "access.toml"), NIXERY_AUDIT_LOG=str(audit))
    secrets = dict.fromkeys(("Cookie", "User-Agent", "X-Request-Id", "X-Api-Key", "Referer"), _PASSWORD)

    def pull(name: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        response = server.client.get(f"/v2/{name}/manifests/latest", {**secrets, **(headers or {})})
        refused = response.status >= 400
        return response.status, response.json()["errors"][0]["message"] if refused else ""

    assert pull("hello") == (200, "")
    refused = server.client.get("/v2/left/manifests/latest")
    assert (refused.status, refused.json()["errors"][0]["code"]) == (429, "TOOMANYREQUESTS")
    assert int(refused.headers["retry-after"]) > 3000
    assert "builds an hour are limited to 1 for this client (builds-per-hour)" in pull("left")[1]
    # Another identity has another quota; stored images need none.
    assert "builds an hour are limited to 0 " in pull("left", _login(_PASSWORD))[1]
    assert post(server, b'{"name": "right"}')[0] == 429
    assert pull("hello", _login(_PASSWORD)) == (200, "")
    assert pull("hello") == (200, "")
    assert pull("greeting", _login(_PASSWORD))[0] in {403, 404}
    assert pull("hello", _login(f"wrong {_PASSWORD}"))[0] == 401
    server.stop()

    events = [
        (event["event"], event["identity"], event.get("name"), event.get("right")) for event in _events(audit)
    ]
    assert events == [
        ("built", "anonymous", "hello", None),
        ("pulled", "anonymous", "hello", None),
        ("refused", "anonymous", "left", "build"),
        ("refused", "anonymous", "left", "build"),
        ("refused", "alice", "left", "build"),
        ("refused", "anonymous", "right", "build"),
        ("pulled", "alice", "hello", None),
        ("pulled", "anonymous", "hello", None),
        ("refused", "alice", "greeting", "build"),
        ("login-failed", "anonymous", None, None),
    ]
    assert _events(audit)[-1]["user"] == "alice"
    assert {event["address"] for event in _events(audit)} == {"127.0.0.1"}
    assert len({event["request"] for event in _events(audit)}) == 9
    assert _events(audit)[2]["reason"].startswith("quota exceeded: builds an hour are limited to 1 ")
    assert _PASSWORD not in audit.read_text()
    assert _login(_PASSWORD)["Authorization"].split()[1] not in audit.read_text()
    assert audit.stat().st_mode & 0o777 == 0o600


_ROLES = """
htpasswd = "htpasswd"

[[rule]]
who = ["user:alice"]
may = ["pull", "build", "see-builds"]

[[rule]]
who = ["user:ci"]
packages = ["hello"]
may = ["pull"]
"""


def test_the_audit_log_says_who_had_what_built_pulled_was_refused_and_created_or_revoked_tokens(
    start_server: StartServer, tmp_path: Path
) -> None:
    hashed = bcrypt.hashpw(_PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (tmp_path / "htpasswd").write_text(f"alice:{hashed}\n")
    (tmp_path / "access.toml").write_text(_ROLES)
    audit = tmp_path / "audit.jsonl"
    settings = {"NIXERY_ACCESS": str(tmp_path / "access.toml"), "NIXERY_AUDIT_LOG": str(audit)}
    server = start_server(**settings)
    nixery = CommandLine({**settings, "STORAGE_PATH": str(server.storage)}, tmp_path)
    token = nixery("token", "create", "--user", "ci").stdout.strip()
    as_ci = {"Authorization": f"Bearer {token}"}
    as_alice = _login(_PASSWORD)

    def get(path: str, headers: Mapping[str, str]) -> int:
        return server.client.get(path, headers).status

    assert get("/v2/greeting/manifests/latest", as_alice) == 200
    (build,) = server.client.get("/api/v1/builds", as_alice).json()["builds"]
    # Of ci, below /v2/, in the API and on pages; a browser gets a page instead of JSON.
    for path in (
        "/v2/greeting/manifests/latest",
        "/api/v1/images/greeting",
        "/images/greeting",
        "/api/v1/packages/greeting",
        "/packages/greeting",
        f"/api/v1/builds/{build['id']}",
        f"/builds/{build['id']}",
        f"/builds/{build['id']}/log",
        "/metrics",
    ):
        assert get(path, {**as_ci, "Accept": "text/html"}) == 404, path
    assert get("/v2/hello/manifests/latest", as_ci) == 404
    # These leave out what is not allowed, do not exist, or ask for a login: none is a refusal.
    assert get("/api/v1/packages?q=greeting", as_ci) == 200
    assert get("/api/v1/digests/greeting", as_ci) == 200
    assert get("/builds/0123456789abcdef", as_ci) == 404
    assert get("/v2/greeting/manifests/latest", {}) == 401
    assert get("/builds", {}) == 401
    # Only a name of the password file is written: people type passwords as names.
    for user in ("alice", "mallory", _PASSWORD):
        wrong = base64.b64encode(f"{user}:wrong".encode()).decode()
        assert get("/", {"Authorization": f"Basic {wrong}"}) == 401
    nixery("token", "revoke", token)
    server.stop()

    events = _events(audit)
    assert [event["event"] for event in events[:3]] == ["token-created", "built", "pulled"]
    assert (events[0]["owner"], events[0]["identity"], events[0]["kind"]) == ("ci", None, "internal")
    for event in events[1:3]:
        assert (event["identity"], event["kind"], event["name"]) == ("alice", "password", "greeting")
        assert event["digest"].startswith("sha256:")
    refused = [(event["right"], event["name"]) for event in events if event["event"] == "refused"]
    assert refused == [
        *[("pull", "greeting")] * 5,
        *[("see-builds", "greeting")] * 3,
        ("admin", "/metrics"),
        ("build", "hello"),
    ]
    assert {(event["identity"], event["kind"]) for event in events if event["event"] == "refused"} == {
        ("ci", "api-token")
    }
    failed = [event for event in events if event["event"] == "login-failed"]
    assert [event["user"] for event in failed] == ["alice", None, None]
    assert (events[-1]["event"], events[-1]["owner"]) == ("token-revoked", "ci")
    assert not {token, _PASSWORD, "mallory"}.intersection(audit.read_text().split('"'))


def test_two_servers_of_a_storage_have_one_quota_and_a_restart_does_not_renew_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    (tmp_path / "access.toml").write_text(
        '[[rule]]\nwho = ["everyone"]\nmay = ["pull", "build"]\n'
        '[[quota]]\nwho = ["everyone"]\nbuilds-per-hour = 2\n'
    )
    first, second = (start_server(NIXERY_ACCESS=str(tmp_path / "access.toml")) for _ in range(2))

    def pull(server: Server, name: str) -> int:
        return server.client.get(f"/v2/{name}/manifests/latest").status

    assert [pull(first, "hello"), pull(second, "greeting")] == [200, 200]
    refused = second.client.get("/v2/left/manifests/latest")
    assert refused.status == 429
    assert "builds an hour are limited to 2" in refused.error["message"]
    # Stored images need no quota.
    assert [pull(first, "greeting"), pull(second, "hello")] == [200, 200]
    assert [first.stop(), second.stop()] == [0, 0]
    third = start_server(NIXERY_ACCESS=str(tmp_path / "access.toml"))
    assert pull(third, "left") == 429
