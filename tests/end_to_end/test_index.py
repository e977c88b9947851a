"""The package index of Debian's set: a sample of its attributes has the same result as in a request."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from nixery.image.platform import AMD64
from nixery.image.spelling import AttributeNames
from nixery.nix.evaluation import Evaluation, Flaw
from nixery.nix.indexing import IndexEvaluation, Reported, parse_entry
from nixery.nix.options import NixOptions
from nixery.nix.packages import NixFiles, Package
from tests.support.nix import nix_environment

SET = Path(__file__).resolve().parents[2] / "packagesets/debian"

# Every so many attributes make a sample of this size.
SAMPLE = 500


async def test_500_attributes_are_the_same_in_the_index_and_in_a_request(tmp_path: Path) -> None:
    environment = {**os.environ, **nix_environment(tmp_path)}
    options = NixOptions(environment=environment, fetching=environment, building=environment)
    files = NixFiles(SET, self_contained=False)
    index = IndexEvaluation(AMD64, files, options, 300)
    (names,) = await index.names([()])
    assert names is not None
    spelling = AttributeNames({(): names})
    written = [(name, spelled) for name in names if (spelled := spelling.spell((name,))) is not None]
    sample = dict(written[:: max(1, len(written) // SAMPLE)][:SAMPLE])
    assert len(sample) == SAMPLE
    reported: list[Reported] = []
    assert await index.describe([(name,) for name in sample], reported.append, SAMPLE) == 0
    items = await Evaluation(AMD64, files, 300, options).of(list(sample.values()), ())
    evaluated: dict[str, list[object]] = {}
    for item in items:
        assert not isinstance(item, Flaw), item
        evaluated.setdefault(item.requested_name, []).append(item)
    for each in reported:
        spelled = sample[each.path[0]]
        found = parse_entry(each.path, each.entry or b"").items
        assert found is not None, each.path
        packages = [replace(item, requested_name=spelled) for item in found if isinstance(item, Package)]
        assert len(packages) == len(found)
        assert packages == evaluated[spelled]
