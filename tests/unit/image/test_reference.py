import pytest

from nixery.errors import InvalidDigest, InvalidReference
from nixery.image.name import Tag, parse_reference
from nixery.oci.digest import Digest


def test_a_digest_is_told_by_its_colon() -> None:
    assert parse_reference(str(Digest.of(b""))) == Digest.of(b"")


@pytest.mark.parametrize("text", ["latest", "_", "v1.2-rc_3", "A" * 128])
def test_tags(text: str) -> None:
    assert parse_reference(text) == Tag(text)


@pytest.mark.parametrize("text", ["", ".hidden", "-x", "a" * 129, "ü", "a b", ".INVALID_MANIFEST_NAME"])
def test_neither(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_reference(text)


def test_a_broken_digest_is_no_tag() -> None:
    with pytest.raises(InvalidDigest):
        parse_reference("sha256:baddigeststring")


@pytest.mark.parametrize("suffix", ["", ".sig", ".att", ".sbom"])
def test_tags_that_are_made_of_a_digest(suffix: str) -> None:
    assert Tag(f"sha256-{'0' * 64}{suffix}").is_derived_from_digest
    assert not Tag(f"sha256-{'0' * 63}{suffix}").is_derived_from_digest
