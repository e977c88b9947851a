"""Logins in the files of Docker and Podman, and in credential helpers."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from nixery.errors import PushFailed
from nixery.push.auth import Credentials, find_credentials


def written(directory: Path, content: dict[str, Any]) -> dict[str, str]:
    (directory / "config.json").write_text(json.dumps(content))
    return {"DOCKER_CONFIG": str(directory), "HOME": "/nonexistent", "PATH": f"{directory}:/usr/bin:/bin"}


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("key", ["registry.test:5000", "https://registry.test:5000"])
def test_a_password_may_contain_a_colon(tmp_path: Path, key: str) -> None:
    environment = written(tmp_path, {"auths": {key: {"auth": encoded("me:a:b")}}})
    assert find_credentials("registry.test:5000", environment) == Credentials("me", "a:b")
    assert find_credentials("registry.test", environment) is None


def test_an_identity_token_is_found(tmp_path: Path) -> None:
    entry = {"auth": encoded("me:"), "identitytoken": "long"}
    environment = written(tmp_path, {"auths": {"registry.test": entry}})
    assert find_credentials("registry.test", environment) == Credentials("", "", "long")


@pytest.mark.parametrize("setting", [{"credsStore": "test"}, {"credHelpers": {"registry.test": "test"}}])
def test_a_helper_gets_the_host(tmp_path: Path, setting: dict[str, Any]) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread -r host\n[ "$1 $host" = "get registry.test" ] && echo \'{"Username":"me","Secret":"s"}\'\n'
    )
    helper.chmod(0o755)
    environment = written(tmp_path, setting)
    # Found on the PATH of the given environment, not of this process.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", environment["PATH"])
        assert find_credentials("registry.test", environment) == Credentials("me", "s")
        assert find_credentials("other.test", environment) is None


def test_the_file_of_podman_is_read_first(tmp_path: Path) -> None:
    environment = written(tmp_path, {"auths": {"registry.test": {"auth": encoded("docker:1")}}})
    podman = tmp_path / "auth.json"
    podman.write_text(json.dumps({"auths": {"registry.test": {"auth": encoded("podman:2")}}}))
    both = environment | {"REGISTRY_AUTH_FILE": str(podman)}
    assert find_credentials("registry.test", both) == Credentials("podman", "2")


def test_docker_hub_is_found_under_its_own_key(tmp_path: Path) -> None:
    environment = written(
        tmp_path, {"auths": {"https://index.docker.io/v1/": {"auth": encoded("me:secret")}}}
    )
    assert find_credentials("docker.io", environment) == Credentials("me", "secret")


@pytest.mark.parametrize("content", ["{", "[]", '{"auths": {"registry.test": {"auth": "?"}}}'])
def test_an_invalid_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(PushFailed, match=r"config\.json"):
        find_credentials("registry.test", {"DOCKER_CONFIG": str(tmp_path)})


def test_without_a_file_there_are_no_credentials(tmp_path: Path) -> None:
    assert find_credentials("registry.test", {"HOME": str(tmp_path)}) is None


def test_secrets_are_not_in_the_repr() -> None:
    assert "hidden" not in repr(Credentials("me", "hidden", "hidden"))
