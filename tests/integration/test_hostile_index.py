"""Evaluations for the package index with real Nix, of package sets that are as large and as slow as they may be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from nixery.image.platform import AMD64
from nixery.nix import indexing
from nixery.nix.indexing import IndexEvaluation, Reported
from nixery.nix.options import NixOptions
from nixery.nix.packages import NixFiles

pytestmark = pytest.mark.security

_NUMBER = 100

_SET = """
{ system, ... }:
let
  text = builtins.concatStringsSep "" (builtins.genList (_: "0123456789abcdef") 256);
  value = derivation { name = "p"; inherit system; builder = "/bin/sh"; } // {
    meta = {
      description = text;
      programs = builtins.genList (_: builtins.substring 0 64 text) 200;
    };
  };
in
builtins.listToAttrs (builtins.genList (i: { name = "p${toString i}"; inherit value; }) 100)
"""


@pytest.fixture
def evaluation(tmp_path: Path, settings: Mapping[str, str]) -> IndexEvaluation:
    (tmp_path / "default.nix").write_text(_SET)
    options = NixOptions(environment={**os.environ, **settings})
    return IndexEvaluation(AMD64, NixFiles(tmp_path, self_contained=False), options, 60)


async def described(evaluation: IndexEvaluation) -> list[Reported]:
    found: list[Reported] = []
    await evaluation.describe([(f"p{number}",) for number in range(_NUMBER)], found.append, _NUMBER)
    assert [reported.path for reported in found] == [(f"p{number}",) for number in range(_NUMBER)]
    return found


async def test_large_attributes_do_not_add_up(evaluation: IndexEvaluation) -> None:
    sizes = [len(reported.entry or b"") for reported in await described(evaluation)]
    assert sizes[0] > 16 * 1024
    assert sum(sizes) <= _NUMBER * 8 * 1024


async def test_slow_attributes_do_not_add_up(
    evaluation: IndexEvaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_TIMEOUT", 0, raising=False)
    errors = {reported.error for reported in await described(evaluation)}
    assert errors == {"not evaluated: too many attributes take too long before it"}
