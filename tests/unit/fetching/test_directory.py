from pathlib import Path

import pytest

from nixery.errors import EvaluationFailed, PackageSetChanged, SourceUnreachable
from nixery.fetching.directory import DirectorySource
from nixery.sources.source import NixFiles


@pytest.fixture
def package_set(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "default.nix").write_text("1")
    return tmp_path / "set"


async def test_every_tag_is_the_same_and_moves(package_set: Path) -> None:
    source = DirectorySource(package_set)
    assert source.reference("latest") == source.reference("v1")
    assert source.reference("latest").moving


async def test_a_pin_is_the_content(package_set: Path) -> None:
    source = DirectorySource(package_set)
    pin = await source.resolve(source.reference("latest"))
    assert pin == await source.resolve(source.reference("latest"))
    async with source.open(pin) as path:
        assert path == NixFiles(package_set, self_contained=False)
    (package_set / "default.nix").write_text("2")
    assert pin != await source.resolve(source.reference("latest"))


async def test_an_outdated_pin_is_refused(package_set: Path) -> None:
    source = DirectorySource(package_set)
    pin = await source.resolve(source.reference("latest"))
    (package_set / "default.nix").write_text("2")
    with pytest.raises(PackageSetChanged):
        async with source.open(pin):
            pytest.fail("it was opened")


async def test_a_change_while_it_is_used(package_set: Path) -> None:
    source = DirectorySource(package_set)
    pin = await source.resolve(source.reference("latest"))
    with pytest.raises(PackageSetChanged):
        async with source.open(pin):
            (package_set / "default.nix").write_text("2")


async def test_a_failure_because_of_a_change(package_set: Path) -> None:
    # Half of the change was there already, so Nix found fault with it.
    source = DirectorySource(package_set)
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
    source = DirectorySource(current)
    before = await source.resolve(source.reference("latest"))
    current.unlink()
    current.symlink_to(other)
    after = await source.resolve(source.reference("latest"))
    assert before != after
    async with source.open(after) as path:
        assert path == NixFiles(other, self_contained=False)


async def test_a_set_that_is_gone(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path / "gone")
    with pytest.raises(SourceUnreachable) as raised:
        await source.resolve(source.reference("latest"))
    assert str(tmp_path) not in str(raised.value)
