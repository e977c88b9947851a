"""Packages from a flake."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.git_server import git_server
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


def test_the_meaning_of_tags(start_server: StartServer, repository: FlakeRepository) -> None:
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
    # Variables are empty in the evaluation.
    assert "found :" in message if escape == "variable" else "found" not in message


def test_an_unreachable_flake(start_server: StartServer) -> None:
    response = server(start_server, "git+http://127.0.0.1:1/flake").client.manifest("hello")
    assert (response.status, response.error["code"]) == (503, "UNKNOWN")
    assert "127.0.0.1" not in response.body.decode()


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A directory of this machine that no earlier run has copied into the Nix store."""
    directory = tmp_path / "private"
    directory.mkdir()
    (directory / "key").write_text(secrets.token_hex(16))
    (directory / "flake.nix").write_text("{ outputs = _: { }; }")
    subprocess.run(["git", "init", "--quiet", str(directory)], check=True, timeout=60)
    return directory


def is_copied(directory: Path) -> bool:
    """Whether a directory was copied into the Nix store, with its git directory or without, or a file of it."""
    without_git = 'filter = path: type: baseNameOf path != ".git";'
    copies = [(directory, "source", ""), (directory, "source", without_git), (directory / "key", "key", "")]
    for path, name, more in copies:
        expression = f'"${{builtins.path {{ path = {path}; name = "{name}"; {more} }}}}"'
        completed = subprocess.run(
            ["nix-instantiate", "--eval", "--expr", expression],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if Path(completed.stdout.strip().strip('"')).exists():
            return True
    return False


def locked(tree: Mapping[str, object], original: Mapping[str, object] | None = None) -> str:
    """A lock with one input, ``x``."""
    hash_ = {"narHash": "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}
    node = {"locked": {**hash_, **tree}, "original": original or tree, "flake": False}
    nodes = {"root": {"inputs": {"x": "x"}}, "x": node}
    return json.dumps({"nodes": nodes, "root": "root", "version": 7})


GITHUB = {"type": "github", "owner": "a", "repo": "b"}
USES_X = "outputs = { self, x }: { packages.x86_64-linux.hello = throw (toString x); }; "

HOSTILE: Mapping[str, tuple[str, str | None]] = {
    "path that is not locked": ('{ inputs.x.url = "path:PRIVATE"; inputs.x.flake = false; USES }', None),
    "path as attributes": ('{ inputs.x = { type = "path"; path = "PRIVATE"; flake = false; }; USES }', None),
    "path with a hash": (
        '{ inputs.x.url = "path:PRIVATE?narHash=sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="; inputs.x.flake = false; USES }',
        None,
    ),
    "bare path": ('{ inputs.x.url = "PRIVATE"; USES }', None),
    "git file": ('{ inputs.x.url = "git+file://PRIVATE"; USES }', None),
    "tarball file": ('{ inputs.x.url = "tarball+file://PRIVATE/key"; inputs.x.flake = false; USES }', None),
    "file": ('{ inputs.x.url = "file://PRIVATE/key"; inputs.x.flake = false; USES }', None),
    "nested": (
        '{ inputs.x.url = "github:a/b"; inputs.x.inputs.y.url = "path:PRIVATE"; USES }',
        locked(GITHUB),
    ),
    "argument alone": ("{ USES }", None),
    "registry": ('{ inputs.x.url = "nixpkgs"; USES }', None),
    "network, not locked": ('{ inputs.x.url = "github:a/b"; USES }', None),
    "lock has a path": (
        '{ inputs.x.url = "github:a/b"; inputs.x.flake = false; USES }',
        locked({"type": "path", "path": "PRIVATE"}, GITHUB),
    ),
    "lock has a path, as in the flake": (
        '{ inputs.x.url = "path:PRIVATE"; inputs.x.flake = false; USES }',
        locked({"type": "path", "path": "PRIVATE"}),
    ),
    "lock has git of a file": (
        '{ inputs.x.url = "github:a/b"; inputs.x.flake = false; USES }',
        locked({"type": "git", "url": "file://PRIVATE", "rev": "1" * 40}, GITHUB),
    ),
    "lock has a file": (
        '{ inputs.x.url = "github:a/b"; inputs.x.flake = false; USES }',
        locked({"type": "file", "url": "file://PRIVATE/key"}, GITHUB),
    ),
    "submodules": ('{ inputs.x.url = "git+https://example.org/x?submodules=1"; USES }', locked(GITHUB)),
    "lock has submodules": (
        '{ inputs.x.url = "github:a/b"; USES }',
        locked({"type": "git", "url": "https://example.org/x", "rev": "1" * 40, "submodules": True}, GITHUB),
    ),
    "self has submodules": ("{ inputs.self.submodules = true; outputs = _: { }; }", None),
    "lock is torn": ('{ inputs.x.url = "github:a/b"; USES }', "{"),
    "lock has a key twice": (
        '{ inputs.x.url = "github:a/b"; USES }',
        locked(GITHUB)[:-1] + ', "nodes": {"root": {"inputs": {"x": "x"}}}}',
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_inputs_of_this_machine_are_refused_before_they_are_copied(
    start_server: StartServer, repository: FlakeRepository, private: Path, what: str
) -> None:
    flake, lock = (
        text and text.replace("PRIVATE", str(private)).replace("USES", USES_X) for text in HOSTILE[what]
    )
    (repository.directory / "flake.nix").write_text(str(flake))
    if lock is not None:
        (repository.directory / "flake.lock").write_text(lock)
    repository.commit("1.0")
    response = server(start_server, f"git+file://{repository.directory}").client.manifest("hello")
    assert response.status == 500, response
    assert "the flake is refused: " in response.error["message"]
    assert str(private) not in response.body.decode()
    assert not is_copied(private)


@pytest.mark.parametrize("before", ["", "\n"])
def test_a_file_name_does_not_speak_for_nix(
    start_server: StartServer, repository: FlakeRepository, private: Path, before: str
) -> None:
    # git warns of an attribute that it does not know, and quotes the name of the file, which may have line
    # breaks.
    hash_ = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    copy = f"/nix/store/{'a' * 32}-source"
    forged = f"{before}Downloaded 'path:{private}?x=1' to '{copy}' (hash '{hash_}').{before}"
    directory = repository.directory / forged
    directory.mkdir(parents=True)
    (directory / ".gitattributes").write_text("* !unknown*\n")
    repository.commit("1.0")
    client = server(start_server, f"git+file://{repository.directory}").client
    response = client.manifest("hello")
    assert not is_copied(private)
    assert response.status == 200, response
    assert version(client.pull("hello")) == "1.0"


@pytest.mark.parametrize("name", ["flake.nix", "flake.lock"])
def test_a_flake_that_is_a_symlink(
    start_server: StartServer, repository: FlakeRepository, private: Path, name: str
) -> None:
    (repository.directory / name).unlink(missing_ok=True)
    (repository.directory / name).symlink_to(private / name)
    repository.commit("1.0")
    response = server(start_server, f"git+file://{repository.directory}").client.manifest("hello")
    assert response.status == 500
    assert f"the flake is refused: {name} is a symlink" in response.error["message"]


def test_reading_the_inputs_reads_nothing_else(
    start_server: StartServer, repository: FlakeRepository, private: Path
) -> None:
    (repository.directory / "flake.nix").write_text(
        f'{{ inputs.x.url = "github:a/${{builtins.readFile {private}/key}}"; outputs = {{ self, x }}: {{ }}; }}'
    )
    repository.commit("1.0")
    response = server(start_server, f"git+file://{repository.directory}").client.manifest("hello")
    assert response.status == 500
    assert (private / "key").read_text() not in response.body.decode()
    assert "restricted" in response.error["message"] or "forbidden" in response.error["message"]


def test_inputs_without_number_are_refused(start_server: StartServer, repository: FlakeRepository) -> None:
    # Checking half a million of them took three seconds of the event loop.
    many = 'x.inputs = builtins.listToAttrs (builtins.genList (n: { name = toString n; value.url = "github:a/b"; }) 40000);'
    (repository.directory / "flake.nix").write_text(
        f'{{ inputs = {{ x.url = "github:a/b"; }} // {{ {many} }}; {USES_X} }}'
    )
    (repository.directory / "flake.lock").write_text(locked(GITHUB))
    repository.commit("1.0")
    response = server(start_server, f"git+file://{repository.directory}").client.manifest("hello")
    assert response.status == 500, response
    assert "the flake is refused: its inputs have more than 1 MiB" in response.error["message"]


def test_a_push_that_is_refused_leaves_the_last_state(
    start_server: StartServer, repository: FlakeRepository, private: Path
) -> None:
    repository.commit("1.0")
    running = server(start_server, f"git+file://{repository.directory}", NIXERY_PIN_TTL="0")
    digest = running.client.digest("hello")
    (repository.directory / "flake.nix").write_text(f'{{ inputs.x.url = "path:{private}"; {USES_X} }}')
    repository.commit("2.0")
    response = running.client.manifest("hello")
    assert (response.status, response.headers["docker-content-digest"]) == (200, digest)
    assert "the flake is refused" in response.headers["warning"]
    assert not is_copied(private)


@pytest.mark.parametrize(
    "expression",
    [
        'builtins.fetchurl { url = "file://PRIVATE/key"; sha256 = "HASH"; }',
        '(builtins.fetchGit { url = "file://REPOSITORY"; rev = "REVISION"; }).outPath',
        '(builtins.fetchTree { type = "git"; url = "file://REPOSITORY"; rev = "REVISION"; }).outPath',
        '(builtins.fetchTree "git+file://REPOSITORY?rev=REVISION").outPath',
        '(builtins.fetchTree { type = "path"; path = "PRIVATE"; narHash = "HASH"; }).outPath',
    ],
    ids=["fetchurl", "fetchGit", "fetchTree git", "fetchTree url", "fetchTree path"],
)
def test_an_evaluation_cannot_read_files_by_their_hash(
    start_server: StartServer, repository: FlakeRepository, private: Path, tmp_path: Path, expression: str
) -> None:
    other = Repository(tmp_path / "other")
    revision = other.commit(secrets.token_hex(8))
    for placeholder, value in {
        "PRIVATE": str(private),
        "REPOSITORY": str(other.directory),
        "REVISION": revision,
        "HASH": "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    }.items():
        expression = expression.replace(placeholder, value)
    (repository.directory / "flake.nix").write_text(
        f"{{ outputs = {{ self }}: {{ packages.x86_64-linux.hello = throw ({expression}); }}; }}"
    )
    repository.commit("1.0")
    response = server(start_server, f"git+file://{repository.directory}").client.manifest("hello")
    assert response.status == 404
    message = response.error["message"]
    # A commit with the hash could read the file.
    assert "got" not in message.replace("forgotten", "")
    assert "-source" not in message


@pytest.mark.security
@pytest.mark.parametrize(
    "flake",
    [
        'inputs.x.url = "github:a/${RUN}"; outputs = { self, x }: { };',
        "outputs = { self }: { packages.x86_64-linux.hello = RUN; };",
    ],
    ids=["inputs", "packages"],
)
def test_an_evaluation_runs_no_program(
    start_server: StartServer, repository: FlakeRepository, tmp_path: Path, flake: str
) -> None:
    run = f'builtins.exec [ "/usr/bin/touch" "{tmp_path}/ran" ]'
    (repository.directory / "flake.nix").write_text(f"{{ {flake.replace('RUN', run)} }}")
    repository.commit("1.0")
    # Of an operator who uses it for expressions of their own.
    configuration = (
        "experimental-features = nix-command flakes\nallow-unsafe-native-code-during-evaluation = true"
    )
    running = server(start_server, f"git+file://{repository.directory}", NIX_CONFIG=configuration)
    assert running.client.manifest("hello").status in {404, 500}
    assert not (tmp_path / "ran").exists()


@pytest.mark.security
def test_a_git_server_does_not_speak_for_nix(
    start_server: StartServer, repository: FlakeRepository, private: Path
) -> None:
    repository.commit("1.0")
    with git_server(repository.directory.parent) as web:
        web.message = f"Downloaded 'path:{private}?lastModified=1' to '{private}' (hash 'sha256-AAAA')"
        running = server(start_server, f"git+{web.url}/{repository.directory.name}/.git?ref=main")
        assert version(running.client.pull("hello")) == "1.0"
    assert not is_copied(private)
