import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixery.errors import InvalidDigest, InvalidName, InvalidReference
from nixery.image.meta_packages import SHELL
from nixery.image.name import (
    Tag,
    canonical_name,
    canonical_names,
    parse_image_name,
    parse_reference,
    requests_for,
    validate_name,
)
from nixery.image.platform import AMD64, ARM64
from nixery.oci.digest import Digest


def test_components_are_packages() -> None:
    request = parse_image_name("git/htop")
    assert request.packages == request.requested == ("git", "htop")
    assert request.optional_packages == ("cacert", "iana-etc")
    assert not request.shell


def test_order_and_repetition_change_nothing() -> None:
    requests = {
        parse_image_name("/".join(order)) for order in itertools.permutations(["git", "htop", "jq", "git"])
    }
    assert len(requests) == 1


def test_names_and_contents_are_delimited() -> None:
    assert parse_image_name("a/bc") != parse_image_name("ab/c")


def test_shell_at_the_beginning_is_a_meta_package() -> None:
    request = parse_image_name("shell/git")
    assert request.shell
    assert request.requested == ("git",)
    assert set(request.packages) == {"git", SHELL}


def test_shell_after_a_package_is_a_package() -> None:
    request = parse_image_name("git/shell")
    assert not request.shell
    assert request.packages == ("git", "shell")


@pytest.mark.parametrize("name", ["arm64/shell/hello", "shell/arm64/hello", "shell/arm64/arm64/shell/hello"])
def test_meta_packages_come_first_in_any_order(name: str) -> None:
    request = parse_image_name(name)
    assert (request.platform, request.shell, request.requested) == (ARM64, True, ("hello",))


def test_the_platform_is_part_of_the_request() -> None:
    assert parse_image_name("hello").platform == AMD64
    assert parse_image_name("hello") == parse_image_name("amd64/hello")
    assert parse_image_name("hello") != parse_image_name("arm64/hello")
    assert parse_image_name("hello", ARM64) == parse_image_name("arm64/hello")


def test_two_platforms_contradict() -> None:
    with pytest.raises(InvalidName, match="amd64 and arm64"):
        parse_image_name("arm64/amd64/hello")


def test_a_requested_package_is_not_optional() -> None:
    assert parse_image_name("cacert").optional_packages == ("iana-etc",)


@pytest.mark.parametrize("name", ["a", "a.b", "a__b", "a---b", "1password", "a/b.c/d_e", "python3.11"])
def test_valid_names(name: str) -> None:
    validate_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "/", "A", "a//b", "/a", "a/", "a..b", "a___b", "-a", "a-", "a b", "a\n", "ä", "$(x)", "a" * 256],
)
def test_invalid_names(name: str) -> None:
    with pytest.raises(InvalidName):
        parse_image_name(name)


@given(st.from_regex(re.compile(r"[a-z0-9._/-]{1,40}", re.ASCII), fullmatch=True))
def test_the_canonical_name_keeps_the_packages(name: str) -> None:
    try:
        request = parse_image_name(name)
    except InvalidName:
        return
    assert set(request.requested) <= set(name.split("/"))
    assert list(request.packages) == sorted(set(request.packages))


def test_the_library_prefix_of_docker_is_removed() -> None:
    assert parse_image_name("library/hello") == parse_image_name("hello")
    assert parse_image_name("library/shell") == parse_image_name("shell")
    assert parse_image_name("library/hello/git").requested == ("git", "hello", "library")
    assert parse_image_name("library").requested == ("library",)


_BOTH = (AMD64, ARM64)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["shell", "amd64", "arm64", "library", "git", "zlib"]), min_size=1, max_size=6)
)
def test_one_name_stands_for_all_names_of_an_image(components: list[str]) -> None:
    name = "/".join(components)
    try:
        requests = requests_for(name, _BOTH)
    except InvalidName:
        with pytest.raises(InvalidName):
            canonical_name(name)
        return
    canonical = canonical_name(name)
    assert requests_for(canonical, _BOTH) == requests
    assert canonical_name(canonical) == canonical
    # From the request back to its name, of which nothing but the platform is lost.
    for request in requests:
        assert canonical in canonical_names(request)
        for one in canonical_names(request):
            assert request in requests_for(one, _BOTH)
    for order in itertools.permutations(components, min(len(components), 4)):
        other = "/".join(order)
        try:
            same = requests_for(other, _BOTH) == requests
        except InvalidName:
            continue
        assert (canonical_name(other) == canonical) == same


def test_a_reference_with_a_colon_is_a_digest() -> None:
    assert parse_reference(str(Digest.of(b""))) == Digest.of(b"")


@pytest.mark.parametrize("text", ["latest", "_", "v1.2-rc_3", "A" * 128])
def test_valid_tags_are_parsed(text: str) -> None:
    assert parse_reference(text) == Tag(text)


@pytest.mark.parametrize("text", ["", ".hidden", "-x", "a" * 129, "ü", "a b", ".INVALID_MANIFEST_NAME"])
def test_a_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_reference(text)


def test_a_malformed_digest_is_no_tag() -> None:
    with pytest.raises(InvalidDigest):
        parse_reference("sha256:baddigeststring")


@pytest.mark.parametrize("suffix", ["", ".sig", ".att", ".sbom"])
def test_tags_derived_from_a_digest_are_recognised(suffix: str) -> None:
    assert Tag(f"sha256-{'0' * 64}{suffix}").is_derived_from_digest
    assert not Tag(f"sha256-{'0' * 63}{suffix}").is_derived_from_digest
