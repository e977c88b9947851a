"""Cached evaluations, in a real storage, with fakes of Nix and of the source."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from pydantic import ValidationError

from nixery.builds.evaluation_cache import EVALUATED, EvaluationCache
from nixery.builds.evaluator import Evaluator
from nixery.closure import StorePath
from nixery.errors import AnswerTooLarge, InvalidName, PackagesUnavailable, Reason, UnavailablePackage
from nixery.image.meta_packages import FACTS
from nixery.image.name import parse_image_name
from nixery.image.platform import AMD64, Platform
from nixery.nix.packages import (
    Contents,
    Definition,
    EvaluatedItem,
    Facts,
    MetaPackageFound,
    NixFiles,
    Package,
    PackageSet,
)
from nixery.oci.documents import ExecutionParameters
from nixery.sources.source import Pin, Reference
from nixery.storage.records import EVALUATIONS, RecordStore

if TYPE_CHECKING:
    from nixery.nix.realisation import Nix

SET = NixFiles(Path("/set"), self_contained=True)
PIN = Pin("fake:", "one", "one")


def keys_read(records: RecordStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that gets the key of each record that is read from now on."""
    read: list[str] = []
    get = records.get

    async def noted(kind: str, key: str) -> bytes | None:
        read.append(key)
        return await get(kind, key)

    monkeypatch.setattr(records, "get", noted)
    return read


class World:
    """Stands in for Nix and for the source; its derivations exist if ``alive``."""

    description = "fake:"

    def __init__(self, records: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[set[str]] = []
        self.opened: list[Pin] = []
        self.alive = True
        monkeypatch.setattr("nixery.builds.evaluation_cache.os.path.lexists", lambda _: self.alive)
        self.records = records

    def evaluator(self, identity: str = "this program") -> Evaluator:
        """An evaluator of another process, which has only the records."""
        return Evaluator(self, cast("Nix", self), EvaluationCache(self.records, identity))

    async def built(self, name: str) -> Contents:
        """Evaluate as a successful build does."""
        evaluator, request = self.evaluator(), parse_image_name(name)
        contents = await evaluator.contents(request, PIN)
        await evaluator.keep(request, PIN)
        return contents

    def reference(self, tag: str) -> Reference:
        raise NotImplementedError(tag)

    def may_mean(self, reference: Reference, pin: Pin) -> bool:  # noqa: ARG002
        return True

    async def resolve(self, reference: Reference) -> Pin:
        raise NotImplementedError(reference)

    async def require_reachable(self, reference: Reference) -> None:
        raise NotImplementedError(reference)

    async def confirm(self, pin: Pin) -> None:
        raise NotImplementedError(pin)

    @asynccontextmanager
    async def open(self, pin: Pin) -> AsyncIterator[PackageSet]:
        self.opened.append(pin)
        yield SET

    async def evaluate(
        self, wanted: Sequence[str], optional: Sequence[str], platform: Platform, package_set: PackageSet
    ) -> Mapping[str, Sequence[EvaluatedItem]]:
        assert package_set == SET
        self.asked.append({*wanted, *optional})
        return {**{name: _found(name, platform) for name in wanted}, **dict.fromkeys(optional, ())}


def _found(name: str, platform: Platform) -> Sequence[EvaluatedItem]:
    path = StorePath("a" * 32 + f"-{name}-{platform.architecture.name}")
    if name.startswith("missing"):
        return (UnavailablePackage(name, Reason.MISSING, near_names=("git",)),)
    if name.startswith("throws"):
        return (UnavailablePackage(name, Reason.THROWS, "network is down"),)
    package = Package(name, name, path, {"out": path}, name, "1.0")
    if name.startswith("image"):
        execution = ExecutionParameters(cmd=("serve",), labels={"a": "b"}, healthcheck={"Test": ["NONE"]})
        return (Definition(name, name, execution, 5, (f"{path}!out",), (path,)), package)
    if name.startswith("outputs"):
        outputs = {f"o{number}": StorePath(f"{number:032}-o") for number in range(32)}
        return (replace(package, outputs=outputs),) * 1500
    return (package,) * 1500 if name.startswith("many") else (package,)


@pytest.fixture
def world(records: RecordStore, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(records, monkeypatch)


async def test_only_unknown_names_are_evaluated(world: World) -> None:
    one = await world.built("git/curl")
    two = await world.built("git/curl/htop")
    assert world.asked == [{"git", "curl", "cacert", "iana-etc", FACTS}, {"htop"}]
    assert {package.name for package in two.packages} == {"git", "curl", "htop"}
    again = await world.evaluator().contents(parse_image_name("git/curl"), PIN)
    assert again == one
    assert len(world.asked) == len(world.opened) == 2


async def test_a_stored_evaluation_equals_the_original(world: World) -> None:
    first = await world.built("image/git")
    assert await world.evaluator().contents(parse_image_name("image/git"), PIN) == first
    assert first.definition is not None
    assert first.definition.execution.cmd == ("serve",)
    assert len(world.asked) == 1


@pytest.mark.parametrize(
    ("name", "pin", "identity"),
    [
        ("arm64/git", PIN, "this program"),
        ("git", Pin("fake:", "two", "two"), "this program"),
        ("git", Pin("fake:other", "one", "one"), "this program"),
        ("git", PIN, "another program"),
    ],
)
async def test_an_evaluation_depends_on_platform_pin_source_and_program(
    world: World, name: str, pin: Pin, identity: str
) -> None:
    await world.built("git")
    await world.evaluator(identity).contents(parse_image_name(name), pin)
    assert "git" in world.asked[1]


async def test_collected_derivations_are_evaluated_again(world: World) -> None:
    await world.built("git")
    world.alive = False
    await world.evaluator().contents(parse_image_name("git"), PIN)
    assert "git" in world.asked[1]


async def test_a_missing_package_is_cached(world: World) -> None:
    evaluator = world.evaluator()
    for _ in range(3):
        with pytest.raises(PackagesUnavailable) as raised:
            await evaluator.contents(parse_image_name("missing/git"), PIN)
        assert raised.value.packages == (UnavailablePackage("missing", Reason.MISSING, near_names=("git",)),)
    assert len(world.asked) == 1


async def test_a_package_that_throws_is_not_cached(world: World) -> None:
    evaluator = world.evaluator()
    for _ in range(2):
        with pytest.raises(PackagesUnavailable):
            await evaluator.contents(parse_image_name("throws"), PIN)
    assert "throws" in world.asked[1]


async def test_an_optional_package_that_is_requested_is_evaluated_again(world: World) -> None:
    assert len((await world.built("git")).packages) == 1
    found = await world.evaluator().contents(parse_image_name("cacert"), PIN)
    assert {package.name for package in found.packages} == {"cacert"}


async def test_a_shell_that_is_not_available_is_called_as_the_client_wrote_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nixery.image.name.SHELL", "missing-shell")
    monkeypatch.setattr("nixery.builds.evaluator._WORDS", {"missing-shell": "shell"})
    with pytest.raises(PackagesUnavailable) as raised:
        await world.evaluator().contents(parse_image_name("shell/missing"), PIN)
    assert {package.name for package in raised.value.packages} == {"missing", "shell"}


async def test_an_image_with_two_definitions_is_rejected(world: World) -> None:
    with pytest.raises(InvalidName, match="image-a and image-b are image definitions"):
        await world.evaluator().contents(parse_image_name("image-a/git/image-b"), PIN)


@pytest.mark.parametrize("content", [b"", b"{", b'[{"name": 1}]', b"null"])
async def test_a_torn_record_of_an_evaluation_is_overwritten(
    world: World, tmp_path: Path, content: bytes
) -> None:
    await world.built("git")
    for record in [path for path in (tmp_path / "records").rglob("*") if path.is_file()]:
        record.chmod(0o600)
        record.write_bytes(content)
    for _ in range(2):
        await world.built("git")
    assert [("git" in names) for names in world.asked] == [True, True]


async def test_a_missing_optional_package_is_left_out_even_if_cached_as_missing(world: World) -> None:
    await world.built("git")
    # The cached answer for a client that requests a package of every image from a set without it.
    missing = (UnavailablePackage("iana-etc", Reason.MISSING),)
    platform = parse_image_name("git").platform
    cache = EvaluationCache(world.records, "this program")
    cache.add(PIN, platform, "iana-etc", missing)
    evaluator = Evaluator(world, cast("Nix", world), cache)
    with pytest.raises(PackagesUnavailable, match="iana-etc"):
        await evaluator.contents(parse_image_name("iana-etc"), PIN)
    contents = await evaluator.contents(parse_image_name("git"), PIN)
    assert [package.name for package in contents.packages] == ["git"]


async def test_an_image_with_too_many_packages_is_rejected(world: World) -> None:
    assert (
        len((await world.evaluator().contents(parse_image_name("many1/many2/many3"), PIN)).packages) == 4500
    )
    with pytest.raises(InvalidName, match="it stands for 6000 packages, and 5000 is the limit"):
        await world.evaluator().contents(parse_image_name("many1/many2/many3/many4"), PIN)


@pytest.mark.security
async def test_an_image_with_more_outputs_than_a_command_takes_is_rejected(world: World) -> None:
    """Sorting a hundred thousand stopped the server for half a second at each request."""
    with pytest.raises(AnswerTooLarge, match="what Nix has to provide"):
        await world.evaluator().contents(parse_image_name("outputs"), PIN)


async def test_stored_lists_beyond_the_most_packages_of_an_image_are_not_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of a hundred lists, each with its own record, took a gigabyte."""
    names = [f"many{number}" for number in range(30)]
    for name in names:
        await world.built(name)
    read = keys_read(world.records, monkeypatch)
    with pytest.raises(InvalidName, match=r"stands for at least \d+ packages, and 5000 is the limit"):
        await world.evaluator().contents(parse_image_name("/".join(names)), PIN)
    assert len(read) <= 8


@pytest.mark.security
async def test_a_description_of_an_image_reads_few_planted_lists(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page of an image read the records of all its names at once, each of up to 4 MiB."""
    names = [f"many{number}" for number in range(30)]
    for name in names:
        await world.built(name)
    read = keys_read(world.records, monkeypatch)
    assert len(await world.evaluator().known(parse_image_name("/".join(names)), PIN)) == 5000
    assert len(read) <= 8


async def test_an_evaluation_is_stored_only_after_its_image_is_built(world: World) -> None:
    evaluator = world.evaluator()
    for number in range(5):
        with pytest.raises(PackagesUnavailable):
            await evaluator.contents(parse_image_name(f"git/missing{number}"), PIN)
    assert [record async for record in world.records.scan("evaluations")] == []
    # It is cached in memory nevertheless.
    assert [("git" in names) for names in world.asked] == [True] + [False] * 4
    await world.built("git")
    assert len([record async for record in world.records.scan("evaluations")]) == 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("-git-amd64", "/../../../etc/passwd"),
        ('"base_name":"', '"base_name":"../'),
        ("-git-amd64!out", "-git-amd64 --option sandbox false!out"),
        ("/nix/store/", "--option"),
    ],
)
async def test_a_record_with_anything_but_store_paths_is_ignored(
    world: World, old: str, new: str, tmp_path: Path
) -> None:
    await world.built("image/git")
    for path in [path for path in (tmp_path / "records").rglob("*") if path.is_file()]:
        text = path.read_text()
        path.unlink()
        path.write_text(text.replace(old, new).replace(old.replace("git", "image"), new))
    await world.built("image/git")
    assert {"image"} & world.asked[-1]
    assert len(world.asked) == 2


@pytest.mark.security
@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["execution"].update(working_directory="/a" * 1000),
        lambda found: found["execution"].update(working_directory="../etc"),
        lambda found: found["execution"].update(volumes=[f"/{number}" for number in range(1000)]),
        lambda found: found["execution"].update(user="9" * 5000),
        lambda found: found["execution"].update(env=["PATH\0"]),
        lambda found: found.update(layers=10**12),
        lambda found: found.update(installables=[found["installables"][0] + "x" * 100_000]),
        lambda found: found.update(installables=[found["installables"][0] + "^*"]),
    ],
    ids=["deep", "above", "volumes", "user", "variable", "layers", "long output", "other output"],
)
async def test_a_planted_definition_that_no_evaluation_returns(
    change: Callable[[dict[str, Any]], None], world: World
) -> None:
    """A million nested directories took all memory, or the worker thread for ever, before anything bounded them."""
    first = await world.built("image")
    for record in [record async for record in world.records.scan(EVALUATIONS)]:
        items = json.loads(await world.records.get(EVALUATIONS, record.key) or b"")
        for item in items:
            if "execution" in item:
                change(item)
                await world.records.put(EVALUATIONS, record.key, json.dumps(items).encode())
    assert await world.evaluator().contents(parse_image_name("image"), PIN) == first
    assert world.asked[1:] == [{"image"}]


@pytest.mark.security
@pytest.mark.parametrize("output", ["", "*", "x" * 100_000], ids=["none", "other", "long"])
async def test_a_planted_package_with_an_output_that_no_package_has(output: str, world: World) -> None:
    first = await world.built("git")
    for record in [record async for record in world.records.scan(EVALUATIONS)]:
        items = json.loads(await world.records.get(EVALUATIONS, record.key) or b"")
        for item in items:
            if item["name"] == "git":
                item["outputs"] = {output: item["outputs"]["out"]}
                await world.records.put(EVALUATIONS, record.key, json.dumps(items).encode())
    assert await world.evaluator().contents(parse_image_name("git"), PIN) == first


@pytest.mark.security
async def test_a_planted_explanation(world: World) -> None:
    """No record has one: the error that clients get would be as large as the record, and anybody's words."""
    first = await world.built("git")
    planted = {"name": "git", "reason": "does not evaluate", "explanation": "x" * 1_000_000, "near_names": []}
    for record in [record async for record in world.records.scan(EVALUATIONS)]:
        await world.records.put(EVALUATIONS, record.key, json.dumps([planted]).encode())
    assert await world.evaluator().contents(parse_image_name("git"), PIN) == first


def test_records_have_every_kind_of_item() -> None:
    package = _found("git", AMD64)[0]
    items: Sequence[EvaluatedItem] = (
        MetaPackageFound("ci", ("bash",)),
        package,
        Facts({"ID": "x", "NAME": "x"}),
        _found("image", AMD64)[0],
    )
    assert EVALUATED.validate_json(EVALUATED.dump_json(list(items))) == list(items)


@pytest.mark.security
def test_a_planted_evaluation_is_read_up_to_its_first_wrong_item() -> None:
    """50,000 wrong ones, each compared with every kind of item, held all threads for two seconds."""
    with pytest.raises(ValidationError) as error:
        EVALUATED.validate_json(b"[" + b",".join([b"{}"] * 10_000) + b"]")
    assert error.value.error_count() < 100
