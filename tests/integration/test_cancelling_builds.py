"""Cancelling builds over HTTP: who may, what those see who wait, and what is left."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import bcrypt
import pytest

from tests.integration.conftest import StartServer
from tests.support.client import InBackground, RegistryClient, Response
from tests.support.nix import NixSpy, children_of, processes_with_environment, wait_until
from tests.support.server import HOST, Server, free_port
from tests.validator.image_validator import validate

RULES = """
htpasswd = "htpasswd"

[[rule]]
who = ["user:root"]
may = ["pull", "build", "see-builds", "admin"]

[[rule]]
who = ["user:alice", "user:bob"]
may = ["pull", "build", "see-builds"]
"""


@pytest.fixture
def access(tmp_path: Path) -> str:
    users = ("root", "alice", "bob")
    lines = (f"{user}:{bcrypt.hashpw(user.encode(), bcrypt.gensalt(4)).decode()}\n" for user in users)
    (tmp_path / "htpasswd").write_text("".join(lines))
    (tmp_path / "access.toml").write_text(RULES)
    return str(tmp_path / "access.toml")


def basic(user: str) -> Mapping[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{user}'.encode()).decode()}"}


def pull(server: Server, name: str, headers: Mapping[str, str] | None = None) -> InBackground:
    return InBackground(server.client, f"/v2/{name}/manifests/latest", headers).start()


def running_build(client: RegistryClient, headers: Mapping[str, str] | None = None) -> str:
    (build,) = client.get("/api/v1/builds?state=running", headers).json()["builds"]
    return str(build["id"])


def cancel(client: RegistryClient, build: str, headers: Mapping[str, str] | None = None) -> Response:
    return client.request("POST", f"/api/v1/builds/{build}/cancel", headers)


def test_a_cancelled_build_leaves_no_process_and_says_why(
    start_server: StartServer, access: str, salt: str, tmp_path: Path
) -> None:
    audit = tmp_path / "audit"
    server = start_server(NIXERY_ACCESS=access, NIXERY_AUDIT_LOG=str(audit))
    waiting = pull(server, "sleeps", basic("alice"))

    def builders() -> set[int]:
        return processes_with_environment(salt).keys() & children_of(server.process.pid).keys()

    wait_until(lambda: len(builders()) >= 3, "the builder and its child run")
    build = running_build(server.client, basic("alice"))
    path = f"/api/v1/builds/{build}/cancel"
    refused = [
        cancel(server.client, build),
        cancel(server.client, build, basic("bob")),
        cancel(server.client, build, {**basic("alice"), "Origin": "https://evil.example"}),
        server.client.get(path, basic("alice")),
    ]
    assert [answer.status for answer in refused] == [401, 403, 403, 405]
    assert waiting.is_running

    accepted = cancel(server.client, build, basic("alice"))
    assert (accepted.status, accepted.json()["page"]) == (202, f"/builds/{build}")
    answer = waiting.result()
    assert answer.status == 422
    assert answer.error["message"].startswith("the build was cancelled by the user who requested it; pull")
    wait_until(lambda: not builders(), "the builder and its child have ended")
    report = server.client.get(f"/api/v1/builds/{build}", basic("bob")).json()
    assert (report["state"], report["failure"], report["builders"]) == ("failed", "cancelled", [])
    assert cancel(server.client, build, basic("alice")).status == 409
    page = server.client.get(f"/builds/{build}", basic("bob")).body.decode()
    assert "The build was cancelled" in page
    validate(RegistryClient(HOST, server.port, authorization=basic("bob")["Authorization"]).pull("hello"))
    assert server.stop() == 0
    events = [json.loads(line) for line in audit.read_text().splitlines()]
    cancelled = [
        (one["identity"], one["build"], one["name"]) for one in events if one["event"] == "cancelled"
    ]
    assert cancelled == [("alice", build, "sleeps")]
    assert "Traceback" not in server.log
    assert not [file for file in (tmp_path / "storage").rglob("*") if file.name.endswith(".tmp")]


def test_a_build_of_several_goes_on_unless_an_administrator_cancels_it(
    start_server: StartServer, access: str, spy: NixSpy
) -> None:
    server = start_server(NIXERY_ACCESS=access, **spy.environment())
    with spy.holding("--realise"):
        pulls = [pull(server, "hello", basic(user)) for user in ("alice", "bob")]
        wait_until(lambda: "joined" in server.log, "one has joined the build of the other")
        wait_until(lambda: bool(spy.calls_of("nix-store", "--realise")), "the build runs")
        build = running_build(server.client, basic("alice"))
        for user in ("alice", "bob"):
            answer = cancel(server.client, build, basic(user))
            assert (answer.status, "others have requested" in answer.error["message"]) == (409, True)
        assert all(one.is_running for one in pulls)
        assert cancel(server.client, build, basic("root")).status == 202
        answers = [one.result() for one in pulls]
    assert [answer.status for answer in answers] == [422, 422]
    assert "cancelled by an administrator" in answers[1].error["message"]
    # It is not remembered: the next pull builds the image.
    assert pull(server, "hello", basic("bob")).result().status == 200


def test_without_rules_the_operator_cancels_builds_through_the_admin_port(
    start_server: StartServer, spy: NixSpy
) -> None:
    port = free_port()
    server = start_server(NIXERY_ADMIN_PORT=str(port), **spy.environment())
    admin = RegistryClient(HOST, port)
    with spy.holding("--realise"):
        waiting = pull(server, "hello")
        wait_until(lambda: bool(spy.calls_of("nix-store", "--realise")), "the build runs")
        build = running_build(server.client)
        assert cancel(server.client, build).status == 403
        assert admin.get(f"/api/v1/builds/{build}/cancel").status == 405
        assert cancel(admin, build, {"Origin": "https://evil.example"}).status == 403
        # A page whose name resolves to this machine has the same origin.
        for host in ("evil.example", HOST):
            headers = {"Host": f"{host}:{port}", "Origin": f"http://{host}:{port}"}
            assert cancel(admin, build, headers).status == 403
        assert cancel(admin, build, {"Sec-Fetch-Site": "same-origin"}).status == 403
        assert waiting.is_running
        assert cancel(admin, build).status == 202
        assert "cancelled by the operator of the server" in waiting.result().error["message"]
    assert pull(server, "hello").result().status == 200
