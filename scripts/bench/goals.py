"""Performance goals. A missed goal is reported but is no failure: machines differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scripts.bench.hot_path import Kind, Results, ratios
from scripts.bench.packing import Packing
from scripts.peers.nixery_with_rules import NAME as WITH_TOKEN

OURS = "nixery"

_SMALL_OF_NGINX = 0.25
_BIG_OF_NGINX = 0.9
_SMALL_OF_REGISTRY = 2.0
_LATENCY = 0.05
_TOKEN = 0.8

# /v2/ is not a file at nginx by nature, and the manifest by digest has the bytes of that by tag.
_NGINX_SMALL = ("blob of 2 KB", "manifest by tag")


@dataclass(frozen=True)
class Goal:
    """A goal and the value reached."""

    name: str
    wanted: str
    reached: str
    is_met: bool


def goals(results: Results, packing: Packing | None) -> Iterator[Goal]:
    """Yield the goals of all measurements."""
    for case, figures in results.items():
        for peer, ratio in ratios(figures, OURS):
            wanted = _wanted(case.name, case.kind, peer)
            if wanted is not None:
                yield Goal(
                    f"{case.name}, as a multiple of {peer}",
                    f"≥ {wanted:g}",
                    f"{ratio:.2f}",
                    ratio >= wanted,
                )
        both = {name: figures[name] for name in (OURS, WITH_TOKEN) if name in figures}
        for _, ratio in ratios(both, WITH_TOKEN) if WITH_TOKEN in both else ():
            yield Goal(
                f"{case.name} with access rules and a token, as a multiple of without",
                f"≥ {_TOKEN:g}",
                f"{ratio:.2f}",
                ratio >= _TOKEN,
            )
    if packing is None:
        return
    late = packing.busy.percentile(99)
    yield Goal(
        "/v2/, p99 while two layers are packed",
        f"< {_LATENCY * 1e3:g} ms",
        "-" if late is None else f"{late * 1e3:.1f} ms",
        late is not None and late < _LATENCY,
    )


def _wanted(case: str, kind: Kind, peer: str) -> float | None:
    match peer, kind:
        case "nginx", Kind.BIG:
            return _BIG_OF_NGINX if case.startswith("blob") else None
        case "nginx", Kind.SMALL:
            return _SMALL_OF_NGINX if case in _NGINX_SMALL else None
        case "docker-registry", Kind.SMALL:
            return _SMALL_OF_REGISTRY
        case _:
            return None
