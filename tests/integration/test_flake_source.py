"""Packages from a flake."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.nix import NixSpy
from tests.support.pulled_image import PulledImage
from tests.support.repository import Repository
from tests.support.server import Server

FLAKE = """\
{
  outputs = { self }: {
    packages.x86_64-linux = self.escapes // { hello = (import ./default.nix { system = "x86_64-linux"; }).hello; };
    legacyPackages = builtins.listToAttrs (map (system: {
      name = system;
      value = { nested.other = (import ./default.nix { inherit system; }).other; hello = throw "packages win"; };
    }) [ "x86_64-linux" "aarch64-linux" ]);
    packages.aarch64-linux.hello = (import ./default.nix { system = "aarch64-linux"; }).hello;
    escapes = {
      variable = throw "found ${builtins.getEnv "HOME"}:";
      file = throw "found ${builtins.readFile "/etc/hostname"}.";
      tree = throw "found ${(builtins.fetchTree { type = "path"; path = "/etc"; }).outPath}.";
      time = throw "found ${toString builtins.currentTime}.";
    };
  };
}
"""


class FlakeRepository(Repository):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        (directory / "flake.nix").write_text(FLAKE)

    def write(self, version: str, outside: str = "/etc/hostname") -> None:
        super().write(version, outside)
        # Evaluated purely, there is no current system.
        path = self.directory / "default.nix"
        path.write_text(path.read_text().replace("builtins.currentSystem", '"x86_64-linux"'))


@pytest.fixture
def repository(tmp_path: Path) -> FlakeRepository:
    return FlakeRepository(tmp_path / "flake")


def version(image: PulledImage) -> str:
    return image.filesystem.read("share/version").decode().strip()


def server(start: StartServer, flake: str, **settings: str) -> Server:
    return start(NIXERY_PKGS_PATH=None, NIXERY_FLAKE=flake, **settings)


def test_what_tags_mean(start_server: StartServer, repository: FlakeRepository) -> None:
    one = repository.commit("1.0")
    repository.git("branch", "release")
    repository.git("checkout", "--quiet", "-b", "side")
    aside = repository.commit("1.5")
    repository.git("checkout", "--quiet", "main")
    two = repository.commit("2.0")
    for flake in (f"git+file://{repository.directory}", str(repository.directory)):
        client = server(start_server, flake).client
        for tag, expected in {
            "latest": "2.0",
            "main": "2.0",
            "release": "1.0",
            one: "1.0",
            two: "2.0",
        }.items():
            assert version(client.pull("hello", tag)) == expected
            assert version(client.pull("hello", aside)) == "1.5"
            revision = client.manifest("hello", tag).headers["nixery-revision"]
            assert revision == (one if expected == "1.0" else two)


def test_both_kinds_of_packages(start_server: StartServer, repository: FlakeRepository) -> None:
    repository.commit("1.0")
    client = server(start_server, f"git+file://{repository.directory}").client
    assert version(client.pull("nested.other")) == "1.0"
    assert version(client.pull("arm64/hello")) == "1.0"
    response = client.manifest("nosuch")
    assert response.status == 404
    assert "nosuch (missing)" in response.error["message"]


@pytest.mark.parametrize("tag", ["nosuch", "1" * 40])
def test_unknown_tags(start_server: StartServer, repository: FlakeRepository, tag: str) -> None:
    repository.commit("1.0")
    response = server(start_server, f"git+file://{repository.directory}").client.manifest("hello", tag)
    assert (response.status, response.error["code"]) == (404, "MANIFEST_UNKNOWN"), response
    assert tag in response.error["message"]


def test_a_worktree_with_changes(start_server: StartServer, repository: FlakeRepository) -> None:
    repository.commit("1.0")
    repository.write("1.1")
    client = server(start_server, str(repository.directory), NIXERY_PIN_TTL="0").client
    assert version(client.pull("hello")) == "1.1"
    repository.write("1.2")
    assert version(client.pull("hello")) == "1.2"


def test_a_directory_has_no_versions(
    start_server: StartServer, repository: FlakeRepository, tmp_path: Path
) -> None:
    repository.write("1.0")
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("flake.nix", "default.nix"):
        (plain / name).write_text((repository.directory / name).read_text())
    client = server(start_server, f"path:{plain}").client
    assert version(client.pull("hello")) == "1.0"
    response = client.manifest("hello", "main")
    assert response.status == 404
    assert "without versions" in response.error["message"]


def test_repeated_pulls_run_nothing(
    start_server: StartServer, repository: FlakeRepository, spy: NixSpy
) -> None:
    repository.commit("1.0")
    running = server(start_server, f"git+file://{repository.directory}", **spy.environment())
    digest = running.client.digest("hello")
    spy.forget()
    assert {running.client.digest("hello") for _ in range(50)} == {digest}
    assert spy.calls == []


@pytest.mark.parametrize("escape", ["variable", "file", "tree", "time"])
def test_an_evaluation_is_contained(
    start_server: StartServer, repository: FlakeRepository, escape: str
) -> None:
    repository.commit("1.0")
    response = server(start_server, f"git+file://{repository.directory}").client.manifest(escape)
    assert (response.status, response.error["code"]) == (404, "MANIFEST_UNKNOWN")
    message = response.error["message"]
    # A variable is empty, whatever it is outside.
    assert "found :" in message if escape == "variable" else "found" not in message


def test_a_flake_out_of_reach(start_server: StartServer) -> None:
    response = server(start_server, "git+http://user:secret@127.0.0.1:1/flake").client.manifest("hello")
    assert (response.status, response.error["code"]) == (503, "UNKNOWN")
    assert "secret" not in response.body.decode()
