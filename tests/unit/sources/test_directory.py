import os
from pathlib import Path

import pytest

from nixery.errors import EvaluationFailed, PackageSetChanged, SourceUnreachable
from nixery.nix.packages import NixFiles
from nixery.sources.directory import DirectorySource
from nixery.sources.source import Pin
from tests.support.repository import Repository


@pytest.fixture
def package_set(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "default.nix").write_text("1")
    return tmp_path / "set"


async def test_every_tag_is_the_same_and_moves(package_set: Path) -> None:
    source = DirectorySource(package_set, os.environ)
    assert source.reference("latest") == source.reference("v1")
    assert source.reference("latest").moving


async def test_a_pin_is_the_content(package_set: Path) -> None:
    source = DirectorySource(package_set, os.environ)
    pin = await source.resolve(source.reference("latest"))
    assert pin == await source.resolve(source.reference("latest"))
    async with source.open(pin) as path:
        assert path == NixFiles(package_set, self_contained=False)
    (package_set / "default.nix").write_text("2")
    assert pin != await source.resolve(source.reference("latest"))


async def test_an_outdated_pin_is_refused(package_set: Path) -> None:
    source = DirectorySource(package_set, os.environ)
    pin = await source.resolve(source.reference("latest"))
    (package_set / "default.nix").write_text("2")
    with pytest.raises(PackageSetChanged):
        async with source.open(pin):
            pytest.fail("it was opened")


async def test_a_change_while_it_is_used(package_set: Path) -> None:
    source = DirectorySource(package_set, os.environ)
    pin = await source.resolve(source.reference("latest"))
    with pytest.raises(PackageSetChanged):
        async with source.open(pin):
            (package_set / "default.nix").write_text("2")


async def test_a_failure_because_of_a_change(package_set: Path) -> None:
    # Half of the change was there already, so Nix found fault with it.
    source = DirectorySource(package_set, os.environ)
    pin = await source.resolve(source.reference("latest"))
    opened = source.open(pin)
    await opened.__aenter__()
    (package_set / "default.nix").write_text("2")
    error = EvaluationFailed(())
    with pytest.raises(PackageSetChanged):
        await opened.__aexit__(EvaluationFailed, error, None)
    pin = await source.resolve(source.reference("latest"))
    with pytest.raises(EvaluationFailed):
        async with source.open(pin):
            raise EvaluationFailed(())


async def test_a_link_that_is_moved(package_set: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "default.nix").write_text("2")
    current = tmp_path / "current"
    current.symlink_to(package_set)
    source = DirectorySource(current, os.environ)
    before = await source.resolve(source.reference("latest"))
    current.unlink()
    current.symlink_to(other)
    after = await source.resolve(source.reference("latest"))
    assert before != after
    async with source.open(after) as path:
        assert path == NixFiles(other, self_contained=False)


async def test_a_set_that_is_gone(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path / "gone", os.environ)
    with pytest.raises(SourceUnreachable) as raised:
        await source.resolve(source.reference("latest"))
    assert str(tmp_path) not in str(raised.value)


async def test_a_working_tree_has_better_names(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repository")
    (repository.directory / "set").mkdir()
    package_set = repository.directory / "set" / "default.nix"
    package_set.write_text("1")
    first = repository.commit("1.0")
    source = DirectorySource(package_set.parent, os.environ)

    async def pin() -> Pin:
        return await source.resolve(source.reference("latest"))

    clean = await pin()
    assert (clean.revision, clean.created, clean.url) == (first, 1_700_000_000, None)
    package_set.write_text("2")
    dirty = await pin()
    assert dirty.revision == f"{first}-dirty"
    package_set.write_text("3")
    assert (await pin()).revision == dirty.revision
    assert (await pin()).identity != dirty.identity
    second = repository.commit("1.1")
    # What git calls it is looked up anew when something has changed, so a commit alone is noticed by the next server.
    assert (
        await DirectorySource(package_set.parent, os.environ).resolve(source.reference("x"))
    ).revision == second
    # A commit elsewhere in the repository is none of this directory.
    repository.commit("1.2")
    assert (
        await DirectorySource(package_set.parent, os.environ).resolve(source.reference("x"))
    ).revision == second


async def test_what_was_read_ahead_is_only_a_start(package_set: Path) -> None:
    source = DirectorySource(package_set, os.environ)
    await source.look_ahead()
    before = await source.resolve(source.reference("latest"))
    (package_set / "default.nix").write_text("changed since")
    assert await source.resolve(source.reference("latest")) != before


async def test_reading_ahead_a_set_that_is_not_there_yet(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path / "set", os.environ)
    await source.look_ahead()
    (tmp_path / "set").mkdir()
    assert (await source.resolve(source.reference("latest"))).identity
