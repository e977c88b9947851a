"""Names that stand for several packages, and what a package set says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import RegistryClient
from tests.support.nix import PACKAGE_SETS
from tests.support.server import Server, running_server

_CHOSEN = {"NIXERY_PKGS_PATH": str(PACKAGE_SETS / "metapackages")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, settings: Mapping[str, str]) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("metapackages"), {**settings, **_CHOSEN}) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log, server.log


@pytest.fixture(scope="module")
def client(server: Server) -> RegistryClient:
    return server.client


def reason(client: RegistryClient, name: str) -> tuple[str, str]:
    """Return why the only unavailable package of an image is not available."""
    response = client.manifest(name)
    assert response.status == 404, response
    (package,) = response.error["detail"]["packages"]
    return package["reason"], package["explanation"]


def test_a_meta_package_of_the_set_stands_for_its_packages(client: RegistryClient) -> None:
    image = client.pull("ci")
    names = {path.split("-", 1)[1] for path in image.filesystem.store_paths}
    # `optional` names that the set lacks, refuses or has for something else are left out.
    assert names == {"hello-1.0", "pandoc-1.0", "greeting-1.0", "iana-etc-1.0", "nss-cacert-1.0"}
    assert image.cmd == ["hello", "--verbose"]


def test_a_meta_package_may_be_anywhere_in_a_name(client: RegistryClient) -> None:
    assert client.digest("ci/left") == client.digest("left/ci")
    image = client.pull("left/ci")
    assert image.cmd == ["hello", "--verbose"]
    assert {"hello", "greeting"} <= set(image.filesystem.names_in("bin"))


def test_an_attribute_of_the_set_wins(client: RegistryClient) -> None:
    image = client.pull("debug")
    assert "greeting" in image.filesystem.names_in("bin")
    assert image.cmd == ["greeting"]


def test_a_set_may_replace_the_packages_of_shell(client: RegistryClient) -> None:
    image = client.pull("shell/hello")
    programs = set(image.filesystem.names_in("bin"))
    assert {"bash", "ls", "hello"} <= programs
    assert programs.isdisjoint({"nano", "moreutils"})
    assert image.cmd == ["bash"]
    assert client.digest("shell/hello/coreutils") == client.digest("shell/hello")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "incomplete",
            (
                "incomplete",
                "it stands for nothere and moreutils.nothere, which the package set does not have",
            ),
        ),
        ("misspelt", ("not a valid meta-package", "nixery.metaPackages.misspelt.package is not valid")),
        ("text", ("not a valid meta-package", "nixery.metaPackages.text is not valid")),
        ("thrown", ("not a valid meta-package", "nixery.metaPackages.thrown is not valid")),
        ("words", ("not a valid meta-package", "nixery.metaPackages.words.packages is not valid")),
        ("throwing", ("does not evaluate", "throwing was removed because nobody maintained it")),
        ("broken-one", ("broken", "package broken-1.0 is refused")),
        ("notapackage", ("not a package", "string is a string, not a derivation")),
        ("hello/arm64", ("missing", "")),
    ],
)
def test_what_is_wrong_with_a_meta_package_is_explained(
    client: RegistryClient, name: str, expected: tuple[str, str]
) -> None:
    found, explanation = reason(client, name)
    assert found == expected[0]
    assert explanation.startswith(expected[1])


def test_meta_packages_are_suggested(client: RegistryClient) -> None:
    assert "did you mean quiet" in client.manifest("quitt").error["message"]


def test_a_set_that_lacks_the_packages_of_a_meta_package(start_server: StartServer) -> None:
    client = start_server(NIXERY_PKGS_PATH=str(PACKAGE_SETS / "minimal")).client
    found, explanation = reason(client, "ci")
    assert found == "incomplete"
    assert "gnugrep, gnused, gnutar, gzip, git and curl" in explanation


def test_what_the_set_says_of_itself_is_in_os_release(client: RegistryClient) -> None:
    lines = client.pull("hello").filesystem.read("etc/os-release").decode().splitlines()
    assert {"ID=acme", 'NAME="Acme \\"Tools\\""', "VERSION_ID=7"} <= set(lines)


@pytest.mark.security
def test_what_a_set_says_of_itself_has_bounds(tmp_path: Path, settings: Mapping[str, str]) -> None:
    package_set = tmp_path / "set"
    package_set.mkdir()
    (package_set / "default.nix").write_text(
        f"""{{ system }}:
        let
          repeated = number: text: builtins.genList (_: text) number;
          long = number: builtins.concatStringsSep "" (repeated number "x");
          entries = prefix: number: builtins.listToAttrs (
            builtins.genList (i: {{ name = "${{prefix}}${{toString (1000 + i)}}"; value = [ "hello" ]; }}) number
          );
        in
        import {PACKAGE_SETS} {{ inherit system; }} // {{
          nixery.metaPackages = entries "z" 100 // {{
            many = repeated 200 "hello";
            toomany = repeated 201 "hello";
            longer = [ (long 257) ];
            words = {{ packages = [ "hello" ]; command = repeated 17 "a"; }};
            word = {{ packages = [ "hello" ]; command = [ (long 257) ]; }};
            described = {{ packages = [ "hello" ]; description = long 5000; }};
            ${{long 65}} = [ "hello" ];
          }};
        }}"""
    )
    with running_server(tmp_path, {**settings, "NIXERY_PKGS_PATH": str(package_set)}) as server:
        client = server.client
        for name in ("toomany", "longer", "words", "word", "described"):
            assert reason(client, name)[0] == "not a valid meta-package", name
        assert client.manifest("many").status == 200
        assert reason(client, "x" * 65)[0] == "missing"
        # The first 64 names count: the letters of the others come later.
        assert client.manifest("z1050").status == 200
        assert reason(client, "z1090")[0] == "missing"


def test_a_set_like_nixpkgs_names_its_release(tmp_path: Path, settings: Mapping[str, str]) -> None:
    package_set = tmp_path / "set"
    package_set.mkdir()
    (package_set / "default.nix").write_text(
        f"""{{ system }}: import {PACKAGE_SETS} {{ inherit system; }} // {{
          lib.trivial = {{ release = "24.11"; codeName = "Vicuna"; version = "24.11pre1.of-this-commit"; }};
          # nixpkgs may have a package of this name.
          nixery = (import {PACKAGE_SETS} {{ inherit system; }}).hello // {{ osRelease = {{ ID = "other"; }}; }};
        }}"""
    )
    with running_server(tmp_path, {**settings, "NIXERY_PKGS_PATH": str(package_set)}) as server:
        image = server.client.pull("nixery")
        found = image.filesystem.read("usr/lib/os-release").decode().splitlines()
    assert "hello" in image.filesystem.names_in("bin")
    expected = {"ID=nixpkgs", "ID_LIKE=nixos", "NAME=nixpkgs", "VERSION_ID=24.11", "VERSION_CODENAME=vicuna"}
    assert expected <= set(found)
    # Other commits of the release share the layer.
    assert not [line for line in found if "of-this-commit" in line]


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        (
            'osRelease = { ID = "x"; NAME = "x"; VERSION = "a\\nb"; };',
            "not a valid description of the package set: nixery.osRelease: VERSION should be printable",
        ),
        ('osRelease = abort "no facts today";', "no facts today"),
    ],
)
def test_a_set_with_wrong_facts_has_no_images(
    tmp_path: Path, settings: Mapping[str, str], attribute: str, message: str
) -> None:
    package_set = tmp_path / "set"
    package_set.mkdir()
    (package_set / "default.nix").write_text(
        f"{{ system }}: import {PACKAGE_SETS} {{ inherit system; }} // {{ nixery.{attribute} }}"
    )
    with running_server(tmp_path, {**settings, "NIXERY_PKGS_PATH": str(package_set)}) as server:
        response = server.client.manifest("hello")
    assert response.status == 404
    (package,) = response.error["detail"]["packages"]
    assert package["name"] == "nixery"
    assert message in response.error["message"]
