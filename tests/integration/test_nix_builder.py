"""Results of the adapter for Nix that no image shows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from nixery.closure import Closure, PathInfo
from nixery.errors import PathsCollected
from nixery.image.platform import AMD64
from nixery.nix.evaluation import MOST_PROCESSES
from nixery.nix.garbage_collection import NixGarbageCollector
from nixery.nix.options import NixOptions
from nixery.nix.packages import Contents, NixFiles, Package
from nixery.nix.realisation import BATCH_PROCESSES, Nix, TimeLimits


@pytest.fixture
def builder(tmp_path: Path, settings: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Nix:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    options = NixOptions(environment=os.environ, building=os.environ)
    return Nix(TimeLimits(30, 30), NixGarbageCollector(Path("/nix/var/nix"), tmp_path), options)


async def evaluated(builder: Nix, name: str) -> Package:
    package_set = NixFiles(Path(os.environ["NIXERY_PKGS_PATH"]), self_contained=False)  # set by the fixture
    (package,) = (await builder.evaluate([name], [], AMD64, package_set))[name]
    assert isinstance(package, Package)
    return package


async def closure_of(builder: Nix, name: str) -> Closure:
    package = await evaluated(builder, name)
    async with builder.realise(Contents((package,)).installables):
        return await builder.closure(list(package.outputs.values()))


def info_of(closure: Closure, name: str) -> PathInfo:
    (info,) = [info for info in closure if info.path.name == name]
    return info


async def test_an_evaluation_describes_packages(builder: Nix) -> None:
    package = await evaluated(builder, "mainprogram")
    assert package.attribute == "mainprogram"
    assert package.derivation.name == "mainprogram-1.0.drv"
    assert {output: path.name for output, path in package.outputs.items()} == {"out": "mainprogram-1.0"}
    assert (package.name, package.version) == ("mainprogram", "1.0")
    assert package.description == "A package that says what it is for"
    assert package.licences == ("MIT", "bsd3")
    assert package.main_program == "the-program"
    assert package.priority == 5
    assert (await evaluated(builder, "clashpriority")).priority == 1


async def test_the_attribute_of_a_package(builder: Nix) -> None:
    assert (await evaluated(builder, "haskellpackages.pandoc")).attribute == "haskellPackages.pandoc"
    assert (await evaluated(builder, "1password")).attribute == "_1password"
    assert (await evaluated(builder, "ambiguous")).attribute == "Ambiguous"


async def test_outputs_to_install(builder: Nix) -> None:
    package = await evaluated(builder, "outputs")
    assert {output: path.name for output, path in package.outputs.items()} == {
        "bin": "outputs-1.0-bin",
        "man": "outputs-1.0-man",
    }


async def test_throwing_meta_data(builder: Nix) -> None:
    package = await evaluated(builder, "metathrows")
    assert (package.description, package.licences, package.main_program) == ("", (), None)


async def test_closure_of_a_diamond(builder: Nix) -> None:
    closure = await closure_of(builder, "diamond")
    references = {info.path.name: [reference.name for reference in info.references] for info in closure}
    assert {name: sorted(names) for name, names in references.items()} == {
        "diamond-1.0": ["left-1.0", "right-1.0"],
        "left-1.0": ["bottom-1.0"],
        "right-1.0": ["bottom-1.0"],
        "bottom-1.0": [],
    }


async def test_sizes_are_a_paths_own(builder: Nix) -> None:
    assert 16_000_000 < info_of(await closure_of(builder, "big"), "big-1.0").nar_size < 16_001_000
    assert info_of(await closure_of(builder, "diamond"), "diamond-1.0").nar_size < 1000


async def test_self_references_are_left_out(builder: Nix) -> None:
    assert info_of(await closure_of(builder, "selfreference"), "selfreference-1.0").references == ()


async def test_an_unknown_path(builder: Nix) -> None:
    # Evaluated, not realised, and with a unique salt.
    package = await evaluated(builder, "fails")
    with pytest.raises(PathsCollected):
        await builder.closure(list(package.outputs.values()))


async def test_nothing_to_realise(builder: Nix) -> None:
    async with builder.realise([]):
        assert list(await builder.closure([])) == []


async def test_counting_evaluates_each_of_many_broken_packages(tmp_path: Path) -> None:
    # A client's request starts a bounded number of processes; a command with thousands of names has to find
    # all.
    names = [f"p{number}" for number in range(16)]
    broken = " ".join(f'{name} = 1 + "{name}";' for name in names)
    (tmp_path / "default.nix").write_text(
        f'{{ {broken} zz = derivation {{ name = "zz"; system = "x"; builder = "/bin/sh"; }}; }}'
    )
    options = NixOptions(environment=os.environ, building=os.environ)
    package_set = NixFiles(tmp_path, self_contained=False)
    collector = NixGarbageCollector(Path("/nix/var/nix"), tmp_path)
    found = []
    for processes in (MOST_PROCESSES, BATCH_PROCESSES):
        nix = Nix(TimeLimits(30, 30), collector, options, processes=processes)
        found.append((await nix.evaluate([*names, "zz"], [], AMD64, package_set))["zz"])
    assert [isinstance(items[0], Package) for items in found] == [False, True]
