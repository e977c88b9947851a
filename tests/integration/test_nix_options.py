"""Nix options that the operator sets for the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.nix import NixSpy

pytestmark = pytest.mark.security


def test_options_reach_every_command(start_server: StartServer, spy: NixSpy) -> None:
    options = '--option builders-use-substitutes true --option extra-sandbox-paths "/a /b"'
    server = start_server(NIXERY_NIX_OPTIONS=options, **spy.environment())
    server.client.digest("hello")
    for command, word in (("nix-instantiate", "request"), ("nix-store", "--realise")):
        (call,) = spy.calls_of(command, word)
        assert "--option builders-use-substitutes true --option extra-sandbox-paths /a /b" in call


def test_an_evaluation_does_not_see_the_environment_of_the_server(
    start_server: StartServer, tmp_path: Path
) -> None:
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
    server = start_server(NIXERY_PKGS_PATH=str(tmp_path / "set"), SECRET="hidden")  # noqa: S106 -- made up
    (path,) = server.client.pull("hello").filesystem.store_paths
    assert path.endswith("-hello-x")


def test_a_changed_search_path_is_evaluated_again(start_server: StartServer, tmp_path: Path) -> None:
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
