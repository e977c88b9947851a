"""Random closures for property tests."""

from hypothesis import strategies as st

from nixery.closure import Closure, PathInfo, StorePath


def path(number: int, name: str | None = None) -> StorePath:
    return StorePath(f"{number:032d}-{name or f'p{number}'}")


def closure(references: dict[int, list[int]], sizes: dict[int, int] | None = None) -> Closure:
    return Closure(
        PathInfo(path(n), f"{n}", (sizes or {}).get(n, 1), tuple(sorted(path(r) for r in refs)))
        for n, refs in references.items()
    )


@st.composite
def requested_and_closure(draw: st.DrawFn) -> tuple[list[StorePath], Closure]:
    """A closure of up to 12 paths, all of them reachable from the requested ones."""
    count = draw(st.integers(1, 12))
    references = {
        n: draw(st.lists(st.integers(n + 1, count), unique=True)) if n < count else []
        for n in range(1, count + 1)
    }
    sizes = {n: draw(st.integers(1, 300_000_000)) for n in references}
    referred_to = {r for refs in references.values() for r in refs}
    requested = [n for n in references if n not in referred_to or draw(st.booleans())]
    return [path(n) for n in requested], closure(references, sizes)
