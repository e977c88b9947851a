"""Repeated requests are answered without Nix, and a changed package set is noticed when its pin expires."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.nix import PACKAGE_SETS, NixSpy, wait_until
from tests.support.pulled_image import PulledImage
from tests.validator.image_validator import validate


@pytest.fixture
def package_set(tmp_path: Path) -> Path:
    """A package set that the test may change."""
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


def test_repeated_pulls_run_no_nix(start_server: StartServer, spy: NixSpy) -> None:
    server = start_server(**spy.environment())
    names = ["shell/hello/diamond", "shell/diamond/hello", "arm64/hello", "hello"]
    digests = {name: server.client.digest(name) for name in names}
    spy.forget()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda name: (name, server.client.digest(name)), names * 250))
    assert set(answers) == set(digests.items())
    assert spy.calls == []
    # Nor do a second server and a restarted one.
    beside = start_server(**spy.environment())
    assert server.stop() == 0
    anew = start_server(**spy.environment())
    spy.forget()
    assert beside.client.digest("arm64/hello") == digests["arm64/hello"]
    assert anew.client.digest("hello") == digests["hello"]
    assert spy.calls == []


def test_an_edit_is_not_seen_before_the_pin_expires(start_server: StartServer, package_set: Path) -> None:
    settings = {"NIXERY_PKGS_PATH": str(package_set)}
    before = start_server(**settings).client.digest("hello")
    edit(package_set)
    assert start_server(**settings).client.digest("hello") == before


def test_an_image_that_is_not_cached_is_built_from_the_current_files(
    start_server: StartServer, package_set: Path
) -> None:
    client = start_server(NIXERY_PKGS_PATH=str(package_set)).client
    before = client.pull("hello")
    edit(package_set)
    # A directory has no history, so this moves the pin, for all images.
    assert version(client.pull("arm64/hello")) == "1.1"
    after = validate(client.pull("hello"))
    assert (version(before), version(after)) == ("1.0", "1.1")


def test_a_fixed_package_builds_once_its_failure_expires(
    start_server: StartServer, package_set: Path
) -> None:
    edit(package_set, "echo hello >", "exit 1;")
    client = start_server(NIXERY_PKGS_PATH=str(package_set), NIXERY_FAILURE_TTL="0").client
    assert client.manifest("hello").status == 422
    assert client.manifest("new").status == 404
    # The pin has not expired, but it promises no image: none was built.
    edit(package_set, "exit 1;", "echo hello >")
    edit(package_set, "hello =", "new = hello; hello =")
    edit(package_set, "{\n", "rec {\n")
    assert client.manifest("new").status == 200
    assert client.manifest("hello").status == 200


def test_an_expired_pin_gives_a_new_digest(start_server: StartServer, package_set: Path) -> None:
    client = start_server(NIXERY_PKGS_PATH=str(package_set), NIXERY_PIN_TTL="2").client
    before = client.pull("hello")
    edit(package_set)
    wait_until(lambda: client.digest("hello") != before.digest, "the pin expires")
    assert version(client.pull("hello")) == "1.1"


def test_without_a_pin_every_edit_is_seen_at_once(
    start_server: StartServer, package_set: Path, spy: NixSpy
) -> None:
    settings = {"NIXERY_PKGS_PATH": str(package_set), "NIXERY_PIN_TTL": "0"}
    client = start_server(**settings, **spy.environment()).client
    one = client.pull("hello")
    edit(package_set)
    two = client.pull("hello")
    spy.forget()
    edit(package_set, "1.1", "1.0")
    # The first state is cached.
    assert client.pull("hello") == one
    assert (version(one), version(two)) == ("1.0", "1.1")
    assert spy.calls == []


def test_different_popularity_data_gives_a_different_image(start_server: StartServer, tmp_path: Path) -> None:
    popularity = tmp_path / "popularity.json"
    popularity.write_text('{"bottom": 1000}')
    plain = start_server().client.digest("diamond")
    assert start_server(NIX_POPULARITY_URL=str(popularity)).client.digest("diamond") != plain


def test_a_missing_package_set_is_temporarily_unavailable(
    start_server: StartServer, package_set: Path, tmp_path: Path, settings: Mapping[str, str]
) -> None:
    server = start_server(**{**settings, "NIXERY_PKGS_PATH": str(package_set), "NIXERY_PIN_TTL": "0"})
    package_set.rename(tmp_path / "elsewhere")
    response = server.client.manifest("hello")
    assert response.status == 503
    assert int(response.headers["retry-after"]) > 0
    assert "package set" in response.errors[0]["message"]
    assert str(tmp_path) not in response.body.decode()
