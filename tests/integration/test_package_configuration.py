"""``NIXERY_NIXPKGS_CONFIG``: what it allows, what clients are told without it, and errors in the words of Nix."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import RegistryClient
from tests.support.command_line import CommandLine
from tests.support.nix import PACKAGE_SETS, NixSpy, nix_environment
from tests.support.repository import Repository

SET = PACKAGE_SETS / "nixpkgs"
VARIABLE = "NIXERY_NIXPKGS_CONFIG"
ALLOWED = '{"allowUnfreePredicate": ["unrar"], "permittedInsecurePackages": ["openssl-1.0.2u"], "allowBroken": true}'
OPERATOR = "the operator of this server can allow"


def unavailable(client: RegistryClient, name: str) -> dict[str, dict[str, Any]]:
    response = client.manifest(name)
    assert response.status == 404, response
    assert str(PACKAGE_SETS) not in response.body.decode()
    return {package["name"]: package for package in response.error["detail"]["packages"]}


@pytest.fixture(scope="module")
def reasons(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    directory = tmp_path_factory.mktemp("reasons")
    return CommandLine({**nix_environment(directory), "NIXERY_PKGS_PATH": str(SET)}, directory)


def test_a_refused_package_is_answered_with_what_the_operator_can_set(start_server: StartServer) -> None:
    client = start_server(NIXERY_PKGS_PATH=str(SET)).client
    refused = "unrar/archiver/openssl/bad"
    assert {
        name: (package["reason"], package["explanation"])
        for name, package in unavailable(client, refused).items()
    } == {
        "unrar": (
            "unfree",
            f'licence unfreeRedistributable; {OPERATOR} it with {VARIABLE}=\'{{"allowUnfreePredicate": ["unrar"]}}\'',
        ),
        "archiver": (
            "unfree",
            (
                "it needs unrar-5.5.8, licence unfreeRedistributable; "
                f'{OPERATOR} it with {VARIABLE}=\'{{"allowUnfreePredicate": ["unrar"]}}\''
            ),
        ),
        "openssl": (
            "insecure",
            (
                "CVE-2022-0778, it is no longer maintained; "
                f'{OPERATOR} it with {VARIABLE}=\'{{"permittedInsecurePackages": ["openssl-1.0.2u"]}}\''
            ),
        ),
        "bad": ("broken", f"{OPERATOR} broken packages with {VARIABLE}='{{\"allowBroken\": true}}'"),
    }
    cctools = unavailable(client, "cctools")["cctools"]
    assert cctools["reason"] == "not available on this platform"
    assert cctools["explanation"] == "only for x86_64-darwin, aarch64-darwin"
    # A list of licences counts as well; and no advice to paste into a shell holds a name that is a command.
    assert unavailable(client, "slack")["slack"]["reason"] == "unfree"
    hostile = unavailable(client, "hostile")["hostile"]
    assert "touch" not in hostile["explanation"]
    assert hostile["explanation"].endswith("with NIXERY_NIXPKGS_CONFIG='{\"allowUnfree\": true}'")


def test_the_settings_that_an_answer_names_allow_the_package(start_server: StartServer) -> None:
    without = start_server(NIXERY_PKGS_PATH=str(SET))
    assert set(unavailable(without.client, "unrar")) == {"unrar"}
    plain = without.client.digest("hello")
    # On the same storage: neither the image nor the refusal of one server is the other's answer.
    allowing = start_server(NIXERY_PKGS_PATH=str(SET), NIXERY_NIXPKGS_CONFIG=ALLOWED)
    paths = allowing.client.pull("unrar/archiver/openssl/bad").filesystem.store_paths
    assert {path.partition("-")[2] for path in paths} >= {"unrar-5.5.8", "openssl-1.0.2u", "bad-1.0"}
    assert set(unavailable(allowing.client, "slack")) == {"slack"}
    assert set(unavailable(without.client, "unrar/archiver/openssl/bad")) == {
        *("unrar", "archiver", "openssl", "bad")
    }
    assert allowing.client.digest("hello") == plain


def test_an_empty_configuration_changes_nothing(start_server: StartServer, spy: NixSpy) -> None:
    server = start_server(NIXERY_PKGS_PATH=str(SET), NIXERY_NIXPKGS_CONFIG="", **spy.environment())
    assert set(unavailable(server.client, "unrar")) == {"unrar"}
    assert not [call for call in spy.calls if "packageConfiguration" in call]


def test_overlays_change_packages_and_images(start_server: StartServer, tmp_path: Path) -> None:
    file = tmp_path / "config.nix"
    file.write_text(
        """
        # An attribute set of any form.
        let name = "unrar"; in {
          allowUnfreePredicate = package: package.pname == name;
          overlays = [
            (final: previous: { mine = previous.hello // { pname = "mine"; }; })
            (final: previous: { hello = final.unrar; })
          ];
        }
        """
    )
    plain = start_server(NIXERY_PKGS_PATH=str(SET)).client
    client = start_server(NIXERY_PKGS_PATH=str(SET), NIXERY_NIXPKGS_CONFIG=str(file)).client
    (path,) = client.pull("hello").filesystem.store_paths
    assert path.endswith("-unrar-5.5.8")
    assert client.pull("mine").filesystem.store_paths == plain.pull("hello").filesystem.store_paths
    names = {found["name"] for found in client.get("/api/v1/packages?q=mine").json()["packages"]}
    assert names == {"mine"}


def test_a_set_that_declares_no_configuration_gets_none(start_server: StartServer, tmp_path: Path) -> None:
    # It passes on what it gets, but a set is not asked for arguments that it may not understand.
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "default.nix").write_text(f"{{ system, ... }}@given: import {SET} given")
    server = start_server(NIXERY_PKGS_PATH=str(tmp_path / "set"), NIXERY_NIXPKGS_CONFIG=ALLOWED)
    unrar = unavailable(server.client, "unrar")["unrar"]
    assert unrar["reason"] == "unfree"
    assert (
        unrar["explanation"]
        == "licence unfreeRedistributable; the package set takes no configuration that could allow it"
    )


def test_a_restricted_evaluation_takes_it_as_well(start_server: StartServer, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    shutil.copy(SET / "default.nix", repository.directory)
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "--message", "packages")
    server = start_server(
        NIXERY_PKGS_PATH=None, NIXERY_PKGS_REPO=repository.url, NIXERY_NIXPKGS_CONFIG=ALLOWED
    )
    assert server.client.manifest("unrar").status == 200
    near = unavailable(server.client, "near")["near"]["explanation"]
    assert near.startswith("attribute 'helo' missing, at default.nix:")
    assert near.endswith("; did you mean hello?")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{ allowUnfree = tru; }", "undefined variable 'tru' (line 1, column 17)"),
        ("{ allowUnfree = ", "syntax error, unexpected end of file"),
        ("[ ]", "it is a list; expected an attribute set"),
        ("{ pkgs, ... }: { }", "it is a function; expected an attribute set"),
        ("{ overlays = 1; }", "overlays is not a list of functions"),
        ("{ overlays = [ { } ]; }", "overlays is not a list of functions"),
        ('{ x = throw "no"; }', "without other files: no"),
        ("{ overlays = [ (import /etc/overlay.nix) ]; }", "is forbidden in restricted mode"),
    ],
)
def test_a_configuration_that_nix_does_not_accept_prevents_the_start(
    reasons: CommandLine, value: str, problem: str
) -> None:
    result = reasons("build", "hello", status=1, NIXERY_NIXPKGS_CONFIG=value)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"nixery: {VARIABLE} is wrong: ")
    assert problem in line


def test_commands_use_it(reasons: CommandLine) -> None:
    assert "unfreeRedistributable" in reasons("build", "unrar", status=1).stderr
    reasons("build", "unrar", "--output", f"oci:{reasons.directory}/image", NIXERY_NIXPKGS_CONFIG=ALLOWED)


def test_check_shows_what_is_in_force(reasons: CommandLine, tmp_path: Path) -> None:
    def configuration(package_set: Path) -> dict[str, Any]:
        settings = {VARIABLE: overlay, "NIXERY_PKGS_PATH": str(package_set)}
        findings = json.loads(reasons("check", "--json", status=0, **settings).stdout)
        (found,) = [finding for finding in findings if finding["what"] == "config"]
        return dict(found)

    overlay = "{ allowUnfree = true; overlays = [ (final: prev: { }) ]; }"
    found = configuration(SET)
    assert found["found"].startswith(f"{VARIABLE} sets allowUnfree, 1 overlay (sha256:")
    assert not found["advice"]
    (tmp_path / "default.nix").write_text(f"{{ system, config ? {{ }} }}@given: import {SET} given")
    found = configuration(tmp_path)
    assert found["advice"] == f"the package set declares no argument overlays; {VARIABLE} has no effect there"
    wrong = reasons("check", status=1, NIXERY_NIXPKGS_CONFIG="{ allowUnfree = tru; }").stdout
    assert f"WRONG config   {VARIABLE} is wrong: " in wrong


# ---- errors in the words of Nix


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "throwing",
            (
                "throwing was removed in default.nix, see https://example.org/removed and …, at default.nix:{line}:5, "
                "attribute 'throwing'"
            ),
        ),
        (
            "aborting",
            (
                "evaluation aborted with the following error message: 'aborting gave up', at default.nix:{line}:5, "
                "attribute 'aborting'"
            ),
        ),
        (
            "missing-argument",
            "anonymous function at default.nix:{line}:25 called without required argument 'other', at default.nix:{line}:24",
        ),
        ("recursive", "infinite recursion encountered, at default.nix:{line}:31"),
        ("overflowing", "stack overflow (possible infinite recursion)"),
        ("near", "attribute 'helo' missing, at default.nix:{line}:12; did you mean hello?"),
        ("undefined", "undefined variable 'undefinedvariable', at undefined.nix:1:36"),
    ],
)
def test_an_error_says_what_nix_says_and_where(reasons: CommandLine, name: str, said: str) -> None:
    lines = (SET / "default.nix").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.startswith(f"    {name} ="))
    stderr = reasons("build", name, status=1).stderr
    assert f"{name} (does not evaluate: {said.format(line=line)})" in stderr


@pytest.mark.security
def test_an_error_has_no_path_of_the_server_and_one_line(start_server: StartServer, tmp_path: Path) -> None:
    place = shutil.copytree(SET, tmp_path / "secret-place" / "set")
    client = start_server(NIXERY_PKGS_PATH=str(place)).client
    for name in ("unreadable", "forging", "throwing", "undefined", "unrar"):
        response = client.manifest(name)
        assert response.status == 404, name
        text = response.body.decode()
        for builds in (client.get("/api/v1/builds"), client.get("/")):
            text += builds.body.decode()
        assert "secret-place" not in text, name
        assert "/etc/passwd" not in text
        assert "\n" not in response.error["message"]
        assert "\\u001b" not in response.body.decode()


@pytest.mark.security
def test_an_evaluation_that_times_out_shows_no_path(start_server: StartServer, tmp_path: Path) -> None:
    place = tmp_path / "secret-place"
    place.mkdir()
    (place / "default.nix").write_text(
        """
        { system }:
        let list = builtins.genList (n: n) 30000; in
        { slow = builtins.trace "at ${toString ./.}/x" (builtins.foldl' (a: _: builtins.foldl' (b: _: b) a list) 0 list); }
        """
    )
    client = start_server(NIXERY_PKGS_PATH=str(place), NIX_TIMEOUT="1").client
    response = client.manifest("slow")
    assert response.status == 422
    (build,) = client.get("/api/v1/builds").json()["builds"]
    seen = response.body
    for path in ("/api/v1/builds", "/builds"):
        seen += client.get(f"{path}/{build['id']}").body
    assert b"trace: at x" in seen
    assert b"secret-place" not in seen


def test_an_attribute_that_fails_takes_nothing_from_the_others(
    start_server: StartServer, tmp_path: Path
) -> None:
    # A Nix that crashes for one package, as some versions do for deep recursions.
    program = tmp_path / "nix" / "nix-instantiate"
    program.parent.mkdir()
    real = shutil.which("nix-instantiate")
    program.write_text(f'#!/bin/sh\ncase "$*" in *crash*) kill -SEGV $$ ;; esac\nexec {real} "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    # The index knows that no attribute is called crash, and would not ask Nix.
    client = start_server(NIXERY_PKGS_PATH=str(SET), PATH=path, NIXERY_INDEX="0").client
    for name in ("aborting", "recursive", "overflowing", "crash"):
        packages = unavailable(client, f"{name}/helo/hello/unrar")
        assert {found: package["reason"] for found, package in packages.items()} == {
            name: "does not evaluate",
            "helo": "missing",
            "unrar": "unfree",
        }
        assert packages["helo"]["did_you_mean"] == ["hello"]
        assert packages["unrar"]["explanation"].startswith("licence unfreeRedistributable")
    assert unavailable(client, "crash")["crash"]["explanation"] == "Nix crashed (SIGSEGV)"
