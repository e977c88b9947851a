"""Of narinfos that Nix wrote; their signatures and paths are Nix's."""

from __future__ import annotations

import pytest

from nixery.binary_caches.narinfo import (
    LARGEST_NARINFO,
    Trust,
    Untrusted,
    fingerprint,
    parse_public_key,
    parse_sha256,
)
from nixery.closure import PathInfo, StorePath, decode_base32, encode_base32
from tests.support.binary_cache import SigningKey, nar_of_file, narinfo_text, path_info, store_path

# `nix copy` and `nix store sign` of Nix 2.8.
SIGNED = b"""\
StorePath: /nix/store/162y1wkac5k7l1qnzs30hmpf2yyx5kc6-libnl-genl-3-200-3.7.0-0.2+b1
URL: nar/0fpasqplviframc8hgii4csrqzxr1fk6i8zxxrg8iwij53fjvh0x.nar.zst
Compression: zstd
FileHash: sha256:0fpasqplviframc8hgii4csrqzxr1fk6i8zxxrg8iwij53fjvh0x
FileSize: 12780
NarHash: sha256:1myr66wmr9dxz3fdk6pyl39zd8s79y4rrm8nallanrfv14y7wykl
NarSize: 38392
References: 6idq169l8fv8ss2n2fg1a9f3pqhwd2m2-libnl-3-200-3.7.0-0.2+b1 s6y3jd0glz9kdlbb60xq1597kd325xld-libc6-2.36-9+deb12u14
Deriver: hxj40v33bdyrg1zxymn964al2bfmyhkd-libnl-genl-3-200-3.7.0-0.2+b1.drv
Sig: test-1:QTiljoRWw8xXlR77aDMD9jm0p21FjLO5tQQLW0IxWInNdpX1CCOnCvQLuMCivtBhKQnruXSveqoW6FeiqrHlDQ==
"""
SIGNED_PATH = StorePath("162y1wkac5k7l1qnzs30hmpf2yyx5kc6-libnl-genl-3-200-3.7.0-0.2+b1")
PUBLIC = "test-1:L13salP2Gsekm4D+4kIWlCTaEmyWifVT/PZJqVKA7B4="

# `builtins.toFile`, `nix-store --add-fixed --recursive sha256` and `nix-store --add-fixed sha256`.
TEXT = b"""\
StorePath: /nix/store/gn76d8dh089anfi3s47pvgsh93l1d1n9-text
URL: nar/0sg9f58l1jj88w6pdrfdpj5x9b1zrwszk84j81zvby36q9whhhqa.nar
Compression: none
NarHash: sha256:0sg9f58l1jj88w6pdrfdpj5x9b1zrwszk84j81zvby36q9whhhqa
NarSize: 120
References: \n\
CA: text:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic
"""
TREE = b"""\
StorePath: /nix/store/ikgcwncx2cinpipyb5ig5ipkb4m4vf77-src
URL: nar/19l59z9nbs59axnhw6iqsz5bdagqb22kf0dp2zhkiq5m4b6k5247.nar
Compression: none
NarHash: sha256:19l59z9nbs59axnhw6iqsz5bdagqb22kf0dp2zhkiq5m4b6k5247
NarSize: 288
References: \n\
CA: fixed:r:sha256:19l59z9nbs59axnhw6iqsz5bdagqb22kf0dp2zhkiq5m4b6k5247
"""
FLAT = b"""\
StorePath: /nix/store/rkf79g8l9nv68w00j1z80zjn9aw7szx3-flat.txt
URL: nar/1hz895vkrd9mfbmk89rj4i3ax1g1m3sbr4pqdwfa84bzbij5l27n.nar
Compression: none
NarHash: sha256:1hz895vkrd9mfbmk89rj4i3ax1g1m3sbr4pqdwfa84bzbij5l27n
NarSize: 120
References: \n\
CA: fixed:sha256:1xk2hhjr0f2n4adj1h688wlz59xpl86y1r8bd2pjasg8gy16mikb
"""
KEY = SigningKey("ours-1")
TRUST = Trust.parse(f"{PUBLIC} {KEY.public}")


def path_of(content: bytes) -> StorePath:
    return StorePath.parse(content.split(b"\n")[0].decode().removeprefix("StorePath: "))


def test_a_signed_narinfo_is_read() -> None:
    found = TRUST.read(SIGNED, SIGNED_PATH, "https://cache.example.org")
    assert found.info == PathInfo(
        SIGNED_PATH,
        parse_sha256("sha256:1myr66wmr9dxz3fdk6pyl39zd8s79y4rrm8nallanrfv14y7wykl"),
        38392,
        (
            StorePath("6idq169l8fv8ss2n2fg1a9f3pqhwd2m2-libnl-3-200-3.7.0-0.2+b1"),
            StorePath("s6y3jd0glz9kdlbb60xq1597kd325xld-libc6-2.36-9+deb12u14"),
        ),
        "/nix/store/hxj40v33bdyrg1zxymn964al2bfmyhkd-libnl-genl-3-200-3.7.0-0.2+b1.drv",
    )
    assert (found.compression, found.file_size, found.flat_hash) == ("zstd", 12780, "")
    assert found.cache == "https://cache.example.org"
    # What is remembered says the same.
    assert TRUST.read(found.text.encode(), SIGNED_PATH, found.cache) == found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"NarSize: 38392", b"NarSize: 38393"),
        (
            b"1myr66wmr9dxz3fdk6pyl39zd8s79y4rrm8nallanrfv14y7wykl",
            b"19l59z9nbs59axnhw6iqsz5bdagqb22kf0dp2zhkiq5m4b6k5247",
        ),
        (b"References: 6idq169l8fv8ss2n2fg1a9f3pqhwd2m2-libnl-3-200-3.7.0-0.2+b1 ", b"References: "),
        (b"QTilj", b"QTili"),
        (b"test-1:QT", b"test-2:QT"),
    ],
)
def test_a_changed_narinfo_is_not_trusted(before: bytes, after: bytes) -> None:
    assert SIGNED.count(before) == 1
    with pytest.raises(Untrusted):
        TRUST.read(SIGNED.replace(before, after), SIGNED_PATH, "cache")


def test_a_signature_of_one_of_several_keys_is_enough() -> None:
    other = SigningKey("other-1", b"o" * 32)
    nar = nar_of_file(b"")
    info = path_info("itself", nar, (store_path("itself"), store_path("b"), store_path("a")))
    text = narinfo_text(info, {"Sig": other.sign(info)}) + f"Sig: {KEY.sign(info)}\n".encode()
    assert TRUST.read(text, info.path, "cache").info == info
    assert info.refers_to_itself


@pytest.mark.parametrize(("content", "is_flat"), [(TEXT, True), (TREE, False), (FLAT, True)])
def test_a_content_address_takes_the_place_of_a_signature(content: bytes, is_flat: bool) -> None:  # noqa: FBT001 -- a parameter
    found = TRUST.read(content, path_of(content), "cache")
    assert bool(found.flat_hash) is is_flat
    digits = content.rpartition(b"sha256:")[2].strip().decode()
    other = digits.replace(digits[-1], "0" if digits[-1] != "0" else "1")
    named = content.replace(
        b"/nix/store/" + path_of(content).base_name.encode(), b"/nix/store/" + b"0" * 32 + b"-x"
    )
    for wrong in (
        content.replace(f"CA: {content.rpartition(b'CA: ')[2].decode()}".encode(), b""),
        content.replace(b"sha256:" + digits.encode(), b"sha256:" + other.encode()),
        content.replace(b"CA: ", b"CA: x"),
        content.replace(b"References: ", b"References: " + SIGNED_PATH.base_name.encode()),
        content.replace(b"References: ", b"References: " + path_of(content).base_name.encode()),
        named,
    ):
        assert wrong != content
        with pytest.raises(Untrusted):
            TRUST.read(wrong, path_of(wrong), "cache")


def test_a_tree_needs_the_nar_hash_of_its_content_address() -> None:
    nar_hash = b"NarHash: sha256:19l59z9nbs59axnhw6iqsz5bdagqb22kf0dp2zhkiq5m4b6k5247"
    wrong = TREE.replace(nar_hash, b"NarHash: sha256:1hz895vkrd9mfbmk89rj4i3ax1g1m3sbr4pqdwfa84bzbij5l27n")
    with pytest.raises(Untrusted):
        TRUST.read(wrong, path_of(wrong), "cache")


def test_without_signatures_all_is_trusted() -> None:
    unsigned = SIGNED[: SIGNED.index(b"Sig: ")]
    with pytest.raises(Untrusted, match="it has no signature"):
        TRUST.read(unsigned, SIGNED_PATH, "cache")
    assert TRUST.without_signatures().read(unsigned, SIGNED_PATH, "cache").info.path == SIGNED_PATH


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b"StorePath: ", b"Path: ", "it has no field StorePath"),
        (b"/nix/store/162y", b"/nix/store/062y", "it is of"),
        (b"NarSize: 38392", b"NarSize: -1", "is not a number"),
        (b"NarSize: 38392", b"NarSize: 0", "is 0"),
        (b"NarSize: 38392", b"NarSize: \xd9\xa1", "is not a number"),
        (b"NarSize: 38392", b"NarSize: " + b"9" * 19, "is not a number"),
        (b"NarHash: sha256", b"NarHash: sha512", "is not a SHA-256"),
        (b"URL: nar/", b"URL: ../", "is not a path below the cache"),
        (b"URL: nar/", b"URL: /nar/", "is not a path below the cache"),
        (b"URL: nar/", b"URL: //host/", "is not a path below the cache"),
        (b"URL: nar/", b"URL: nar/./", "is not a path below the cache"),
        (b"URL: nar/", b"URL: nar/%2e%2e/", "is not a path below the cache"),
        (b"URL: nar/", b"URL: " + b"n" * 1024, "is not a path below the cache"),
        (b"Compression: zstd", b"Compression: lzip", "is not supported"),
        (b"References: 6idq", b"References: 6idq-", "is not the name of a store path"),
        (b"Deriver: hxj40", b"Deriver: ../hxj40", "is not the name of a store path"),
        (b"NarSize: 38392", b"NarSize: 38392\nNarSize: 1", "two fields NarSize"),
        (b"Compression: zstd\n", b"Compression\n", "is not a field"),
        (b"Compression: zstd\n", b"Compression: zstd\r\n", "is not a field"),
        (b"Sig: test-1:", b"Sig: test-1:!", "is not a signature"),
        (b"FileSize: 12780\n", b"Sig: a:\n" * 64, "more than 64 signatures"),
        (b"DQ==\n", b"DQ==", "is cut off"),
        (b"zstd", b"\xff", "is not UTF-8"),
        (b"FileSize: 12780", b"X: " + b"x" * LARGEST_NARINFO, "more than 1,048,576 bytes"),
    ],
)
def test_a_malformed_narinfo_is_refused_with_the_reason(before: bytes, after: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as raised:
        TRUST.read(SIGNED.replace(before, after, 1), SIGNED_PATH, "cache")
    assert not isinstance(raised.value, Untrusted)


def test_fields_that_are_not_known_and_empty_ones_are_accepted() -> None:
    text = SIGNED.replace(b"FileSize: 12780\n", b"FileSize:\nSystem: x86_64-linux\n")
    assert TRUST.read(text, SIGNED_PATH, "cache").file_size is None


def test_hashes_in_all_notations_are_the_same() -> None:
    hexadecimal = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert hexadecimal == parse_sha256(f"sha256:{hexadecimal}")
    assert hexadecimal == parse_sha256("sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic")
    assert hexadecimal == parse_sha256("sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=")
    for wrong in ("", "sha256:", f"sha256:{hexadecimal[1:]}", f"md5:{hexadecimal}", f"sha256:{'z' * 52}"):
        with pytest.raises(ValueError, match="is not a SHA-256"):
            parse_sha256(wrong)


def test_base_32_is_nixs() -> None:
    assert (
        encode_base32(decode_base32("162y1wkac5k7l1qnzs30hmpf2yyx5kc6")) == "162y1wkac5k7l1qnzs30hmpf2yyx5kc6"
    )
    with pytest.raises(ValueError, match="base 32"):
        decode_base32("e")


def test_a_fingerprint_is_nixs() -> None:
    info = TRUST.read(SIGNED, SIGNED_PATH, "cache").info
    assert fingerprint(info).startswith(
        b"1;/nix/store/162y1wkac5k7l1qnzs30hmpf2yyx5kc6-libnl-genl-3-200-3.7.0-0.2+b1;"
        b"sha256:1myr66wmr9dxz3fdk6pyl39zd8s79y4rrm8nallanrfv14y7wykl;38392;/nix/store/6idq"
    )


@pytest.mark.parametrize("text", ["", "x", "x:", "x:AAAA", f":{PUBLIC.partition(':')[2]}", "x:!!!!"])
def test_a_wrong_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a public key"):
        parse_public_key(text)
