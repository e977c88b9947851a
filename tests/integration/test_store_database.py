"""Nix's database is read as Nix's own programs read it, or not at all."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from pathlib import Path

import pytest

from nixery.closure import Closure, StorePath
from nixery.errors import AnswerTooLarge
from nixery.nix.realisation import parse_registrations
from nixery.nix.store_database import StoreDatabase, has_local_store
from tests.support.nix import PACKAGE_SETS

_STATE = Path(os.environ.get("NIX_STATE_DIR", "/nix/var/nix"))
_NAMES = ("hello", "left", "right", "selfreference")


def nix(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture(scope="module")
def derivations() -> list[str]:
    selected = [word for name in _NAMES for word in ("--attr", name)]
    return [
        text.partition("!")[0]
        for text in nix("nix-instantiate", str(PACKAGE_SETS), "--argstr", "system", "x86_64-linux", *selected)
    ]


@pytest.fixture(scope="module")
def outputs(derivations: list[str]) -> list[str]:
    return nix("nix-store", "--realise", *derivations)


def test_the_closure_is_the_one_that_nix_describes(outputs: list[str]) -> None:
    requisites = nix("nix-store", "--query", "--requisites", *outputs)
    text = subprocess.run(
        ["nix-store", "--dump-db", *requisites], capture_output=True, text=True, check=True
    ).stdout
    expected = Closure(parse_registrations(text))
    found = StoreDatabase(_STATE).closure([StorePath.parse(path) for path in outputs], 1 << 20)
    assert found is not None
    assert list(found) == list(expected)
    assert any(info.references for info in found)
    assert any(info.refers_to_itself for info in found)


def test_outputs_of_derivations_are_those_that_nix_realises(
    derivations: list[str], outputs: list[str]
) -> None:
    named = [f"{derivation}!out" for derivation in derivations]
    realised = nix("nix-store", "--realise", *named)
    provided = StoreDatabase(_STATE).provided([*named, outputs[0]])
    assert provided == frozenset(StorePath.parse(path) for path in [*realised, outputs[0]])


def test_what_is_not_valid_is_left_to_nix(derivations: list[str], outputs: list[str]) -> None:
    database = StoreDatabase(_STATE)
    absent = f"/nix/store/{'0' * 32}-absent"
    assert database.provided([outputs[0], absent]) is None
    assert database.provided([f"{derivations[0]}!nosuchoutput"]) is None
    assert database.provided([f"{absent}.drv!out"]) is None
    assert database.closure([StorePath.parse(outputs[0]), StorePath.parse(absent)], 1 << 20) is None


def test_a_closure_has_a_limit(outputs: list[str]) -> None:
    with pytest.raises(AnswerTooLarge, match="store paths"):
        StoreDatabase(_STATE).closure([StorePath.parse(path) for path in outputs], 100)


def test_without_a_database_only_nix_knows(tmp_path: Path, outputs: list[str]) -> None:
    assert StoreDatabase(tmp_path).provided(outputs) is None
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "db.sqlite").write_text("no database")
    assert StoreDatabase(tmp_path).provided(outputs) is None


def test_paths_of_a_database_whose_files_are_gone_are_left_to_nix(tmp_path: Path) -> None:
    gone = f"/nix/store/{'1' * 32}-deleted-by-hand"
    (tmp_path / "db").mkdir()
    with sqlite3.connect(tmp_path / "db" / "db.sqlite") as database:
        database.execute("CREATE TABLE ValidPaths (id INTEGER, path TEXT, hash TEXT, narSize, deriver)")
        database.execute("CREATE TABLE DerivationOutputs (drv INTEGER, id TEXT, path TEXT)")
        database.execute("CREATE TABLE Refs (referrer INTEGER, reference INTEGER)")
        database.execute("INSERT INTO ValidPaths VALUES (1, ?, ?, 1, NULL)", (gone, f"sha256:{'0' * 64}"))
    found = StoreDatabase(tmp_path)
    assert found.closure([StorePath.parse(gone)], 1000) is not None
    assert found.provided([gone]) is None


@pytest.mark.parametrize(
    ("options", "environment", "local"),
    [
        ((), {}, True),
        (("--option", "cores", "2"), {"NIX_REMOTE": "daemon"}, True),
        (("--store", "/elsewhere"), {}, False),
        (("--option", "store", "ssh://builder"), {}, False),
        ((), {"NIX_REMOTE": "ssh://builder"}, False),
        ((), {"NIX_STORE_DIR": "/elsewhere"}, False),
    ],
)
def test_other_stores_are_left_to_nix(
    options: tuple[str, ...],
    environment: dict[str, str],
    local: bool,  # noqa: FBT001
) -> None:
    assert has_local_store(options, environment) is local
