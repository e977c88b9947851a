"""Packages that cannot be built are named, each with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import RegistryClient
from tests.support.nix import PACKAGE_SETS


def unavailable(client: RegistryClient, name: str) -> dict[str, dict[str, Any]]:
    response = client.manifest(name)
    assert response.status == 404, response
    assert response.error["code"] == "MANIFEST_UNKNOWN"
    packages = {package["name"]: package for package in response.error["detail"]["packages"]}
    for package in packages:
        assert package in response.error["message"]
    return packages


def test_every_missing_package_is_named(client: RegistryClient) -> None:
    assert set(unavailable(client, "nosuch/hello/nothere/shell")) == {"nosuch", "nothere", "shell"}


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("helo", "hello"),
        ("greetings", "greeting"),
        ("camelcas", "camelcase"),
        ("haskellpackage.pandoc", ""),
        ("haskellpackages.pandok", "haskellpackages.pandoc"),
        ("2password", "1password"),
    ],
)
def test_similar_names_are_suggested(client: RegistryClient, wanted: str, meant: str) -> None:
    package = unavailable(client, wanted)[wanted]
    assert package["reason"] == "missing"
    if meant:
        assert meant in package["did_you_mean"]
        assert f"did you mean {package['did_you_mean'][0]}" in client.manifest(wanted).error["message"]


def test_nothing_is_suggested_for_a_name_like_no_other(client: RegistryClient) -> None:
    message = client.manifest("qqqqqqqqqqqq").error["message"]
    assert "did you mean" not in message


@pytest.mark.parametrize(
    ("name", "reason", "explanation"),
    [
        ("broken", "broken", "package broken-1.0 is refused"),
        ("unfree", "unfree", "package unfree-1.0 is refused"),
        ("insecure", "insecure", "package insecure-1.0 is refused"),
        ("wrongplatform", "not available on this platform", "package wrongplatform-1.0 is refused"),
        ("throwing", "does not evaluate", "throwing was removed because nobody maintained it"),
        ("asserting", "does not evaluate", "assertion"),
        ("typeerror", "does not evaluate", "string"),
        ("aborting", "does not evaluate", "aborting gave up"),
        ("function", "not a package", "function"),
        ("attributes", "not a package", "set"),
        ("string", "not a package", "string"),
        ("number", "not a package", "int"),
        ("nothing", "not a package", "null"),
        ("haskellpackages", "not a package", "set"),
    ],
)
def test_the_reason_is_given(client: RegistryClient, name: str, reason: str, explanation: str) -> None:
    package = unavailable(client, name)[name]
    assert package["reason"] == reason
    assert explanation in package["explanation"]
    assert str(PACKAGE_SETS) not in package["explanation"]


def test_all_packages_are_reported_at_once(client: RegistryClient) -> None:
    packages = unavailable(client, "broken/unfree/throwing/typeerror/aborting/string/nosuch/hello")
    assert {name: package["reason"] for name, package in packages.items()} == {
        "broken": "broken",
        "unfree": "unfree",
        "throwing": "does not evaluate",
        "typeerror": "does not evaluate",
        "aborting": "does not evaluate",
        "string": "not a package",
        "nosuch": "missing",
    }


def test_a_package_whose_meta_data_throws_is_built(client: RegistryClient) -> None:
    assert client.manifest("metathrows").status == 200


def test_a_syntax_error_in_the_package_set_is_a_server_error(start_server: StartServer) -> None:
    package_set = str(PACKAGE_SETS / "broken")
    client = start_server(NIXERY_PKGS_PATH=package_set).client
    for _ in range(2):
        response = client.manifest("hello")
        assert response.status == 500
        assert "does not evaluate: syntax error" in response.error["message"]
        assert package_set not in response.body.decode()


def test_an_empty_package_set_has_no_package(start_server: StartServer) -> None:
    client = start_server(NIXERY_PKGS_PATH=str(PACKAGE_SETS / "empty")).client
    assert set(unavailable(client, "hello")) == {"hello"}
    package = unavailable(client, "shell")["shell"]
    assert package["reason"] == "incomplete"
    assert "bashInteractive, coreutils, moreutils and nano" in package["explanation"]
