"""``NIXERY_CREATED`` and ``--created``: the date of images, by which registries and engines delete old ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.command_line import CommandLine
from tests.support.pulled_image import PulledImage
from tests.support.repository import Repository
from tests.support.server import Server

EPOCH = "1970-01-01T00:00:01Z"


def date(image: PulledImage) -> str:
    """The date of an image, which all of its history has."""
    config = image.config_document
    assert {entry["created"] for entry in config["history"]} == {config["created"]}
    return str(config["created"])


def pulled(server: Server, name: str = "hello") -> PulledImage:
    return server.client.pull(name)


def test_a_fixed_date_is_that_of_all_images(start_server: StartServer) -> None:
    server = start_server(NIXERY_CREATED="2026-01-31T13:00:00+01:00")
    image = pulled(server)
    assert date(image) == "2026-01-31T12:00:00Z"
    # The same date gives the same digest, also in another storage.
    again = start_server(NIXERY_CREATED="1769860800", STORAGE_PATH=None, NIXERY_STORAGE_BACKEND="memory")
    assert again.client.digest("hello") == server.client.digest("hello")


def test_each_date_has_its_own_images_in_a_storage(start_server: StartServer) -> None:
    dates = [
        date(pulled(start_server(NIXERY_CREATED=value))) for value in ("source", "86400", "172800", "source")
    ]
    assert dates == [EPOCH, "1970-01-02T00:00:00Z", "1970-01-03T00:00:00Z", EPOCH]


def test_an_image_with_the_time_of_its_build_keeps_it(start_server: StartServer) -> None:
    server = start_server(NIXERY_CREATED="build")
    image, digest = pulled(server), server.client.digest("hello")
    assert date(image) > "2026"
    assert server.stop() == 0
    # On another server of the storage, for as long as the storage has the image.
    other = start_server(NIXERY_CREATED="build")
    assert other.client.digest("hello") == digest
    assert pulled(other).manifest == image.manifest


def test_an_index_has_the_date(start_server: StartServer) -> None:
    server = start_server(NIXERY_CREATED="86400", NIXERY_PLATFORMS="linux/amd64,linux/arm64")
    for name in ("amd64/hello", "arm64/hello"):
        assert date(pulled(server, name)) == "1970-01-02T00:00:00Z"


def test_a_command_takes_a_date(settings: Mapping[str, str], tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    repository.commit("1")
    source = {"NIXERY_PKGS_REPO": repository.url}
    shared = {name: value for name, value in settings.items() if name != "NIXERY_PKGS_PATH"}
    shared |= {**source, "STORAGE_PATH": str(tmp_path / "storage")}

    def built(*arguments: str, **environment: str) -> str:
        output = tmp_path / f"image-{len(list(tmp_path.iterdir()))}"
        nixery = CommandLine({**shared, **environment}, tmp_path)
        nixery("build", "hello", "--quiet", "--output", f"oci:{output}", *arguments)
        return date(PulledImage.from_oci_layout(output))

    assert built("--created", "172800", NIXERY_CREATED="86400") == "1970-01-03T00:00:00Z"
    assert built("--created", "source", NIXERY_CREATED="86400") == "2023-11-14T22:13:20Z"
    assert built("--created", "build") > "2026"
    # An environment of Nix has this variable, and a command in it has to build the image of the server.
    assert built(SOURCE_DATE_EPOCH="315532800") == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize("value", ["yesterday", "0", "2026-01-31"])
def test_another_date_is_an_error(settings: Mapping[str, str], tmp_path: Path, value: str) -> None:
    nixery = CommandLine({**settings, "STORAGE_PATH": str(tmp_path / "storage")}, tmp_path)
    assert "is not source, build" in nixery("build", "hello", "--created", value, status=2).stderr
    message = nixery("build", "hello", "--quiet", status=1, NIXERY_CREATED=value).stderr
    assert "NIXERY_CREATED is wrong" in message
    assert json.dumps(value).strip('"') in message
