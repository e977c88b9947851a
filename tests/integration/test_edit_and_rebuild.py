"""``nixery build`` after an edit: the image of the current files, as with an empty storage."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine

# A set beside an application and other Nix files, as in a repository with both. Each file is one word.
SET = """{ ... }:
let
  package = name: text: derivation {
    inherit name text;
    system = "SYSTEM";
    builder = "/bin/sh";
    args = [ "-c" "mkdir $out; echo $text > $out/text" ];
    PATH = "/usr/bin:/bin";
  };
  files = directory: builtins.path { path = directory; name = "files"; };
in
{
  inside = package "inside" "${files ./app}";
  imported = package "imported" (import ./version.nix);
  listed = package "listed" (toString (builtins.attrNames (builtins.readDir ./app)));
  beside = package "beside" "${files ../app}";
  above = package "above" (import ../version.nix);
  linked = package "linked" "${files ./linked}";
  tracked = package "tracked" "${builtins.fetchGit ../.}";
}
"""

FLAKE = "{ outputs = { self }: { packages.SYSTEM = import ./set { }; }; }"


class Workspace:
    """A directory with a package set, and the command."""

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        self.directory = directory
        self._settings = {name: value for name, value in settings.items() if name != "NIXERY_PKGS_PATH"}
        self._built = 0
        found = subprocess.run(
            ["nix-instantiate", "--eval", "--expr", "builtins.currentSystem"],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        self._system = found.stdout.strip().strip('"')
        for place in ("set/app", "app", "shared"):
            (directory / place).mkdir(parents=True)
            self.write(f"{place}/main", "one")
        self.write("set/default.nix", SET)
        self.write("set/version.nix", '"one"')
        self.write("version.nix", '"one"')
        (directory / "set" / "linked").symlink_to("../shared")
        self.write("image.nix", "{ pkgs }: [ pkgs.inside (import ./part.nix { inherit pkgs; }) ]")
        self.write("part.nix", "{ pkgs }: pkgs.beside")

    def write(self, name: str, content: str) -> None:
        place = self.directory / name
        place.write_text(content.replace("SYSTEM", self._system))

    def git(self, *arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *arguments], cwd=self.directory, check=True, timeout=60)

    def commit(self) -> None:
        if not (self.directory / ".git").exists():
            self.git("init", "--quiet", "--initial-branch=main")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=x")

    def build(self, *arguments: str, storage: str = "storage", **source: str) -> str:
        source = source or {"NIXERY_PKGS_PATH": "set"}
        settings = {**self._settings, **source, "STORAGE_PATH": str(self.directory.parent / storage)}
        command = CommandLine(settings, self.directory)
        return command("build", "--quiet", *arguments).stdout

    def build_anew(self, *arguments: str, **source: str) -> str:
        self._built += 1
        return self.build(*arguments, storage=f"empty-{self._built}", **source)


@pytest.fixture
def workspace(settings: Mapping[str, str], tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace", settings)


def edit_unseen(workspace: Workspace, name: str) -> None:
    """Change a file without changing its size or its time stamp."""
    file = workspace.directory / name
    before = file.stat()
    file.write_text(file.read_text().replace("one", "two"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def rename(workspace: Workspace, name: str) -> None:
    file = workspace.directory / name
    file.rename(file.with_name("renamed"))


def make_executable(workspace: Workspace, name: str) -> None:
    (workspace.directory / name).chmod(0o755)


def redirect(workspace: Workspace, name: str) -> None:
    shutil.copytree(workspace.directory / "shared", workspace.directory / "other")
    edit_unseen(workspace, "other/main")
    (workspace.directory / name).unlink()
    (workspace.directory / name).symlink_to("../other")


def add_to_git(workspace: Workspace, name: str) -> None:
    (workspace.directory / name).write_text("new")
    workspace.git("add", name)


EDITS: Mapping[str, tuple[list[str], Callable[[Workspace, str], None], str]] = {
    "a file of the set": (["inside"], edit_unseen, "set/app/main"),
    "a name in the set": (["listed"], rename, "set/app/main"),
    "an import of the set": (["imported"], edit_unseen, "set/version.nix"),
    "a file beside the set": (["beside"], edit_unseen, "app/main"),
    "a mode beside the set": (["beside"], make_executable, "app/main"),
    "an import of a file above": (["above"], edit_unseen, "version.nix"),
    "a symlink in the set": (["linked"], redirect, "set/linked"),
    "git's index": (["tracked"], add_to_git, "new"),
    "a file that a file imports": (["--file", "image.nix"], edit_unseen, "app/main"),
    "a file that an expression imports": (
        ["--expr", "import ./image.nix { inherit pkgs; }"],
        edit_unseen,
        "app/main",
    ),
}


@pytest.mark.parametrize(("arguments", "edit", "name"), EDITS.values(), ids=EDITS)
def test_an_edit_of_a_directory_is_in_the_next_image(
    workspace: Workspace, arguments: list[str], edit: Callable[[Workspace, str], None], name: str
) -> None:
    workspace.commit()
    before = workspace.build(*arguments)
    edit(workspace, name)
    after = workspace.build(*arguments)
    assert after != before
    assert after == workspace.build_anew(*arguments)


def test_a_checkout_of_an_earlier_commit_has_its_image_again(workspace: Workspace) -> None:
    workspace.commit()
    first = workspace.build("beside")
    edit_unseen(workspace, "app/main")
    workspace.commit()
    assert workspace.build("beside") != first
    workspace.git("checkout", "--quiet", "HEAD~1")
    assert workspace.build("beside") == first


@pytest.mark.parametrize("source", ["NIXERY_PKGS_REPO=file://{}", "NIXERY_FLAKE=git+file://{}"])
def test_a_commit_to_a_repository_on_this_machine_is_in_the_next_image(
    workspace: Workspace, source: str
) -> None:
    name, _, value = source.partition("=")
    settings = {name: value.format(workspace.directory)}
    workspace.write("default.nix", "import ./set")
    workspace.write("flake.nix", FLAKE)
    workspace.commit()
    before = workspace.build("inside:main", **settings)
    edit_unseen(workspace, "set/app/main")
    workspace.commit()
    after = workspace.build("inside:main", **settings)
    assert after != before
    assert after == workspace.build_anew("inside:main", **settings)


def test_an_edit_of_a_flake_without_git_is_in_the_next_image(workspace: Workspace) -> None:
    workspace.write("flake.nix", FLAKE)
    flake = {"NIXERY_FLAKE": f"path:{workspace.directory}"}
    first = workspace.build("inside", **flake)
    edit_unseen(workspace, "set/app/main")
    assert workspace.build("inside", **flake) != first
    # Time stamps are those of this machine: they are in no image.
    workspace.write("set/app/main", "one")
    (workspace.directory / "flake.nix").touch()
    assert workspace.build("inside", **flake) == first


def test_a_broken_flake_is_an_error_instead_of_its_last_image(workspace: Workspace) -> None:
    workspace.write("flake.nix", FLAKE)
    settings = {"NIXERY_FLAKE": f"path:{workspace.directory}"}
    workspace.build("inside", **settings)
    workspace.write("flake.nix", "{ outputs = { self }: ")
    with pytest.raises(AssertionError, match="syntax error"):
        workspace.build("inside", **settings)
