"""A binary cache may send anything as a narinfo."""

from __future__ import annotations

import contextlib
import hashlib

from hypothesis import given
from hypothesis import strategies as st

from nixery.binary_caches.narinfo import (
    NarInfo,
    Trust,
    Untrusted,
    fingerprint,
    parse_sha256,
)
from nixery.closure import PathInfo, decode_base32, encode_base32
from tests.fuzz.effort import examples
from tests.support.binary_cache import SigningKey, narinfo_text, store_path

KEY = SigningKey()
SIGNED = Trust.parse(KEY.public)
UNSIGNED = SIGNED.without_signatures()

names = st.integers(0, 20).map(lambda number: store_path(f"package-{number}"))
infos = st.builds(
    lambda path, content, size, references: PathInfo(
        path,
        hashlib.sha256(content).hexdigest(),
        size,
        tuple(sorted(references - {path})),
        refers_to_itself=path in references,
    ),
    names,
    st.binary(max_size=4),
    st.integers(1, 10**18 - 1),
    st.sets(names),
)
values = st.one_of(
    st.text(max_size=40),
    st.integers().map(str),
    st.sampled_from(
        [
            "../x",
            "/x",
            "sha256:",
            "zstd",
            "fixed:r:sha256:",
            "text:sha256:",
            "a:b",
            "",
            " ",
            str(store_path("x")),
        ]
    ),
)
fields = st.dictionaries(
    st.sampled_from(
        [
            *("StorePath", "URL", "Compression", "FileHash", "FileSize", "NarHash", "NarSize"),
            *("References", "Deriver", "CA", "Sig", "X"),
        ]
    ),
    values,
    max_size=3,
)


def read(trust: Trust, content: bytes, info: PathInfo) -> NarInfo | None:
    with contextlib.suppress(ValueError):
        return trust.read(content, info.path, "cache")
    return None


@examples(300)
@given(infos)
def test_a_signed_narinfo_has_what_was_signed(info: PathInfo) -> None:
    content = narinfo_text(info, {"Sig": KEY.sign(info)})
    assert SIGNED.read(content, info.path, "cache").info == info


@examples(500)
@given(infos, fields)
def test_any_fields_are_refused_or_bounded(info: PathInfo, changed: dict[str, str]) -> None:
    content = narinfo_text(info, changed)
    found = read(UNSIGNED, content, info)
    if found is None:
        return
    assert found.info.path == info.path
    assert 0 < found.info.nar_size < 10**18
    assert len(found.info.nar_hash) == 64
    assert ".." not in found.url.split("/")
    assert not found.url.startswith("/")
    assert ":" not in found.url


@examples(500)
@given(infos, fields, infos)
def test_a_signature_stays_with_what_it_signs(
    info: PathInfo, changed: dict[str, str], other: PathInfo
) -> None:
    content = narinfo_text(other, changed | {"Sig": KEY.sign(info)})
    found = read(SIGNED, content, other)
    assert found is None or fingerprint(found.info) == fingerprint(info)


@examples(500)
@given(infos, st.data())
def test_a_changed_byte_changes_nothing_that_is_signed(info: PathInfo, data: st.DataObject) -> None:
    content = bytearray(narinfo_text(info, {"Sig": KEY.sign(info)}))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    found = read(SIGNED, bytes(content), info)
    assert found is None or fingerprint(found.info) == fingerprint(info)


@examples(500)
@given(infos, st.binary(max_size=300))
def test_any_bytes_are_refused_or_parsed(info: PathInfo, content: bytes) -> None:
    with contextlib.suppress(ValueError, Untrusted):
        UNSIGNED.read(content, info.path, "cache")


@examples(300)
@given(st.binary(max_size=40))
def test_base_32_is_its_own_inverse(content: bytes) -> None:
    assert decode_base32(encode_base32(content)) == content


@examples(300)
@given(st.text(max_size=60))
def test_any_text_is_a_hash_or_is_refused(text: str) -> None:
    for prefix in ("", "sha256:", "sha256-"):
        with contextlib.suppress(ValueError):
            assert len(parse_sha256(prefix + text)) == 64
