from __future__ import annotations

from pathlib import Path

import pytest

from nixery.errors import SettingsError
from nixery.settings import Settings
from nixery.startup import prepare


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "default.nix").write_text("{ system }: { }")
    return {
        "PORT": "8080",
        "NIXERY_PKGS_PATH": str(tmp_path),
        # So that Nix does not have to report its platform.
        "NIXERY_PLATFORMS": "linux/arm64,linux/amd64",
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(tmp_path / "storage"),
    }


def test_a_command_needs_no_address_and_no_probe(environment: dict[str, str]) -> None:
    settings = Settings.from_environment(environment)
    resources = prepare(settings, serving=False)
    try:
        assert (resources.address, resources.admin_address, resources.sandbox) == (None, None, None)
        assert resources.platforms == settings.platforms
        assert resources.temporary.path.parent == settings.storage_path / "temporary"
    finally:
        resources.roots.close()
        resources.temporary.close()


def test_problems_are_reported_at_once_and_directories_are_removed(environment: dict[str, str]) -> None:
    storage = Path(environment["STORAGE_PATH"])
    storage.mkdir()
    (storage / "locks").touch()
    settings = Settings.from_environment(environment | {"NIX_POPULARITY_URL": "/nowhere"})
    with pytest.raises(SettingsError) as caught:
        prepare(settings, serving=False)
    about_locks, about_popularity = caught.value.problems
    assert "locks" in about_locks
    assert "NIX_POPULARITY_URL" in about_popularity
    assert not [*storage.glob("temporary/server-*"), *storage.glob("gc-roots/server-*")]


def test_a_storage_that_cannot_be_created_is_one_problem(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = Settings.from_environment(environment | {"STORAGE_PATH": str(tmp_path / "file" / "storage")})
    with pytest.raises(SettingsError) as caught:
        prepare(settings, serving=False)
    (problem,) = caught.value.problems
    assert str(tmp_path / "file") in problem
