"""Compare rules for layers on all of Debian: ``python -m scripts.bench_layers``, run by ``make bench-layers``.

A fleet of nodes pulls images, packages are updated, and the nodes pull again;
docs/reference/layering-comparison.md has the details. One process, a few minutes. ``--tried`` also compares
rejected rules; ``--plot FILE`` draws the bytes that are pulled.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nixery.layering.grouping import group_into_layers
from nixery.layering.popularity import Popularity
from scripts.bench_layers.debian import Derivation, load, realise, reference_counts
from scripts.bench_layers.fleet import make_fleet, updates
from scripts.bench_layers.plot import bars
from scripts.bench_layers.rivals import docker_tools, dominator_tree, nixery, one_path_each, single_layer
from scripts.bench_layers.simulation import Rule, Score, seconds_for_a_large_closure, simulate
from scripts.bench_layers.tried import tried

_PACKAGE_SET = Path("packagesets/debian")
_RESULT = Path("var/bench/layers.json")

# Layers of an image, including the one with its root file system.
_BUDGETS = (20, 64, 94)
_IMAGES, _NODES, _IMAGES_OF_A_NODE = 2_000, 50, 40
_ROUNDS, _SHARE_UPDATED = 3, 0.005
_GIGABYTE = 1e9

_OURS = "ours"

Scores = dict[str, dict[int, Score]]


def main() -> None:
    """Measure, print and save the results."""
    options = _options()
    console = Console(highlight=False)
    derivations = load(_PACKAGE_SET, f"{platform.machine()}-linux")
    started = time.monotonic()
    scores = _scores(console, derivations, options.seed, with_tried=options.tried)
    seconds = seconds_for_a_large_closure()
    _show(console, scores)
    console.print(f"10,000 paths with 60,000 references are grouped in {seconds:.2f} s")
    console.print(f"{len(derivations)} derivations, {time.monotonic() - started:.0f} s; {_RESULT}")
    _RESULT.parent.mkdir(parents=True, exist_ok=True)
    document = {name: {b: asdict(score) for b, score in of.items()} for name, of in scores.items()}
    _RESULT.write_text(json.dumps({"scores": document, "grouping_seconds": seconds}, indent=2))
    if options.plot:
        options.plot.write_text(_plot(scores))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tried", action="store_true", help="also compare rejected rules")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG")
    parser.add_argument("--seed", type=int, default=1, help="of the fleet and of the updates")
    return parser.parse_args()


def _rules(popularity: Popularity, *, with_tried: bool) -> dict[str, Rule]:
    def ours(data: Popularity) -> Rule:
        return lambda closure, _requested: (
            lambda budget: [group.paths for group in group_into_layers(closure, data, budget)]
        )

    rules = {
        "single layer": single_layer,
        "dockerTools' popularity": docker_tools,
        "one path each": one_path_each,
        "Nixery": nixery(popularity),
        _OURS: ours(popularity),
    }
    if with_tried:
        rules |= {
            "Nixery, no popularity data": nixery(Popularity()),
            "dominators, own sizes": dominator_tree(popularity),
            "ours, no popularity data": ours(Popularity()),
        }
        rules |= tried(popularity)
    return rules


def _scores(console: Console, derivations: list[Derivation], seed: int, *, with_tried: bool) -> Scores:
    counts = reference_counts(derivations)
    popularity = Popularity({d.name: count for d, count in zip(derivations, counts, strict=True)})
    fleet = make_fleet(derivations, _IMAGES, _NODES, _IMAGES_OF_A_NODE, seed)
    states = [realise(derivations, state) for state in updates(derivations, _ROUNDS, _SHARE_UPDATED, seed)]
    scores: Scores = {}
    for name, rule in _rules(popularity, with_tried=with_tried).items():
        with console.status(name):
            scores[name] = simulate(rule, _BUDGETS, fleet, states)
    return scores


def _show(console: Console, scores: Scores) -> None:
    table = Table(title="GB pulled / GB stored, by the number of layers")
    table.add_column("rule")
    for budget in _BUDGETS:
        table.add_column(str(budget), justify="right")
    for name, of in scores.items():
        table.add_row(
            name, *(f"{s.pulled / _GIGABYTE:.1f} / {s.stored / _GIGABYTE:.1f}" for s in of.values())
        )
    console.print(table)
    for budget in _BUDGETS:
        best = min(scores, key=lambda name: scores[name][budget].pulled if _is_rival(name) else 1 << 80)
        pulled, least = scores[_OURS][budget].pulled, scores[best][budget].pulled
        console.print(
            f"{budget} layers: ours pulls {pulled / least:.0%} of the bytes of the best other rule ({best})"
        )


def _is_rival(name: str) -> bool:
    return name in {"single layer", "dockerTools' popularity", "one path each", "Nixery"}


def _plot(scores: Mapping[str, Mapping[int, Score]]) -> str:
    values = {
        name: {f"{budget} layers": score.pulled / _GIGABYTE for budget, score in of.items()}
        for name, of in scores.items()
        if _is_rival(name) or name == _OURS
    }
    return bars("Bytes pulled by the fleet", "GB", values)


if __name__ == "__main__":
    main()
