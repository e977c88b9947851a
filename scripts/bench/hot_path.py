"""The rates at which all servers answer frequent requests."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from scripts.bench.contents import ACCEPT, Contents
from scripts.bench.load import Load, Measurement, measure, processor_seconds, wait_until_idle
from scripts.peers.nginx import COPYING
from scripts.peers.nixery_with_rules import NAME as WITH_TOKEN
from scripts.peers.process import Peer

ROUNDS = 3
# Of each load, in each round.
SECONDS = 2


class Kind(Enum):
    """The unit of a case: responses or bytes."""

    SMALL = "requests/s"
    BIG = "MB/s"


@dataclass(frozen=True, eq=False)
class Case:
    """A load to measure, with the name that results show.

    Attributes:
        with_token: whether nixery answers it with access rules and a bearer token as well.
    """

    name: str
    kind: Kind
    load: Load
    with_token: bool = False


@dataclass(frozen=True)
class Figures:
    """The results of one case and one server.

    Attributes:
        rates: of each round, in the unit of the case.
        median_latency: seconds.
        late: the 99th percentile of the latencies, in seconds.
        processor: seconds of processor time for a request, or for a MB if the case is about bytes.
    """

    rates: tuple[float, ...]
    median_latency: float | None
    late: float | None
    processor: float

    @property
    def rate(self) -> float:
        """The median."""
        return statistics.median(self.rates)


Results = Mapping[Case, Mapping[str, Figures]]


def cases(contents: Contents) -> list[Case]:
    """Return all cases."""
    part = {"Range": "bytes=20971520-22020095"}
    return [
        Case("/v2/", Kind.SMALL, Load("/v2/"), with_token=True),
        Case("blob of 2 KB", Kind.SMALL, Load(contents.small_blob)),
        Case("manifest by tag", Kind.SMALL, Load(contents.by_tag, ACCEPT), with_token=True),
        Case("manifest by digest", Kind.SMALL, Load(contents.by_digest, ACCEPT), with_token=True),
        *(
            Case(f"blob of 50 MB, {n} at a time", Kind.BIG, Load(contents.big_blob, connections=n))
            for n in (1, 8, 64)
        ),
        Case("1 MB out of 50 MB", Kind.BIG, Load(contents.big_blob, part)),
    ]


def run(to_measure: Sequence[Case], peers: Sequence[Peer], tell: Callable[[str], None]) -> Iterator[Results]:
    """Measure all cases in rounds, the servers in turn, so that a slower phase of the machine affects all of them.

    Yields:
        The results of the rounds so far, after each of them.

    Raises:
        BenchError: a server answers with errors.
    """
    runs: dict[tuple[Case, str], list[tuple[Measurement, float]]] = {}
    for number in range(1, ROUNDS + 1):
        for case in to_measure:
            for peer in _asked(case, peers):
                tell(f"round {number} of {ROUNDS}: {case.name}, {peer.name}")
                runs.setdefault((case, peer.name), []).append(_measure(case, peer))
        yield {
            case: {peer.name: _figures(case.kind, runs[case, peer.name]) for peer in _asked(case, peers)}
            for case in to_measure
        }


def _asked(case: Case, peers: Sequence[Peer]) -> list[Peer]:
    """Leave out the second nginx for small files, where sendfile makes no difference, and tokens where they do not count."""
    return [
        peer
        for peer in peers
        if (case.kind is Kind.BIG or peer.name != COPYING) and (case.with_token or peer.name != WITH_TOKEN)
    ]


def _measure(case: Case, peer: Peer) -> tuple[Measurement, float]:
    wait_until_idle(peer.process_id)
    before = processor_seconds(peer.process_id)
    measurement = measure(peer, case.load, SECONDS)
    return measurement, processor_seconds(peer.process_id) - before


def _figures(kind: Kind, runs: list[tuple[Measurement, float]]) -> Figures:
    rates = tuple(m.requests_per_second if kind is Kind.SMALL else m.bytes_per_second / 1e6 for m, _ in runs)
    together = sum((m for m, _ in runs[1:]), start=runs[0][0])
    amount = together.requests if kind is Kind.SMALL else together.received / 1e6
    processor = sum(seconds for _, seconds in runs) / max(1, amount)
    return Figures(rates, together.percentile(50), together.percentile(99), processor)


def ratios(figures: Mapping[str, Figures], ours: str) -> Iterator[tuple[str, float]]:
    """Yield nixery's rate as a multiple of each other server's: the median of the rounds' ratios."""
    for name, theirs in figures.items():
        if name != ours and all(theirs.rates):
            rounds = zip(figures[ours].rates, theirs.rates, strict=True)
            yield name, statistics.median(our / their for our, their in rounds)
