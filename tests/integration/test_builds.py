"""Builders that fail, hang, or write excessive logs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.conftest import Pull
from tests.support.client import RegistryClient
from tests.support.nix import install_fake_nix, processes_with_environment, started_by, wait_until
from tests.support.server import Server, running_server

# Bytes of an error that every client reads.
_LARGEST_ERROR = 64 * 1024


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, settings: Mapping[str, str]) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("impatient"), {**settings, "NIX_TIMEOUT": "2"}) as server:
        yield server


def test_a_failed_build_is_reported_with_its_log(client: RegistryClient) -> None:
    response = client.manifest("fails/hello")
    assert response.status == 422
    detail = response.error["detail"]
    assert detail["derivation"].endswith("-fails-1.0.drv")
    assert detail["log"] == ["only line of the log"]
    assert "only line of the log" in response.error["message"]
    assert "building fails-1.0 failed: builder failed with exit code 3" in response.error["message"]
    assert "3" in response.error["message"]


def test_a_failed_dependency_is_reported_as_the_cause(client: RegistryClient) -> None:
    detail = client.manifest("failsdeep").error["detail"]
    assert detail["derivation"].endswith("-culprit-1.0.drv")
    assert detail["log"] == ["the culprit speaks"]


def test_a_failed_build_does_not_affect_other_images(client: RegistryClient) -> None:
    for _ in range(2):
        assert client.manifest("fails").status == 422
    assert client.manifest("hello").status == 200


def test_a_failure_after_a_megabyte_on_both_streams(client: RegistryClient) -> None:
    response = client.manifest("failsloudly")
    assert response.status == 422
    log = response.error["detail"]["log"]
    assert log[-1] == "the last line"
    assert log[0] == "a line of the megabyte on stderr"
    assert len(log) >= 10
    assert len(response.body) < _LARGEST_ERROR


def test_a_failure_after_a_megabyte_in_one_line(client: RegistryClient) -> None:
    response = client.manifest("failsinoneline")
    assert response.status == 422
    assert response.error["detail"]["derivation"].endswith("-failsinoneline-1.0.drv")
    assert "xxxxxxxxxx" in response.error["detail"]["log"][-1]
    assert len(response.body) < _LARGEST_ERROR


def test_a_log_that_is_not_utf8(pull: Pull) -> None:
    assert pull("bytelog").filesystem.read("share/bytelog") == b"fine\n"


def test_the_log_of_a_failure_that_is_not_utf8(client: RegistryClient) -> None:
    response = client.manifest("failsinbytes")
    assert response.status == 422
    detail = response.error["detail"]
    assert detail["derivation"].endswith("-failsinbytes-1.0.drv")
    assert detail["log"][-1] == "the last line"
    assert "\x1b" not in "".join(detail["log"])


def test_a_success_after_a_megabyte_on_both_streams(pull: Pull) -> None:
    assert pull("loud").filesystem.read("share/loud") == b"fine\n"


def test_an_evaluation_with_a_megabyte_on_stderr(pull: Pull) -> None:
    assert pull("noisyevaluation").filesystem.names_in("bin") == ["noisyevaluation"]


@pytest.mark.parametrize("package", ["sleeps", "ignoresterm"])
def test_a_build_beyond_nix_timeout_is_ended(impatient: Server, salt: str, package: str) -> None:
    response = impatient.client.manifest(package)
    assert response.status == 422
    assert "/builds/" in response.error["message"]
    detail = response.error["detail"]
    assert detail["derivation"].endswith(f"-{package}-1.0.drv")
    if package == "sleeps":
        assert detail["log"] == ["falling asleep"]
    assert "NIX_TIMEOUT" in response.error["message"]
    wait_until(lambda: not processes_with_environment(salt, f"{package}-1.0"), f"{package} is ended")
    wait_until(lambda: not started_by(impatient.process.pid), "no process of the server is left")
    assert salt not in os.environ.values()


def test_an_evaluation_beyond_nix_timeout_is_ended(impatient: Server) -> None:
    response = impatient.client.manifest("endless")
    assert response.status == 422
    assert "NIXERY_EVALUATION_TIMEOUT" in response.error["message"]
    wait_until(lambda: not started_by(impatient.process.pid), "no process of the server is left")


def test_the_server_serves_after_a_timeout(impatient: Server) -> None:
    assert impatient.client.manifest("hello").status == 200


def test_a_package_set_and_a_storage_with_odd_names(tmp_path: Path, settings: Mapping[str, str]) -> None:
    package_set = tmp_path / "a \"set\" of 'packages' ${throw} $(exit 1) \\ é"
    package_set.mkdir()
    (package_set / "default.nix").write_text(f"import {settings['NIXERY_PKGS_PATH']}\n")
    storage = tmp_path / "the \"storage\" $HOME 'é'"
    with running_server(
        tmp_path / "server", {**settings, "NIXERY_PKGS_PATH": str(package_set), "STORAGE_PATH": str(storage)}
    ) as server:
        assert server.client.pull("hello").filesystem.names_in("bin") == ["hello"]


def test_unexpected_answers_of_nix_are_server_errors(tmp_path: Path, settings: Mapping[str, str]) -> None:
    environment = install_fake_nix(tmp_path / "fake", "exit 0")
    with running_server(tmp_path / "server", {**settings, **environment}) as server:
        for script in ("exit 0", "echo '<html>'", "echo '{}'", "kill -9 $$", "echo oops >&2; exit 1"):
            install_fake_nix(tmp_path / "fake", script)
            response = server.client.manifest("hello")
            assert response.status == 500, script
            assert response.error["message"], script
        assert "Traceback" not in server.log
        assert server.client.get("/v2/").status == 200


def test_a_minimal_package_set_brings_no_other_packages(tmp_path: Path, settings: Mapping[str, str]) -> None:
    package_set = Path(__file__).parent.parent / "packageset" / "minimal"
    with running_server(tmp_path, {**settings, "NIXERY_PKGS_PATH": str(package_set)}) as server:
        image = server.client.pull("hello")
        assert [path.split("-", 1)[1] for path in image.filesystem.store_paths] == ["hello-minimal-1.0"]
        message = server.client.manifest("shell").error["message"]
        for package in ("bashInteractive", "coreutils", "moreutils", "nano"):
            assert package in message
