import pytest

from nixery.closure import Closure, PathInfo, StorePath

A, B = StorePath("a" * 32 + "-a"), StorePath("b" * 32 + "-b")


def test_a_closure_is_in_the_order_of_paths() -> None:
    closure = Closure([PathInfo(B, "", 1, ()), PathInfo(A, "", 1, (B,))])
    assert [info.path for info in closure] == [A, B]


def test_a_definition_may_not_refer_to_other_paths() -> None:
    with pytest.raises(ValueError, match="not in the closure"):
        Closure([PathInfo(A, "", 1, (B,))])


HASH = "zc5c8sx39b2y7gn652mjnbzmsbl4848p"


def test_a_printed_digest_parses() -> None:
    path = StorePath.parse(f"/nix/store/{HASH}-bash-5.2")
    assert str(path) == f"/nix/store/{HASH}-bash-5.2"
    assert path.name == "bash-5.2"


@pytest.mark.parametrize(
    "text",
    [
        f"{HASH}-bash",
        f"/nix/store/{HASH}-bash/bin",
        f"/nix/store/{HASH}",
        f"/nix/store/{HASH[1:]}-bash",
        f"/nix/store/{'e' * 32}-bash",
        f"/nix/store/{HASH}-ba sh",
        f"/nix/store/../store/{HASH}-bash",
    ],
)
def test_malformed_store_paths_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a store path"):
        StorePath.parse(text)


@pytest.mark.parametrize(
    ("name", "package_name"),
    [
        ("glibc-2.36", "glibc"),
        ("nss-cacert-3.92", "nss-cacert"),
        ("iana-etc", "iana-etc"),
        ("x11-utils-7.7", "x11-utils"),
    ],
)
def test_the_package_name_has_no_version(name: str, package_name: str) -> None:
    assert StorePath(f"{HASH}-{name}").package_name == package_name
