import json
import random

from hypothesis import given
from hypothesis import strategies as st

from nixery.closure import without_version
from nixery.layering.popularity import Popularity
from tests.unit.layering.graphs import path

names = st.builds(
    lambda name, version: f"{name}-{version}" if version else name,
    st.sampled_from(["glibc", "gcc", "gcc-lib", "x"]),
    st.sampled_from(["", "1", "2.36", "2.37-rc1", "9"]),
)
all_counts = st.dictionaries(names, st.integers(0, 1000))


def test_a_name_with_its_version_takes_precedence() -> None:
    glibc = path(1, "glibc-2.36")
    assert Popularity({"glibc": 7}).count(glibc) == 7
    assert Popularity({"glibc": 7, "glibc-2.36": 9}).count(glibc) == 9
    assert Popularity({"glibc": 7, "glibc-2.36": 0}).count(glibc) == 1


def test_an_unknown_version_has_the_largest_count_of_the_others() -> None:
    glibc = path(1, "glibc-2.36")
    assert Popularity({"glibc-2.35": 9}).count(glibc) == 9
    assert Popularity({"glibc-2.35": 9, "glibc-2.34": 200, "glibc-locales-2.36": 999}).count(glibc) == 200
    assert Popularity({"glibc": 7, "glibc-2.35": 9}).count(glibc) == 7
    assert Popularity({"glibc-2.35": 9}).count(path(1, "glibc")) == 9


def test_every_count_is_at_least_one() -> None:
    assert Popularity({"p": 0}).count(path(1, "p-1")) == 1


def naive(counts: dict[str, int], name: str) -> int:
    package = without_version(name)
    others = [counts[key] for key in counts if without_version(key) == package]
    return max(1, counts.get(name, counts.get(package, max(others, default=1))))


@given(all_counts, names)
def test_counts_are_looked_up_exactly_then_without_version_then_of_other_versions(
    counts: dict[str, int], name: str
) -> None:
    assert Popularity(counts).count(path(1, name)) == naive(counts, name)


@given(all_counts, names, st.randoms(use_true_random=False))
def test_the_order_of_the_data_changes_nothing(
    counts: dict[str, int], name: str, shuffler: random.Random
) -> None:
    items = list(counts.items())
    shuffler.shuffle(items)
    one, other = Popularity(counts), Popularity(dict(items))
    assert one.identity == other.identity
    assert one.count(path(1, name)) == other.count(path(1, name))


@given(all_counts, all_counts)
def test_the_identity_depends_on_the_counts_only(one: dict[str, int], other: dict[str, int]) -> None:
    assert (Popularity(one).identity == Popularity(other).identity) == (one == other)
    again = json.loads(json.dumps(one, indent=3))
    assert Popularity(again).identity == Popularity(one).identity
