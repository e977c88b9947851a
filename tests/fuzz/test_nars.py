"""Bytes of a binary cache, or of a planted record, lead to a refusal, or to what was registered; and to nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nixery.errors import NarRefused, UnsafeContents
from nixery.packing.archive import Archive
from nixery.packing.listing import Listing
from nixery.packing.nar import add_nar, list_nar
from tests.fuzz.effort import examples
from tests.support.nar import (
    PATH,
    Executable,
    Symlink,
    Tree,
    cut,
    directory,
    entry,
    file,
    info_of,
    nar_of,
    string,
    strings,
    symlink,
    whole,
)

_VALID = nar_of(
    {
        b"bin": {b"ls": Executable(b"program" * 20), b"sh": Symlink(b"ls")},
        b"etc": {b"passwd": b"root", b"z": b"", b"directory": {}},
        b"lib": {b"lib.so": bytes(300)},
    }
)

_WORDS = (
    *(
        b"nix-archive-1",
        b"(",
        b")",
        b"type",
        b"regular",
        b"executable",
        b"",
        b"contents",
        b"symlink",
        b"target",
    ),
    *(b"directory", b"entry", b"name", b"node", b"a", b"b", b"..", b"a/b", b"\0", b"x" * 300),
)

# A grammar of nodes that are nearly valid.
_NAMES = st.sampled_from(
    [b"a", b"b", b"ab", b"a.b", b".", b"..", b"", b"a/b", b"\0", b"\xff", b"x" * 255, b"x" * 256]
)
_NODES = st.recursive(
    st.binary(max_size=20).map(file)
    | st.binary(max_size=20).map(symlink)
    | st.sampled_from(_WORDS).map(string),
    lambda below: st.lists(st.builds(entry, _NAMES, below), max_size=4).map(lambda found: directory(*found)),
    max_leaves=8,
)


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """Return a valid NAR after some edits: bytes changed, removed, inserted, or copied from elsewhere."""
    nar = bytearray(_VALID)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(nar)))
        end = start + draw(st.sampled_from([0, 1, 8, 16, 48]))
        source = draw(st.integers(0, len(_VALID)))
        copied = _VALID[source : source + draw(st.sampled_from([0, 8, 16, 48, 96]))]
        nar[start:end] = draw(st.binary(max_size=9) | st.just(copied) | st.sampled_from(_WORDS).map(string))
    return bytes(nar)


_NARS = (
    _mutated()
    | st.lists(st.sampled_from(_WORDS), max_size=30).map(lambda words: strings(*words))
    | _NODES.map(whole)
    | st.binary(max_size=200).map(lambda content: _VALID[:24] + content)
)


@examples(400)
@given(_NARS, st.sampled_from([1, 8, 100, 1 << 16]))
def test_a_nar_is_accepted_if_and_only_if_it_is_the_form_of_its_tree(nar: bytes, size: int) -> None:
    """Registered, with its hash: only its form can be wrong."""
    tree = tree_of(nar)
    taken = bytearray()
    archive = Archive(taken.extend)
    try:
        listing = add_nar(archive, info_of(nar), cut(nar, size))
    except (NarRefused, UnsafeContents):
        assert tree is None
        return
    assert tree is not None
    taken.extend(archive.end())
    assert taken == archive_of(tree)
    assert Listing.decode(listing.encode()).encode() == listing.encode()


@examples(200)
@given(_mutated())
def test_a_nar_that_is_not_the_registered_one_is_refused(nar: bytes) -> None:
    try:
        list_nar(info_of(_VALID), [nar])
    except NarRefused:
        assert nar != _VALID
    else:
        assert nar == _VALID


@examples(200)
@given(st.binary(max_size=300), st.integers(0, 3), st.integers(0, 400))
def test_a_planted_listing_is_understood_or_torn(noise: bytes, kind: int, position: int) -> None:
    text = zstandard.decompress(list_nar(info_of(_VALID), [_VALID]).encode())
    position %= len(text)
    planted = (
        noise,
        zstandard.compress(noise),
        text[:position] + noise,
        text[:position] + noise[:1] + text[position + 1 :],
    )
    content = planted[kind] if kind < 2 else zstandard.compress(planted[kind])
    try:
        listing = Listing.decode(content)
    except ValueError:
        return
    # Whatever it says, it can be read to its end.
    waiting, seen = [b""], 0
    while waiting:
        name = waiting.pop()
        try:
            names = list(listing.directory(name).names())
        except OSError:
            continue
        seen += len(names)
        waiting += [name + b"/" + child.name if name else child.name for child in names if child.is_directory]
    assert seen < 1000


def tree_of(nar: bytes) -> Tree | None:
    """Read a NAR in a simple way: leniently, and then require that it is the form of what was read."""
    try:
        words = iter(list(_words(nar)))
        if next(words) != b"nix-archive-1":
            return None
        tree = _node(words)
        return tree if nar_of(tree) == nar and _is_valid(tree) else None
    except (StopIteration, ValueError):
        return None


def _words(nar: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(nar):
        length = int.from_bytes(nar[at : at + 8], "little")
        if at + 8 + length > len(nar):
            raise ValueError("cut")
        yield nar[at + 8 : at + 8 + length]
        at += 8 + length + -length % 8


def _node(words: Iterator[bytes]) -> Tree:
    _expect(words, b"(", b"type")
    match next(words):
        case b"regular":
            word = next(words)
            executable = word == b"executable"
            if executable:
                _expect(words, b"", b"contents")
            content = next(words)
            _expect(words, b")")
            return Executable(content) if executable else content
        case b"symlink":
            _expect(words, b"target")
            target = next(words)
            _expect(words, b")")
            return Symlink(target)
        case b"directory":
            children: dict[bytes, Tree] = {}
            while next(words) == b"entry":
                _expect(words, b"(", b"name")
                name = next(words)
                _expect(words, b"node")
                children[name] = _node(words)
                _expect(words, b")")
            return children
    raise ValueError("type")


def _expect(words: Iterator[bytes], *expected: bytes) -> None:
    for word in expected:
        if next(words) != word:
            raise ValueError(word)


def _is_valid(tree: Tree) -> bool:
    match tree:
        case Symlink(target):
            return bool(target) and b"\0" not in target
        case bytes() | Executable():
            return True
        case _:
            return all(_is_name(name) and _is_valid(child) for name, child in tree.items())


def _is_name(name: bytes) -> bool:
    return 0 < len(name) < 256 and b"/" not in name and b"\0" not in name and name not in {b".", b".."}


def archive_of(tree: Tree) -> bytes:
    taken = bytearray()
    archive = Archive(taken.extend)
    _add(archive, f"nix/store/{PATH.base_name}".encode(), tree)
    taken.extend(archive.end())
    return bytes(taken)


def _add(archive: Archive, name: bytes, tree: Tree) -> None:
    match tree:
        case bytes():
            archive.file(name, 0o444, tree)
        case Executable(content):
            archive.file(name, 0o555, content)
        case Symlink(target):
            archive.symlink(name, target)
        case _:
            archive.directory(name, 0o555)
            for child in sorted(tree):
                _add(archive, name + b"/" + child, tree[child])
