from nixery.layering.popularity import Popularity
from tests.unit.layering.graphs import path


def test_a_name_with_its_version_goes_before_one_without() -> None:
    glibc = path(1, "glibc-2.36")
    assert Popularity({"glibc": 7}).count(glibc) == 7
    assert Popularity({"glibc": 7, "glibc-2.36": 9}).count(glibc) == 9
    assert Popularity({"glibc-2.35": 9}).count(glibc) == 1


def test_nothing_counts_less_than_one() -> None:
    assert Popularity({"p": 0}).count(path(1, "p-1")) == 1
