from __future__ import annotations

from pathlib import Path

import pytest

from nixery.binary_caches.configuration import BinaryCache, CacheConfiguration
from nixery.errors import SettingsError
from tests.support.binary_cache import SigningKey

KEY, OTHER = SigningKey("one-1"), SigningKey("two-1", b"2" * 32)
DEFAULT_KEY = "cache.nixos.org-1"


def read(directory: Path, configuration: str = "", *options: str, **variables: str) -> CacheConfiguration:
    """Read a machine's nix.conf, and a user's environment."""
    (directory / "nix.conf").write_text(configuration)
    environment = {"NIX_CONF_DIR": str(directory), "XDG_CONFIG_DIRS": str(directory / "xdg"), **variables}
    return CacheConfiguration.read(environment, options)


def names(configuration: CacheConfiguration) -> list[str]:
    return [cache.name for cache in configuration.caches]


def test_without_any_configuration_there_are_nixs_defaults(tmp_path: Path) -> None:
    found = CacheConfiguration.read(
        {"NIX_CONF_DIR": str(tmp_path / "none"), "XDG_CONFIG_DIRS": str(tmp_path)}
    )
    assert names(found) == ["https://cache.nixos.org"]
    assert set(found.trust.keys) == {DEFAULT_KEY}
    assert found.trust.require_signatures


def test_later_files_and_variables_override_or_extend(tmp_path: Path) -> None:
    for name, url in (("home", "https://home"), ("xdg", "https://xdg")):
        file = tmp_path / name / "nix" / "nix.conf"
        file.parent.mkdir(parents=True)
        file.write_text(f"extra-substituters = {url}\n")
    system = "substituters = https://a https://b/ # comment\n\n trusted-public-keys ="
    user = {"XDG_CONFIG_HOME": str(tmp_path / "home")}
    assert names(read(tmp_path, system, **user)) == ["https://a", "https://b", "https://xdg", "https://home"]
    found = read(
        tmp_path,
        system,
        *("--option", "extra-trusted-public-keys", OTHER.public, "--extra-substituters", "https://c"),
        NIX_CONFIG=f"substituters = https://config\nextra-trusted-public-keys = {KEY.public}",
        **user,
    )
    assert names(found) == ["https://config", "https://c"]
    assert set(found.trust.keys) == {"one-1", "two-1"}
    named = {"NIX_USER_CONF_FILES": str(tmp_path / "xdg/nix/nix.conf")}
    assert names(read(tmp_path, system, **named)) == ["https://a", "https://b", "https://xdg"]


def test_files_include_others(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("binary-caches = https://more\n")
    assert names(read(tmp_path, "!include missing.conf\ninclude more.conf\n")) == ["https://more"]
    for configuration, reason in (
        ("include missing.conf", "which does not exist"),
        ("include nix.conf", "through more than 16 files"),
    ):
        with pytest.raises(SettingsError, match=reason):
            read(tmp_path, configuration)


@pytest.mark.parametrize(
    ("configuration", "reason"),
    [
        ("substituters https://a", "line 1 of .*nix.conf is not a setting"),
        ("trusted-public-keys = x", "'x' is not a public key"),
        ("require-sigs = maybe", "require-sigs is 'maybe'; expected true or false"),
        ("ssl-cert-file = /dev/null/x", "cannot read the certificates in /dev/null/x: Not a directory"),
        (f"substituters = {' '.join(f'https://{number}' for number in range(33))}", "32 is the limit"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, configuration: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        read(tmp_path, configuration)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("daemon", "'daemon' is not a binary cache that can be read directly"),
        ("/srv/store", "'/srv/store' is not a binary cache"),
        ("ssh://user:secret@host", "ssh://host is not a binary cache"),
        ("https://", "https:// is not a binary cache"),
        ("file://host/cache", "file://host/cache is not a binary cache"),
        ("https://host?store=/gnu/store", "https://host is of another store directory than /nix/store"),
        ("https://host?priority=-1", "the priority of https://host is not a number"),
        ("https://user:secret@host?trusted=2", "trusted, of https://host, is '2'"),
    ],
)
def test_other_substituters_are_named_without_secrets(tmp_path: Path, url: str, reason: str) -> None:
    found = read(tmp_path, f"substituters = {url} https://good")
    assert names(found) == ["https://good"]
    (line,) = found.unusable
    assert line.startswith(reason)
    assert "secret" not in line


def test_a_url_has_parameters_and_a_login() -> None:
    cache = BinaryCache.parse("https://user:p%40ss@host:8443/cache/?priority=7&trusted=true&compression=xz")
    assert (cache.name, cache.priority, cache.trusted) == ("https://host:8443/cache", 7, True)
    assert cache.parameters == {"compression": "xz"}
    assert cache.login == ("user", "p@ss")
    assert "p@ss" not in repr(cache)


def test_logins_come_from_the_netrc_file(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine a login me password mine\n")
    caches = read(tmp_path, "substituters = https://a:1/x https://b https://you:yours@a/y file:///a").caches
    assert [cache.login for cache in caches] == [("me", "mine"), None, ("you", "yours"), None]
    (tmp_path / "netrc").write_text("machine a login me passwort secret\n")
    with pytest.raises(SettingsError, match="is not in the format of netrc") as raised:
        read(tmp_path)
    assert "secret" not in str(raised.value)
    # Another file takes its place.
    (tmp_path / "other").write_text("default login d password e\n")
    assert read(tmp_path, f"netrc-file = {tmp_path}/other").caches[0].login == ("d", "e")


def test_substitution_and_signatures_can_be_turned_off(tmp_path: Path) -> None:
    assert not read(tmp_path, "substitute = false").caches
    assert not read(tmp_path, "", "--option", "substitute", "false").caches
    assert not read(tmp_path, "require-sigs = false").trust.require_signatures


def test_certificates_are_read(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(b"certificates")
    assert read(tmp_path, NIX_SSL_CERT_FILE=str(tmp_path / "ca.pem")).authorities == b"certificates"
