import pytest

from nixery.errors import InvalidDigest
from nixery.oci.digest import Digest

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_digest_of_content() -> None:
    assert str(Digest.of(b"")) == f"sha256:{EMPTY}"


def test_a_printed_digest_parses() -> None:
    assert Digest.parse(f"sha256:{EMPTY}") == Digest.of(b"")


@pytest.mark.parametrize(
    "text",
    [
        "",
        EMPTY,
        f"sha256:{EMPTY.upper()}",
        f"sha256:{EMPTY}0",
        f"sha256:{EMPTY[1:]}",
        f"sha512:{EMPTY}",
        f"sha256:{EMPTY}\n",
        "sha256:" + "٣" * 64,
    ],
)
def test_malformed_digests_are_refused(text: str) -> None:
    with pytest.raises(InvalidDigest):
        Digest.parse(text)
