"""The package index with real Nix: failing attributes, and the same results and images as by evaluation."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nixery.app import Components, assemble
from nixery.builds import index_records
from nixery.image.platform import AMD64
from nixery.nix.indexing import IndexEvaluation, Reported, parse_entry
from nixery.nix.options import NixOptions
from nixery.nix.packages import EvaluatedItem, NixFiles
from nixery.settings import Settings
from nixery.startup import prepare
from tests.support.nix import PACKAGE_SETS, nix_environment, wait_until
from tests.support.private_nix import PrivateNix
from tests.support.server import Server, clean_environment, running_server

SET = PACKAGE_SETS / "index"

# Attributes of the set that end the evaluation, and words of the reasons.
FAILING: Mapping[tuple[str, ...], str] = {
    ("aborts",): "'gave up at …'",
    ("caf\ufffd \ufffd\ufffd",): "missing",
    ("claimsNothing",): "'outPath' missing",
    ("claimsNumber",): "cannot coerce an integer to a string",
    ("missingArgument",): "without required argument 'needed'",
    ("overflows",): "stack overflow",
    ("recursive",): "infinite recursion encountered",
    ("soundsExhausted",): "'out of memory'",
    ("soundsFull",): "'No space left on device'",
    ("typeError",): "cannot add",
    ("undefinedAttribute",): "attribute 'nothing' missing",
    ("unexpectedArgument",): "with unexpected argument 'surprise'",
    ("unreadable",): "No such file or directory",
    ("python3Packages", "fails"): "'this module is broken'",
}

# Others that no image can have, and the kind and the beginning of the reason.
UNAVAILABLE: Mapping[tuple[str, ...], tuple[str, str]] = {
    ("throws",): ("package", "does not evaluate"),
    ("asserts",): ("package", "does not evaluate"),
    ("throwsInside",): ("package", "does not evaluate"),
    ("setThrows",): ("package", "does not evaluate"),
    ("broken",): ("package", "broken"),
    ("unfree",): ("package", "unfree"),
    ("insecure",): ("package", "insecure"),
    ("elsewhere",): ("package", "not available on this platform"),
    ("mixedList",): ("list", "not a package"),
    ("images", "throwing"): ("definition", "does not evaluate"),
    ("images", "misspelt"): ("definition", "not a valid image definition"),
    ("claimsText",): ("other", ""),
    ("file",): ("other", ""),
    ("function",): ("other", ""),
    ("nothing",): ("other", ""),
    ("number",): ("other", ""),
    ("text",): ("other", ""),
    ("truth",): ("other", ""),
}


def evaluation(
    package_set: Path = SET, memory: int | None = None, seconds: float = 30, directory: Path | None = None
) -> IndexEvaluation:
    environment = {**os.environ, **(nix_environment(directory) if directory else {})}
    options = NixOptions(environment=environment, fetching=environment, building=environment, memory=memory)
    files = NixFiles(package_set, self_contained=False)
    return IndexEvaluation(AMD64, files, options, 60, attribute_timeout=seconds)


async def described(
    evaluation: IndexEvaluation, paths: Sequence[tuple[str, ...]], failures: int = 1000
) -> Mapping[tuple[str, ...], Reported]:
    found: list[Reported] = []
    await evaluation.describe(paths, found.append, failures)
    assert [each.path for each in found] == list(paths)
    return {each.path: each for each in found}


@pytest.fixture
def settings(tmp_path: Path) -> Mapping[str, str]:
    """The environment of a server in this process."""
    return {
        **clean_environment(nix_environment(tmp_path)),
        "PORT": "1",  # unused
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(tmp_path / "storage"),
        "NIX_TIMEOUT": "60",
        "NIXERY_INDEX_SETS": "images,python3Packages,haskellPackages,nested,nested.deeper",
    }


@asynccontextmanager
async def components(settings: Mapping[str, str], package_set: Path) -> AsyncIterator[Components]:
    parsed = Settings.from_environment({**settings, "NIXERY_PKGS_PATH": str(package_set)})
    async with assemble(parsed, prepare(parsed, serving=False)) as made:
        yield made


# ---- Each failing attribute costs itself alone


async def test_each_attribute_that_ends_the_evaluation_costs_itself_alone(tmp_path: Path) -> None:
    one = evaluation(directory=tmp_path)
    sets: list[tuple[str, ...]] = [(), ("images",), ("python3Packages",)]
    paths = [
        (*path, name) for path, names in zip(sets, await one.names(sets), strict=True) for name in names or ()
    ]
    found = await described(one, paths)
    failed = {path: each.error for path, each in found.items() if each.entry is None}
    assert failed.keys() == FAILING.keys()
    for path, words in FAILING.items():
        assert words in failed[path], path
    attributes = {
        path: parse_entry(path, each.entry) for path, each in found.items() if each.entry is not None
    }
    unavailable = {
        path: each for path, each in attributes.items() if each.items is None and each.kind != "set"
    }
    assert unavailable.keys() == UNAVAILABLE.keys()
    for path, (kind, reason) in UNAVAILABLE.items():
        assert (unavailable[path].kind, unavailable[path].reason[: len(reason)]) == (kind, reason), path
    assert attributes["unfree",].licences == ("Costs money",)
    assert attributes["broken",].description == "Out of order"


async def test_no_reason_has_a_path_of_this_machine(tmp_path: Path) -> None:
    one = evaluation(directory=tmp_path)
    (names,) = await one.names([()])
    for each in (await described(one, [(name,) for name in names or ()])).values():
        text = each.error
        if each.entry is not None:
            text += parse_entry(each.path, each.entry).reason
        for path in (str(SET), "/etc/", "/srv/", str(tmp_path)):
            assert path not in text, each.path


async def test_what_the_set_says_about_a_package_is_kept_within_bounds(tmp_path: Path) -> None:
    names = ["hello", "libpq", "talkative", "sentence", "latin", "controls", "metaThrows", "metaTypes"]
    names += ["manyPrograms", "manyOutputs", "flooding", "forging", "forgingLines", "forgingError"]
    found = await described(evaluation(directory=tmp_path), [(name,) for name in names])
    about = {name: parse_entry((name,), found[name,].entry or b"") for name in names}
    hello, libpq = about["hello"], about["libpq"]
    assert (hello.version, hello.description, hello.homepage) == (
        "2.12",
        "A program that greets",
        "https://hello.example",
    )
    assert (hello.main_program, hello.licences) == ("hello", ("GPL-3.0-or-later", "fdl"))
    assert hello.platforms == ("x86_64-linux", "aarch64-linux")
    assert (libpq.programs, sorted(libpq.outputs)) == (("psql", "pg_dump"), ["dev", "man", "out"])
    (package,) = libpq.items or ()
    assert sorted(getattr(package, "outputs", {})) == ["man", "out"]
    assert about["talkative"].description == ""
    assert about["latin"].description == "caf\ufffd \ufffd\ufffd"
    assert about["controls"].description == "bell \x07 \x1b[31mred\r\n\ttab"
    assert about["metaThrows"].description == about["metaTypes"].description == ""
    assert (len(about["manyPrograms"].programs), len(about["manyOutputs"].outputs)) == (200, 32)
    for name in names:
        assert about[name].path == (name,)
        assert about[name].items, name


@pytest.mark.security
async def test_forged_lines_are_ignored(tmp_path: Path) -> None:
    names = ["forging", "forgingLines", "forgingError", "hello"]
    found = await described(evaluation(directory=tmp_path), [(name,) for name in names])
    for name in names:
        attribute = parse_entry((name,), found[name,].entry or b"")
        assert (attribute.name, len(attribute.items or ())) == (name.lower(), 1)


async def test_attributes_that_never_end_or_take_all_memory_cost_themselves_alone(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "default.nix").write_text(f"arguments: import {SET} (arguments // {{ slow = true; }})\n")
    one = evaluation(slow, memory=1 << 30, seconds=1, directory=tmp_path)
    found = await described(
        one, [(name,) for name in ("hello", "endless", "jq", "hungry", "starving", "libpq")]
    )
    failed = {path[0]: each.error for path, each in found.items() if each.entry is None}
    assert failed.keys() == {"endless", "hungry", "starving"}
    assert failed["endless"] == "evaluation timed out after 1 s"
    assert "out of memory" in failed["hungry"].lower()


async def test_after_too_many_failures_the_others_are_not_evaluated(tmp_path: Path) -> None:
    names = ["hello", "aborts", "recursive", "jq", "typeError"]
    found = await described(evaluation(directory=tmp_path), [(name,) for name in names], failures=1)
    assert [each.entry is not None for each in found.values()] == [True, False, False, False, False]
    assert found["jq",].error == "not evaluated: too many attributes fail before it"


async def test_sets_that_exceed_the_arguments_of_a_command_are_listed(tmp_path: Path) -> None:
    sets: list[tuple[str, ...]] = [("x" * 200, str(number)) for number in range(2000)]
    found = await evaluation(directory=tmp_path).names([("images",), *sets, ("images",)])
    assert found[0] == found[-1] != []
    assert found[1:-1] == [None] * 2000


# ---- The same result both ways


async def same_both_ways(made: Components, names: Sequence[str]) -> int:
    """Compare the answers of the index with those of an evaluation; return for how many names the index has one."""
    pin = (await made.pins.pin("latest")).pin
    found: dict[str, Sequence[EvaluatedItem]] = {}
    for name in names:
        items = await made.index.find(pin, AMD64, name, realisable=False)
        if items is not None:
            found[name] = items
    known = list(found)
    nix = made.evaluator._nix
    assert nix is not None
    async with made.evaluator.source.open(pin) as package_set:
        for start in range(0, len(known), 50):
            batch = known[start : start + 50]
            evaluated = await nix.evaluate(batch, (), AMD64, package_set)
            for name in batch:
                assert list(found[name]) == list(evaluated[name]), name
    return len(known)


@pytest.mark.parametrize("name", ["index", "spelling", "."])
async def test_the_index_says_of_every_attribute_what_an_evaluation_says(
    settings: Mapping[str, str], tmp_path: Path, name: str
) -> None:
    # Two attributes take half a minute each.
    package_set = tmp_path / "set"
    package_set.mkdir()
    (package_set / "default.nix").write_text(
        f'arguments: removeAttrs (import {PACKAGE_SETS / name} arguments) [ "endless" ]\n'
    )
    async with components(settings, package_set) as made:
        pin = (await made.pins.pin("latest")).pin
        await made.index.evaluate(pin)
        state = made.index._recent[pin]
        spelled = [name for name in map(state._names.spell, state._number) if name is not None]
        known = await same_both_ways(made, spelled)
        unavailable = sum(
            row.kind in {"failed", "other", "set"} or bool(row.reason) for row in state.rows.values()
        )
        assert known >= len(spelled) - unavailable > 20
        missing = ["nosuchpackage", "helo", "python3packages", "images.webb", "x__2b", "hello.out", "a.b.c.d"]
        await same_both_ways(made, missing)


async def test_an_index_in_parts_says_the_same(
    settings: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_records, "PART", 7)
    async with components(settings, SET) as made:
        pin = (await made.pins.pin("latest")).pin
        await made.index.evaluate(pin)
        assert await same_both_ways(made, [package.name for package in await made.index.names("latest")]) > 20


async def test_names_aliases_programs_and_definitions_of_the_set_are_found(
    settings: Mapping[str, str],
) -> None:
    async with components(settings, SET) as made:
        await made.index.evaluate((await made.pins.pin("latest")).pin)
        search = await made.index.names("latest")
    names = {package.name: package for package in search}
    assert {"libstdc__2b__2b6", "shellcheck", "1password", "python3.11", "images.web"} <= names.keys()
    assert {"marked.inside", "marked.deeper.below", "marked.deeper.deepest.bottom"} <= names.keys()
    assert {"python3packages.numpy", "python3packages.pyyaml"} <= names.keys()
    assert not {"unmarked.inside", "markedstrangely.inside", "markedthrows.inside"} & names.keys()
    assert (names["greeter"].alias_of, names["pq"].alias_of, names["hello"].alias_of) == (
        "hello",
        "libpq",
        "",
    )
    assert [package.name for package in search.search("psql", 1)] == ["libpq"]
    assert [package.name for package in search.search("json processor", 5)] == ["jq"]
    assert [package.name for package in search.search("web tier", 5)] == ["images.web"]
    assert names["aborts"].reason.endswith(FAILING["aborts",])


# ---- Images


@pytest.fixture
def private(tmp_path: Path) -> Iterator[PrivateNix]:
    made = PrivateNix.create(tmp_path / "private")
    yield made
    made.remove()


def started(server: Server, program: str, purpose: str) -> float:
    """The number of processes of Nix that a server has started."""
    text = server.client.get("/metrics").body.decode()
    labels = {"program": program, "purpose": purpose}
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "nixery_nix_processes_total" and sample.labels == labels
    )


def wait_for_index(server: Server) -> None:
    wait_until(lambda: '"indexed the package set"' in server.log, "the package set is indexed")


def without_derivations(private: PrivateNix) -> None:
    """Delete all derivations, and keep what they built."""
    script = "nix-store --option keep-derivations false --delete /nix/store/*.drv"
    completed = private.run("sh", "-c", script)
    assert completed.returncode == 0, completed.stderr
    assert derivations(private) == []


def derivations(private: PrivateNix) -> list[str]:
    """All but those of the server's probe of the sandbox."""
    store = private.directory / "nix" / "store"
    return [path.name for path in store.glob("*.drv") if not path.name.endswith("-nixery-probe.drv")]


# As for a large package set, whose derivations are not written.
READ_ONLY = {"NIXERY_INDEX": "1", "NIXERY_INDEX_DERIVATIONS": "0"}

IMAGES = ("hello", "libpq/jq", "tools", "images.plain", "python3packages.numpy", "shellcheck", "greeter")


def test_images_of_indexed_packages_are_the_same_and_need_no_evaluation(
    private: PrivateNix, tmp_path: Path
) -> None:
    with running_server(
        tmp_path / "evaluating",
        {**private.environment(), "NIXERY_PKGS_PATH": str(SET)},
        launcher=private.launcher,
    ) as server:
        evaluated = {name: server.client.pull(name).digest for name in IMAGES}
        assert started(server, "nix-instantiate", "request") > 0
    without_derivations(private)
    with running_server(
        tmp_path / "indexing",
        {**private.environment(), **READ_ONLY, "NIXERY_PKGS_PATH": str(SET)},
        launcher=private.launcher,
    ) as server:
        wait_for_index(server)
        indexed = {name: server.client.pull(name).digest for name in IMAGES}
        assert server.client.manifest("nosuchpackage").status == 404
        assert started(server, "nix-instantiate", "request") == 0
        assert started(server, "nix-instantiate", "index") > 0
        assert started(server, "nix-store", "request") == 0
        assert derivations(private) == []
        # Its output is not in the store.
        assert server.client.manifest("twice").status == 200
        assert started(server, "nix-instantiate", "request") > 0
    assert indexed == evaluated


@pytest.mark.parametrize(
    ("package_set", "images"),
    [(SET, IMAGES), (PACKAGE_SETS / "metapackages", ("hello", "ci", "shell/hello"))],
)
def test_the_first_build_of_a_package_of_a_small_set_needs_no_evaluation(
    private: PrivateNix, tmp_path: Path, package_set: Path, images: Sequence[str]
) -> None:
    with running_server(
        tmp_path / "server",
        {**private.environment(), "NIXERY_PKGS_PATH": str(package_set), "NIXERY_INDEX": "1"},
        launcher=private.launcher,
    ) as server:
        wait_for_index(server)
        pulled = [server.client.pull(name) for name in images]
        assert started(server, "nix-instantiate", "request") == 0
        if "ci" in images:
            assert pulled[1].cmd == ["hello", "--verbose"]
            assert b"ID=acme" in pulled[0].filesystem.read("etc/os-release")
            found = server.client.get("/api/v1/packages?q=pipelines").json()["packages"]
            assert [package["name"] for package in found] == ["ci"]


def test_a_claimed_store_path_is_not_served(private: PrivateNix, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "default.nix").write_text(
        'derivation { name = "secret"; system = builtins.currentSystem; builder = "/bin/sh"; '
        'args = [ "-c" "echo secret > $out" ]; }\n'
    )
    built = private.run("sh", "-c", f"nix-store --realise $(nix-instantiate {secret})")
    assert built.returncode == 0, built.stderr
    path = built.stdout.strip()
    package_set = tmp_path / "posing"
    package_set.mkdir()
    claimed = "/nix/store/00000000000000000000000000000000-posing-1.0.drv"
    (package_set / "default.nix").write_text(
        f'arguments: import {SET} (arguments // {{ foreign = "{path}"; foreignDerivation = "{claimed}"; }})\n'
    )
    with running_server(
        tmp_path / "server",
        {**private.environment(), **READ_ONLY, "NIXERY_PKGS_PATH": str(package_set)},
        launcher=private.launcher,
    ) as server:
        wait_for_index(server)
        answer = server.client.manifest("posing")
        assert answer.status not in {200, 500}, answer.body
        assert "Traceback" not in server.log
