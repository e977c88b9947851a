"""What the operator tells Nix through us."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from nixery.errors import SettingsError
from nixery.nix.sandbox import require_sandbox
from tests.integration.conftest import StartServer
from tests.support.nix import NixSpy, install_fake_nix
from tests.support.server import free_port, run_server


def test_options_reach_every_command(start_server: StartServer, spy: NixSpy) -> None:
    options = '--option builders-use-substitutes true --option extra-sandbox-paths "/a /b"'
    server = start_server(NIXERY_NIX_OPTIONS=options, **spy.environment())
    server.client.digest("hello")
    for command, word in (("nix-instantiate", "request"), ("nix-store", "--realise")):
        (call,) = spy.calls_of(command, word)
        assert "--option builders-use-substitutes true --option extra-sandbox-paths /a /b" in call


def test_an_evaluation_sees_nothing_of_our_environment(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "default.nix").write_text(
        """
        { system }: {
          hello = derivation {
            name = "hello-${builtins.getEnv "SECRET"}${if builtins.getEnv "PATH" != "" then "x" else ""}";
            inherit system;
            builder = "/bin/sh";
            args = [ "-c" ": > $out" ];
          };
        }
        """
    )
    server = start_server(NIXERY_PKGS_PATH=str(tmp_path / "set"), SECRET="hidden")  # noqa: S106 -- and none of anybody's
    (path,) = server.client.pull("hello").filesystem.store_paths
    assert path.endswith("-hello-x")


def test_what_an_evaluation_depends_on_is_asked_for_anew(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "default.nix").write_text("{ hello = import <found>; }")
    for number in ("one", "two"):
        (tmp_path / f"{number}.nix").write_text(
            f"""
            derivation {{
              name = "hello-{number}";
              system = builtins.currentSystem;
              builder = "/bin/sh";
              args = [ "-c" ": > $out" ];
            }}
            """
        )
    for number in ("one", "two"):
        search_path = f"found={tmp_path}/{number}.nix"
        server = start_server(NIXERY_PKGS_PATH=str(tmp_path / "set"), NIX_PATH=search_path)
        (path,) = server.client.pull("hello").filesystem.store_paths
        assert path.endswith(f"-hello-{number}")


def test_an_evaluation_is_bounded(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    # A list of 2^28 elements takes 2 GiB.
    large = "let double = n: l: if n == 0 then l else double (n - 1) (l ++ l); in double 28 [ 1 ]"
    (tmp_path / "set" / "default.nix").write_text(f"{{ large = builtins.deepSeq ({large}) 1; fine = 1; }}")
    client = start_server(NIXERY_PKGS_PATH=str(tmp_path / "set"), NIXERY_EVALUATION_MEMORY="1024").client
    response = client.manifest("large")
    assert response.status == 404
    assert "large (does not evaluate: out of memory)" in response.error["message"]
    assert client.manifest("fine").error["detail"]["packages"][0]["reason"] == "not a package"


def sandbox_problem() -> str | None:
    """Why this machine has no sandbox; ``None`` if it has."""
    try:
        require_sandbox(os.environ)
    except SettingsError as error:
        return str(error)
    return None


def test_a_sandbox_that_has_to_be_there(
    start_server: StartServer,
    spy: NixSpy,
    settings: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    problem = sandbox_problem()
    if problem:
        # A machine that has none: then a server that must not do without does not start, and says why.
        environment = {
            **settings,
            "PORT": str(free_port()),
            "NIXERY_STORAGE_BACKEND": "filesystem",
            "STORAGE_PATH": str(tmp_path / "storage"),
        }
        ended = run_server({**environment, "NIXERY_NIX_SANDBOX": "on"}, tmp_path)
        assert (ended.returncode, ended.stderr) == (2, f"nixery: {problem}\n")
        return
    server = start_server(NIXERY_NIX_SANDBOX="on", **spy.environment())
    assert '"in_effect": "on"' in server.log
    spy.forget()
    server.client.manifest("hello")
    (call,) = spy.calls_of("nix-store", "--realise")
    assert "--option sandbox true --option sandbox-fallback false" in call


def test_what_the_configuration_says_is_told(start_server: StartServer) -> None:
    server = start_server(NIX_CONFIG="sandbox = relaxed")
    assert '"in_effect": "relaxed"' in server.log


@pytest.mark.parametrize("script", ["exit 1", "echo /proc/version"])
def test_a_sandbox_that_does_not_work(settings: Mapping[str, str], tmp_path: Path, script: str) -> None:
    environment = {
        **settings,
        **install_fake_nix(tmp_path / "nix", script),
        "PORT": str(free_port()),
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(tmp_path / "storage"),
        "NIXERY_NIX_SANDBOX": "on",
    }
    ended = run_server(environment, tmp_path)
    assert ended.returncode == 2
    assert "NIXERY_NIX_SANDBOX is on, but the sandbox does not work here" in ended.stderr
