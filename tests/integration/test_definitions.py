"""Attributes that are lists of packages or image definitions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.conftest import Pull
from tests.support.client import RegistryClient
from tests.support.nix import PACKAGE_SETS
from tests.support.pulled_image import PulledImage


def names(image: PulledImage) -> set[str]:
    """Names of the store paths of an image, without those of every image."""
    found = {path.split("-", 1)[1] for path in image.filesystem.store_paths}
    return found - {"iana-etc-1.0", "nss-cacert-1.0"}


def test_a_list_stands_for_all_of_its_packages(pull: Pull) -> None:
    image = pull("tools")
    assert names(image) == {"hello-1.0", "left-1.0", "right-1.0", "bottom-1.0"}
    assert image.filesystem.read("bin/hello").startswith(b"#!/bin/sh")
    assert "Cmd" not in image.config_document["config"]


def test_a_list_has_the_layers_of_its_packages(pull: Pull) -> None:
    assert pull("tools").layer_digests == pull("hello/left/right").layer_digests


def test_a_list_may_be_empty(pull: Pull) -> None:
    assert names(pull("nopackages")) == set()


def test_a_definition_sets_the_config(pull: Pull) -> None:
    image = pull("images.web")
    config = image.config_document["config"]
    bottom = image.filesystem.store_path("bottom-1.0")
    directory = image.filesystem.store_path("empty")
    assert config["Cmd"] == [f"/{bottom}/bottom", "--port", "80"]
    assert config["Env"][-2:] == [f"MESSAGE=from /{directory}", "PORT=80"]
    assert config["Env"][0].startswith("PATH=")
    assert {key: value for key, value in config.items() if key not in ("Cmd", "Env", "Labels")} == {
        "Entrypoint": ["/bin/hello"],
        "User": "65534:65534",
        "WorkingDir": "/srv",
        "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/data": {}},
        "StopSignal": "SIGQUIT",
        "Healthcheck": {"Test": ["CMD", "/bin/hello"], "Interval": 30_000_000_000},
    }
    assert config["Labels"]["team"] == "platform"
    # Store paths that only the config mentions are in the image, but not at its root.
    assert names(image) == {"hello-1.0", "greeting-1.0", "bottom-1.0", "empty"}
    assert image.filesystem.read(f"{directory}/default.nix")
    assert len(image.layers) == 3


def test_a_store_path_within_a_sentence_is_in_the_image(pull: Pull) -> None:
    # The full stop could be part of the name. Paths without their context in Nix are not part of the image.
    assert names(pull("images.sentence")) == {"hello-1.0", "bottom-1.0"}


def test_the_directories_of_a_definition_belong_to_its_user(pull: Pull) -> None:
    filesystem = pull("images.web").filesystem
    for name in ("srv", "data"):
        member = filesystem.find(name)
        assert (member.isdir(), member.mode, member.uid, member.gid) == (True, 0o755, 65534, 65534)
    assert b"nobody:x:65534:" in filesystem.read("etc/passwd")
    home = filesystem.find("home/nobody")
    assert (home.isdir(), home.mode, home.uid, home.gid) == (True, 0o755, 65534, 65534)
    assert b":/home/nobody:" in filesystem.read("etc/passwd")
    # Without a definition they are root's or not created.
    filesystem = pull("hello").filesystem
    assert "data" not in filesystem.names_in("")
    assert filesystem.find("srv").uid == 0


def test_a_user_that_no_package_has_is_added(pull: Pull) -> None:
    filesystem = pull("images.named").filesystem
    assert filesystem.read("etc/passwd").splitlines()[-1] == b"web:x:1000:1000:web:/home/web:/bin/sh"
    assert filesystem.read("etc/group").splitlines()[-1] == b"web:x:1000:"
    assert (filesystem.find("var/lib/web").uid, filesystem.find("var/lib").uid) == (1000, 0)


def test_a_definition_without_a_config_starts_its_only_package(pull: Pull) -> None:
    assert pull("images.plain").config_document["config"]["Cmd"] == ["hello"]
    assert pull("images.plain").layer_digests == pull("hello").layer_digests


def test_definitions_and_packages_mix(pull: Pull) -> None:
    image = pull("shell/images.other/hello")
    assert {"left-1.0", "hello-1.0"} < names(image)
    assert image.config_document["config"]["User"] == "1"
    assert image.config_document["config"]["Cmd"] == ["bash"]


def test_a_name_with_two_definitions_is_refused(client: RegistryClient) -> None:
    response = client.manifest("images.web/hello/images.other")
    assert response.status == 400
    assert response.error["code"] == "NAME_INVALID"
    assert "images.other and images.web" in response.error["message"]


def flaws(client: RegistryClient, name: str) -> list[dict[str, Any]]:
    response = client.manifest(name)
    assert response.status == 404, response
    assert response.error["code"] == "MANIFEST_UNKNOWN"
    packages: list[dict[str, Any]] = response.error["detail"]["packages"]
    assert str(PACKAGE_SETS) not in response.body.decode()
    for package in packages:
        assert package["explanation"] in response.error["message"]
    return packages


@pytest.mark.parametrize(
    ("name", "reason", "explanation"),
    [
        ("listwithstring", "not a package", "listwithstring[1][0] is a string, not a derivation"),
        ("listwithfunction", "not a package", "listwithfunction[0] is a function, not a derivation"),
        ("listwithset", "not a package", "listwithset[0] is a set of packages, not a derivation"),
        ("listwithbroken", "broken", "package brokeninside-1.0 is refused"),
        (
            "images.misspelt",
            "not a valid image definition",
            (
                "images.misspelt: config.WorkingDir should be an absolute path, not 'srv'; "
                "config.cmd is not a field of an image definition"
            ),
        ),
        (
            "images.nouser",
            "not a valid image definition",
            "images.nouser: config.User should be a user such as 1000, 1000:1000 or web, not 'web user'",
        ),
        (
            "images.functional",
            "not a valid image definition",
            "images.functional: config.Cmd[0] is a function",
        ),
        ("images.throwing", "does not evaluate", "no command yet"),
        ("images.contentsthrow", "does not evaluate", "not packaged yet"),
        (
            "images.stringcontents",
            "not a package",
            "images.stringcontents.contents is a string, not a derivation",
        ),
    ],
)
def test_an_invalid_package_is_explained(
    client: RegistryClient, name: str, reason: str, explanation: str
) -> None:
    (package,) = flaws(client, name)
    assert (package["name"], package["reason"]) == (name, reason)
    assert explanation in package["explanation"]


def test_an_image_describes_itself(pull: Pull) -> None:
    image = pull("mainprogram")
    annotations = image.manifest_document["annotations"]
    assert annotations["org.opencontainers.image.title"] == "mainprogram"
    assert annotations["org.opencontainers.image.version"] == "1.0"
    # `bsd3` is not an SPDX identifier, but has the form of one.
    assert annotations["org.opencontainers.image.licenses"] == "MIT AND bsd3"
    assert "mainprogram 1.0" in annotations["dev.nixery.packages"]
    assert image.config_document["config"]["Labels"] == annotations
    # A definition's own labels are added, and take precedence.
    labels = pull("images.web").config_document["config"]["Labels"]
    assert labels["team"] == "platform"
    assert labels["org.opencontainers.image.title"] == "images.web"
