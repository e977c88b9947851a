"""Quotas and the audit log of a real server."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bcrypt

from tests.integration.conftest import StartServer

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
        ("pulled", "alice", "hello", None),
        ("pulled", "anonymous", "hello", None),
        ("refused", "alice", "greeting", "build"),
        ("login-failed", "anonymous", None, None),
    ]
    assert {event["address"] for event in _events(audit)} == {"127.0.0.1"}
    assert len({event["request"] for event in _events(audit)}) == 5
    assert _PASSWORD not in audit.read_text()
    assert _login(_PASSWORD)["Authorization"].split()[1] not in audit.read_text()
    assert audit.stat().st_mode & 0o777 == 0o600
