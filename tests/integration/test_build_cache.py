"""What Nix is not asked twice."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.nix import PACKAGE_SETS, NixSpy
from tests.support.pulled_image import PulledImage
from tests.validator.image_validator import validate


@pytest.fixture
def package_set(tmp_path: Path) -> Path:
    """A set of this test's own, which it may change."""
    copy = tmp_path / "set"
    shutil.copytree(PACKAGE_SETS / "minimal", copy)
    return copy


def edit(package_set: Path, old: str = "hello-minimal-1.0", new: str = "hello-minimal-1.1") -> None:
    path = package_set / "default.nix"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def version(image: PulledImage) -> str:
    (path,) = image.filesystem.store_paths
    return path.rpartition("-")[2]


def test_repeated_pulls_ask_nix_nothing(start_server: StartServer, spy: NixSpy) -> None:
    server = start_server(**spy.environment())
    names = ["shell/hello/diamond", "shell/diamond/hello", "arm64/hello", "hello"]
    digests = {name: server.client.digest(name) for name in names}
    spy.forget()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda name: (name, server.client.digest(name)), names * 250))
    assert set(answers) == set(digests.items())
    assert spy.calls == []
    # Nor does a server beside it, or one that is started anew.
    beside = start_server(**spy.environment())
    assert server.stop() == 0
    anew = start_server(**spy.environment())
    spy.forget()
    assert beside.client.digest("arm64/hello") == digests["arm64/hello"]
    assert anew.client.digest("hello") == digests["hello"]
    assert spy.calls == []


def test_inside_of_the_pin_nothing_changes(start_server: StartServer, package_set: Path) -> None:
    settings = {"NIXERY_PKGS_PATH": str(package_set)}
    before = start_server(**settings).client.digest("hello")
    edit(package_set)
    assert start_server(**settings).client.digest("hello") == before


def test_what_is_built_anew_is_built_from_what_is_there(start_server: StartServer, package_set: Path) -> None:
    client = start_server(NIXERY_PKGS_PATH=str(package_set)).client
    before = client.pull("hello")
    edit(package_set)
    # A directory has no history, so this moves the pin, for all images.
    assert version(client.pull("arm64/hello")) == "1.1"
    after = validate(client.pull("hello"))
    assert (version(before), version(after)) == ("1.0", "1.1")


def test_what_was_wrong_is_not_remembered_longer_than_it_is(
    start_server: StartServer, package_set: Path
) -> None:
    edit(package_set, "echo hello >", "exit 1;")
    client = start_server(NIXERY_PKGS_PATH=str(package_set), NIXERY_FAILURE_TTL="0").client
    assert client.manifest("hello").status == 422
    assert client.manifest("new").status == 404
    # The pin is still the one from before; there is no image that it would be bound to give.
    edit(package_set, "exit 1;", "echo hello >")
    edit(package_set, "hello =", "new = hello; hello =")
    edit(package_set, "{\n", "rec {\n")
    assert client.manifest("new").status == 200
    assert client.manifest("hello").status == 200


def test_after_the_pin_there_is_a_new_digest(start_server: StartServer, package_set: Path) -> None:
    client = start_server(NIXERY_PKGS_PATH=str(package_set), NIXERY_PIN_TTL="2").client
    before = client.pull("hello")
    edit(package_set)
    end = time.monotonic() + 20
    while (after := client.pull("hello")) == before:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert version(after) == "1.1"


def test_without_a_pin_every_change_counts_at_once(
    start_server: StartServer, package_set: Path, spy: NixSpy
) -> None:
    settings = {"NIXERY_PKGS_PATH": str(package_set), "NIXERY_PIN_TTL": "0"}
    client = start_server(**settings, **spy.environment()).client
    one = client.pull("hello")
    edit(package_set)
    two = client.pull("hello")
    spy.forget()
    edit(package_set, "1.1", "1.0")
    # What was there before was built before.
    assert client.pull("hello") == one
    assert (version(one), version(two)) == ("1.0", "1.1")
    assert spy.calls == []


def test_other_popularity_data_is_another_image(start_server: StartServer, tmp_path: Path) -> None:
    popularity = tmp_path / "popularity.json"
    popularity.write_text('{"bottom": 1000}')
    plain = start_server().client.digest("diamond")
    assert start_server(NIX_POPULARITY_URL=str(popularity)).client.digest("diamond") != plain


def test_package_set_that_is_gone(
    start_server: StartServer, package_set: Path, tmp_path: Path, settings: Mapping[str, str]
) -> None:
    server = start_server(**{**settings, "NIXERY_PKGS_PATH": str(package_set), "NIXERY_PIN_TTL": "0"})
    package_set.rename(tmp_path / "elsewhere")
    response = server.client.manifest("hello")
    assert response.status == 503
    assert int(response.headers["retry-after"]) > 0
    assert "package set" in response.errors[0]["message"]
    assert str(tmp_path) not in response.body.decode()
