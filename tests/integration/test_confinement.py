"""The probe of a builder's confinement, and how a server acts on it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nixery.nix.sandbox import BuilderProbe, Confinement
from tests.integration.conftest import StartServer
from tests.support.nix import NixSpy, install_fake_nix, wait_until
from tests.support.server import clean_environment, end_process, free_port, run_server

pytestmark = pytest.mark.security

# Of several `--option`s with one name, the last one wins.
_SANDBOXED = ("--option", "sandbox", "true", "--option", "sandbox-fallback", "false")
_WITH_A_SHELL = ("--option", "sandbox-paths", "/bin /lib /lib64? /usr")

# Brings up loopback, the only interface of a new network namespace, and executes a command.
_LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
os.execvp(sys.argv[1], sys.argv[1:])
"""

# The prefix of a command that no other machine can connect to, on any address.
_NO_NETWORK = (
    ("unshare", "--net", sys.executable, "-c", _LOOPBACK_UP)
    if os.geteuid() == 0
    else (
        *("unshare", "--user", "--map-current-user", "--net", "--keep-caps"),
        *(sys.executable, "-c", _LOOPBACK_UP, "setpriv", "--ambient-caps=-all", "--inh-caps=-all"),
    )
)

_ASK = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=20).read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""


def probed(settings: Mapping[str, str], directory: Path, *options: str) -> Confinement:
    with BuilderProbe(options, clean_environment(settings), directory) as probe:
        return probe.confinement()


def machine_has_a_sandbox(settings: Mapping[str, str], directory: Path) -> bool:
    return probed(settings, directory, *_SANDBOXED, *_WITH_A_SHELL).sandbox == "on"


@pytest.fixture
def serve(tmp_path: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of a server with valid settings."""
    return {
        **settings,
        "PORT": str(free_port()),
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(tmp_path / "storage"),
    }


@contextmanager
def in_network_namespace(environment: Mapping[str, str], directory: Path) -> Iterator[Path]:
    """Run a server on all addresses of its own network namespace; yield the file of its log."""
    output = directory / "log"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [*_NO_NETWORK, sys.executable, "-m", "nixery", "serve"],
            env=clean_environment({**environment, "NIXERY_HOST": "0.0.0.0"}),  # noqa: S104
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=directory,
        )
    (directory / "process").write_text(str(process.pid))
    try:
        wait_until(
            lambda: process.poll() is not None or b'"event": "listening"' in output.read_bytes(),
            "the server answers or exits",
            seconds=30,
        )
        yield output
    finally:
        end_process(process)
        sys.stdout.write(output.read_text())


def request_in_namespace(log: Path, url: str) -> str:
    """Send a request to a server in its own network namespace."""
    process = json.loads(log.with_name("process").read_text())
    enter = ["nsenter", f"--target={process}", "--net"]
    if os.geteuid() != 0:
        enter += ["--user", "--preserve-credentials"]
    return subprocess.run(
        [*enter, sys.executable, "-c", _ASK, url], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def builders_event(log: str) -> dict[str, Any]:
    """Return the only event about builders."""
    events: list[dict[str, Any]] = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (event,) = [event for event in events if event["event"] == "builders"]
    return event


def test_a_builder_without_sandbox(settings: Mapping[str, str], tmp_path: Path) -> None:
    found = probed(settings, tmp_path, "--option", "sandbox", "false", "--option", "build-users-group", "")
    assert found.sandbox == "off"
    # Root in a user namespace is the server's own user and has no more rights.
    assert found.user in {"root", "server"}
    assert found.owns_store
    assert found.reads_storage
    assert not found.is_safe


def test_a_builder_in_the_sandbox(settings: Mapping[str, str], tmp_path: Path) -> None:
    found = probed(settings, tmp_path, *_SANDBOXED, *_WITH_A_SHELL, "--option", "build-users-group", "")
    if found.sandbox == "unknown":
        # On a machine without a sandbox, the message is Nix's.
        assert found.reason
        assert not found.is_safe
        return
    assert found.sandbox == "on"
    assert not found.reads_storage
    # The builder keeps the user that entered the sandbox and owns the store.
    assert found.owns_store
    assert found.is_safe == (found.user != "root")


def test_a_sandbox_without_a_shell_gets_one(settings: Mapping[str, str], tmp_path: Path) -> None:
    if machine_has_a_sandbox(settings, tmp_path):
        assert probed(settings, tmp_path, *_SANDBOXED, "--option", "sandbox-paths", "").sandbox == "on"


def test_a_sandbox_that_packages_may_leave(settings: Mapping[str, str], tmp_path: Path) -> None:
    if machine_has_a_sandbox(settings, tmp_path):
        found = probed(settings, tmp_path, "--option", "sandbox", "relaxed", *_WITH_A_SHELL)
        assert found.sandbox == "optional"
        assert not found.is_safe


def test_a_sandbox_that_shows_the_storage(settings: Mapping[str, str], tmp_path: Path) -> None:
    if not machine_has_a_sandbox(settings, tmp_path):
        return
    paths = ("--option", "sandbox-paths", f"/bin /lib /lib64? /usr {tmp_path}")
    found = probed(settings, tmp_path, *_SANDBOXED, *paths, "--option", "build-users-group", "")
    assert found.reads_storage
    assert not found.is_safe


@pytest.mark.parametrize("script", ["exit 1", "echo /proc/version", "echo /does/not/exist", "echo 'pid=1'"])
def test_a_nix_that_cannot_build(settings: Mapping[str, str], tmp_path: Path, script: str) -> None:
    found = probed({**settings, **install_fake_nix(tmp_path / "nix", script)}, tmp_path)
    assert found.sandbox == "unknown"
    assert found.reason
    assert not found.is_safe


def test_nix_is_not_installed(settings: Mapping[str, str], tmp_path: Path) -> None:
    found = probed({**settings, "PATH": str(tmp_path)}, tmp_path)
    assert found.reason == "cannot run nix-build: No such file or directory"


def test_a_probe_leaves_nothing_behind(settings: Mapping[str, str], tmp_path: Path) -> None:
    hanging = install_fake_nix(tmp_path / "nix", f'echo $$ >> "{tmp_path}/started"\nexec sleep 60')
    (tmp_path / "own").mkdir()
    with BuilderProbe((), clean_environment({**settings, **hanging}), tmp_path / "own"):
        started = tmp_path / "started"
        wait_until(lambda: started.exists() and started.read_text().count("\n") == 2, "both builds")
    for process in (tmp_path / "started").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)
    assert list((tmp_path / "own").iterdir()) == []


def test_a_server_logs_the_confinement_of_builders(start_server: StartServer) -> None:
    event = builders_event(start_server(NIXERY_NIX_SANDBOX="off").log)
    assert event["level"] == "warning"
    assert event["sandbox"] == "off"
    assert event["reach"].startswith("builders run without a sandbox, as ")


def test_an_unusable_nix_is_reported_at_the_start(start_server: StartServer, tmp_path: Path) -> None:
    # As Nix 2.8 without its daemon: the error is not the last line.
    script = "printf 'error: out of order\\n(use --show-trace to show more)\\n' >&2; exit 1"
    log = start_server(**install_fake_nix(tmp_path / "nix", script)).log
    event = builders_event(log)
    assert (event["level"], event["sandbox"]) == ("warning", "unknown")
    assert event["reach"] == "it is unknown what a builder could reach: out of order"
    (unusable,) = [event for event in map(json.loads, log.splitlines()) if event["level"] == "error"]
    assert unusable["event"].startswith("cannot build with Nix: only stored images are served")
    assert unusable["reason"] == "out of order"


def test_a_network_is_not_served_with_unconfined_builders(serve: dict[str, str], tmp_path: Path) -> None:
    relaxed = {"NIX_CONFIG": "sandbox = false"}
    with in_network_namespace({**serve, **relaxed}, tmp_path) as log:
        (line,) = log.read_text().splitlines()
    assert line.startswith(
        "nixery: NIXERY_HOST=0.0.0.0 opens the server to other machines, but builders run without"
    )
    assert "NIXERY_NIX_SANDBOX=off" in line
    # The server left no directory behind.
    assert list((tmp_path / "storage" / "temporary").iterdir()) == []


def test_unconfined_builders_can_be_accepted(serve: dict[str, str], tmp_path: Path) -> None:
    with in_network_namespace({**serve, "NIXERY_NIX_SANDBOX": "off"}, tmp_path) as log:
        text = log.read_text()
    assert builders_event(text)["level"] == "warning"
    assert '"event": "listening"' in text


def test_a_network_is_served_before_nix_can_be_used_but_nothing_is_built(
    serve: dict[str, str], spy: NixSpy, tmp_path: Path
) -> None:
    # One of Nix's programs is broken, so the confinement of builders is unknown.
    (spy.directory / "nix-build").write_text("#!/bin/sh\nexit 1\n")
    with in_network_namespace({**serve, **spy.environment()}, tmp_path) as log:
        assert builders_event(log.read_text())["sandbox"] == "unknown"
        answer = request_in_namespace(log, f"http://127.0.0.1:{serve['PORT']}/v2/hello/manifests/latest")
    assert "builders are not known to be confined" in answer
    assert spy.calls_of("nix-instantiate", "request")
    assert spy.calls_of("nix-store", "--realise") == []


_READS_WHAT_IT_BUILDS = """
{ system, ... }:
let
  built = derivation {
    name = "@salt@";
    inherit system;
    builder = "/bin/sh";
    args = [ "-c" "echo built > $out" ];
  };
in
{ ${builtins.substring 0 5 (builtins.readFile built)} = { }; }
"""


def test_the_package_index_builds_nothing_before_the_confinement_is_known(
    serve: dict[str, str], spy: NixSpy, tmp_path: Path
) -> None:
    (spy.directory / "nix-build").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "set").mkdir()
    text = _READS_WHAT_IT_BUILDS.replace("@salt@", f"nixery-test-{secrets.token_hex(8)}")
    (tmp_path / "set" / "default.nix").write_text(text)
    environment = {**serve, **spy.environment(), "NIXERY_ALLOW_IFD": "true"}
    environment["NIXERY_PKGS_PATH"] = str(tmp_path / "set")
    with in_network_namespace(environment, tmp_path) as log:
        wait_until(lambda: b"package set not indexed" in log.read_bytes(), "the index gives up", 30)
    assert "builders are not known to be confined" in log.read_text()
    assert spy.calls_of("nix-instantiate", "request") == []


def test_a_required_sandbox(
    start_server: StartServer, spy: NixSpy, serve: dict[str, str], tmp_path: Path
) -> None:
    found = probed(serve, tmp_path, *_SANDBOXED)
    if found.sandbox != "on":
        # On a machine without a sandbox, a server that requires one does not start, and says why.
        ended = run_server({**serve, "NIXERY_NIX_SANDBOX": "on"}, tmp_path)
        assert ended.returncode == 2
        assert ended.stderr.startswith(
            "nixery: NIXERY_NIX_SANDBOX is on, but the sandbox does not work here: "
        )
        return
    server = start_server(NIXERY_NIX_SANDBOX="on", **spy.environment())
    assert builders_event(server.log)["sandbox"] == "on"
    spy.forget()
    server.client.manifest("hello")
    (call,) = spy.calls_of("nix-store", "--realise")
    assert "--option sandbox true --option sandbox-fallback false" in call


@pytest.mark.parametrize("script", ["exit 1", "echo /proc/version"])
def test_a_sandbox_that_does_not_work(serve: dict[str, str], tmp_path: Path, script: str) -> None:
    fake = install_fake_nix(tmp_path / "nix", script)
    ended = run_server({**serve, **fake, "NIXERY_NIX_SANDBOX": "on"}, tmp_path)
    assert ended.returncode == 2
    assert "NIXERY_NIX_SANDBOX is on, but the sandbox does not work here" in ended.stderr


def test_import_from_derivation_builds_in_the_sandbox_as_well(
    start_server: StartServer, spy: NixSpy, settings: Mapping[str, str], tmp_path: Path
) -> None:
    if not machine_has_a_sandbox(settings, tmp_path):
        return
    server = start_server(
        NIXERY_NIX_SANDBOX="on",
        NIXERY_ALLOW_IFD="true",
        NIX_CONFIG="sandbox-paths = /bin /lib /lib64? /usr",
        **spy.environment(),
    )
    server.client.manifest("hello")
    (call,) = spy.calls_of("nix-instantiate", "request")
    assert "--option sandbox true --option sandbox-fallback false" in call


def test_a_detected_sandbox_is_enforced(
    start_server: StartServer, spy: NixSpy, settings: Mapping[str, str], tmp_path: Path
) -> None:
    if not machine_has_a_sandbox(settings, tmp_path):
        return
    # With a fallback, Nix would build without the sandbox once the machine has no namespaces left.
    fallback = "sandbox = true\nsandbox-fallback = true\nsandbox-paths = /bin /lib /lib64? /usr"
    server = start_server(NIX_CONFIG=fallback, **spy.environment())
    server.client.manifest("hello")
    (call,) = spy.calls_of("nix-store", "--realise")
    assert "--option sandbox true --option sandbox-fallback false" in call


_TRIES = """
{ system, ... }:
let
  make = name: script: extra: derivation ({
    inherit name system;
    builder = "/bin/sh";
    args = [ "-c" script ];
    PATH = "/usr/bin:/bin";
  } // extra);
  given = make "given" "mkdir -p $out/share; echo @salt@ > $out/share/given" { };
  tries = make "tries" ''
    mkdir -p $out/share
    chmod -R u+w $given 2>/dev/null && echo changed >> $given/share/given && echo changed >> $out/share/result
    cat @storage@/probe >/dev/null 2>&1 && echo read >> $out/share/result
    echo x 2>/dev/null > @storage@/written && echo written >> $out/share/result
    echo done >> $out/share/result
  '' { inherit given; };
in
{ inherit tries; }
"""


def test_builders_cannot_change_their_inputs(start_server: StartServer, tmp_path: Path, salt: str) -> None:
    storage = tmp_path / "storage"
    (tmp_path / "set").mkdir()
    text = _TRIES.replace("@salt@", salt).replace("@storage@", str(storage))
    (tmp_path / "set" / "default.nix").write_text(text)
    server = start_server(NIXERY_PKGS_PATH=str(tmp_path / "set"))
    (storage / "probe").write_text("of the server")
    (storage / "probe").chmod(0o600)
    found = builders_event(server.log)
    filesystem = server.client.pull("tries").filesystem
    result = set(filesystem.read("share/result").decode().split())
    if found["user"] == "own":
        assert result == {"done"}
    elif found["sandbox"] == "on":
        # The warning says so.
        assert result == {"changed", "done"}
    else:
        assert result == {"changed", "read", "written", "done"}


def test_a_server_can_be_stopped_while_it_waits_for_a_builder(serve: dict[str, str], tmp_path: Path) -> None:
    hanging = install_fake_nix(tmp_path / "nix", f'echo $$ >> "{tmp_path}/started"\nexec sleep 60')
    process = subprocess.Popen(
        [sys.executable, "-m", "nixery", "serve"],
        env=clean_environment({**serve, **hanging}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    try:
        wait_until((tmp_path / "started").exists, "a build")
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        end_process(process)


def test_a_server_on_a_network_shows_details_to_operators_only(serve: dict[str, str], tmp_path: Path) -> None:
    with in_network_namespace({**serve, "NIXERY_NIX_SANDBOX": "off"}, tmp_path) as log:
        url = f"http://127.0.0.1:{serve['PORT']}"
        assert json.loads(request_in_namespace(log, f"{url}/healthz")) == {"status": "ok"}
        assert json.loads(request_in_namespace(log, f"{url}/readyz")) == {"status": "ready"}
        assert "nixery_http_requests_total" not in request_in_namespace(log, f"{url}/metrics")
