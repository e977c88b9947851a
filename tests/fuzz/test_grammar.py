"""The regular expressions agree with an implementation of the specification that uses none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from hypothesis import example, given
from hypothesis import strategies as st

from nixery.errors import InvalidDigest, InvalidName, InvalidReference
from nixery.image.name import Tag, parse_image_name, parse_reference, validate_name
from nixery.oci.digest import Digest
from tests.fuzz import strategies
from tests.fuzz.effort import examples
from tests.fuzz.grammar import is_digest, is_name, is_tag, packages_of


def accepts(check: Callable[[str], object], text: str) -> bool:
    with contextlib.suppress(InvalidName, InvalidReference, InvalidDigest):
        check(text)
        return True
    return False


@examples(400)
@given(strategies.names)
@example("a" * 255)
@example("a" * 256)
@example("a\n")
def test_both_grammars_accept_the_same_names(name: str) -> None:
    assert accepts(validate_name, name) == is_name(name)


@examples(250)
@given(strategies.valid_names)
def test_a_valid_name_keeps_all_of_its_packages(name: str) -> None:
    components = set(name.split("/"))
    if is_name(name) and not {"arm64", "amd64"} <= components:
        assert set(parse_image_name(name).requested) == packages_of(name)


@examples(250)
@given(strategies.references)
def test_both_grammars_accept_the_same_references(reference: str) -> None:
    assert accepts(parse_reference, reference) == (is_tag(reference) or is_digest(reference))
    if is_tag(reference):
        assert parse_reference(reference) == Tag(reference)


@examples(250)
@given(strategies.digests | strategies.broken_digests | st.text(max_size=80))
def test_both_grammars_accept_the_same_digests(digest: str) -> None:
    assert accepts(Digest.parse, digest) == is_digest(digest)
