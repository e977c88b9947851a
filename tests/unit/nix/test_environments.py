"""The environments of child processes, which contain only the secrets that each needs."""

from __future__ import annotations

import pytest

from nixery.errors import SettingsError
from nixery.nix.environments import (
    build_environment,
    credential_environment,
    fetch_environment,
    git_environment,
)
from nixery.settings import Settings

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "a",
    "GOOGLE_APPLICATION_CREDENTIALS": "/key",
    "AZURE_STORAGE_ACCOUNT_KEY": "a",
    "GITHUB_TOKEN": "a",
    "SSH_AUTH_SOCK": "/agent",
    "GIT_SSH_COMMAND": "ssh -i /key",
    "NETRC": "/netrc",
    "NIX_CURL_FLAGS": "-u user:password",
    "GIT_CONFIG_VALUE_0": "Authorization: bearer a",
    "LD_PRELOAD": "/a",
}

PLAIN = {
    "PATH": "/bin",
    "HOME": "/root",
    "LC_ALL": "C",
    "NIXERY_STARTED_BY": "mark",
    "NIX_PATH": "nixpkgs=/one",
    "NIX_SSL_CERT_FILE": "/ca",
    "https_proxy": "http://proxy:3128",
    "XDG_CONFIG_HOME": "/config",
}


def test_builders_get_no_secret() -> None:
    assert build_environment(PLAIN | SECRETS) == PLAIN


def test_every_environment_has_the_mark_of_the_warden() -> None:
    for environment in (build_environment, fetch_environment, git_environment, credential_environment):
        assert environment(PLAIN)["NIXERY_STARTED_BY"] == "mark"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("https_proxy", "http://user:password@proxy:3128"),
        ("HTTP_PROXY", "token@proxy:3128"),
        ("all_proxy", "socks5://user:password@proxy"),
        ("NIX_PATH", "nixpkgs=https://token@example.org/a.tar.gz"),
        ("NIX_REMOTE", "s3://key:secret@bucket"),
        ("NIX_MIRRORS_GNU", "ftp://user@example.org"),
        ("NIX_PATH", "nixpkgs=https://example.org/a.tar.gz?ref=b&private_token=c"),
        ("NIX_REMOTE", "s3://bucket?region=a&secret_access_key=b"),
    ],
)
def test_a_variable_with_a_login_is_dropped(name: str, value: str) -> None:
    assert build_environment({name: value}) == {}
    assert build_environment({name: value}, [name]) == {name: value}
    # Commands that only fetch may need it.
    assert fetch_environment({name: value}) == {name: value}


@pytest.mark.parametrize("value", ["ssh://nix@builder", "http://proxy/@", "unix:///socket"])
def test_a_user_without_a_password_is_no_login(value: str) -> None:
    assert build_environment({"NIX_REMOTE": value}) == {"NIX_REMOTE": value}


def test_secret_options_are_removed_from_nix_config() -> None:
    configuration = """cores = 4
access-tokens = github.com=a
  extra-access-tokens=gitlab.com=PAT:b
impure-env = TOKEN=c
substituters = https://user:d@cache.example.org https://cache.nixos.org
trusted-public-keys = cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=
builders = ssh://nix@builder"""
    assert build_environment({"NIX_CONFIG": configuration})["NIX_CONFIG"].splitlines() == [
        "cores = 4",
        "trusted-public-keys = cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
        "builders = ssh://nix@builder",
    ]
    assert fetch_environment({"NIX_CONFIG": configuration}) == {"NIX_CONFIG": configuration}


def test_git_gets_logins_for_git_only() -> None:
    given = git_environment(PLAIN | SECRETS | {"GIT_DIR": "/elsewhere", "GIT_TRACE_CURL": "1"})
    assert given.keys() - PLAIN.keys() == {"SSH_AUTH_SOCK", "GIT_SSH_COMMAND", "GIT_CONFIG_VALUE_0"}


def test_credential_helpers_get_their_variables() -> None:
    given = credential_environment(
        PLAIN | SECRETS | {"DOCKER_CONFIG": "/docker", "NIXERY_PKGS_REPO": "https://a@b"}
    )
    assert {"DOCKER_CONFIG", "AWS_SECRET_ACCESS_KEY"} <= given.keys()
    assert not {"NIXERY_PKGS_REPO", "GITHUB_TOKEN", "LD_PRELOAD"} & given.keys()


MINIMAL = {"PORT": "1", "STORAGE_PATH": "/", "NIXERY_STORAGE_BACKEND": "memory", "NIXERY_CHANNEL": "a"}


def test_only_an_evaluation_that_builds_gets_the_options_of_builders() -> None:
    given = MINIMAL | {"NIXERY_BUILD_ENVIRONMENT": "TOKEN, OTHER", "TOKEN": "a"}
    settings = Settings.from_environment(given)
    assert settings.build_environment == {"TOKEN": "a"}
    assert settings.evaluation_environment == {}
    assert Settings.from_environment(given | {"NIXERY_ALLOW_IFD": "1"}).evaluation_environment == {
        "TOKEN": "a"
    }
    assert "TOKEN" not in repr(settings).replace("'TOKEN'", "")


def test_invalid_variable_names_are_refused() -> None:
    with pytest.raises(
        SettingsError, match="NIXERY_BUILD_ENVIRONMENT is wrong: 'A B' is not the name of a variable"
    ):
        Settings.from_environment(MINIMAL | {"NIXERY_BUILD_ENVIRONMENT": "TOKEN,A B"})


@pytest.mark.parametrize(
    "options",
    [
        "--option access-tokens github.com=a",
        "--extra-access-tokens github.com=a",
        "--option substituters https://user:a@cache.example.org",
    ],
)
def test_arguments_with_secrets_are_refused(options: str) -> None:
    with pytest.raises(SettingsError, match="NIXERY_NIX_OPTIONS is wrong: it has a secret"):
        Settings.from_environment(MINIMAL | {"NIXERY_NIX_OPTIONS": options})


def test_withheld_variables_are_listed() -> None:
    settings = Settings.from_environment(
        MINIMAL
        | {
            "https_proxy": "http://a:b@proxy",
            "http_proxy": "http://proxy",
            "NIX_CONFIG": "access-tokens = a=b",
        }
        | {"NIX_PATH": "a=https://token@b", "NIXERY_BUILD_ENVIRONMENT": "NIX_PATH", "GITHUB_TOKEN": "a"}
    )
    assert settings.withheld_variables == ("NIX_CONFIG", "https_proxy")


def test_long_names_are_refused_early() -> None:
    # As long as a variable can be (MAX_ARG_STRLEN); a search that begins anew at each character would take
    # minutes.
    value = "a" * 131_000
    assert build_environment({"NIX_CONFIG": value})["NIX_CONFIG"] == value


def test_the_authorities_of_a_machine_are_those_of_git() -> None:
    for environment in (fetch_environment, git_environment):
        assert environment({"SSL_CERT_FILE": "/all.pem"})["GIT_SSL_CAINFO"] == "/all.pem"
        both = {"SSL_CERT_FILE": "/all.pem", "GIT_SSL_CAINFO": "/git.pem"}
        assert environment(both)["GIT_SSL_CAINFO"] == "/git.pem"
        assert "GIT_SSL_CAINFO" not in environment({"NIX_SSL_CERT_FILE": "/nix.pem"})
