"""The closures of stored images: sizes, explanations, and records that are torn or hostile."""

from __future__ import annotations

import json

import pytest
import zstandard
from pydantic import ValidationError

from nixery.builds import image_closure
from nixery.builds.image_closure import (
    ClosurePath,
    ClosureRoot,
    ImageClosure,
    ImageClosures,
    decode_closure,
)
from nixery.oci.digest import Digest
from nixery.storage.records import IMAGE_CLOSURES, RecordStore

# Sizes, layers and references.
GRAPH = {
    "git": (100, 1, ["curl", "perl"]),
    "curl": (50, 1, ["ssl", "libc"]),
    "ssl": (20, 2, ["libc"]),
    "perl": (200, 2, ["libc"]),
    "libc": (500, 3, []),
    "bash": (10, 3, ["libc"]),
    "stray": (1, 3, []),
}
NAMES = list(GRAPH)


def base(name: str) -> str:
    return f"{'0' * 32}-{name}"


def root(name: str, *, requested: bool = True) -> ClosureRoot:
    return ClosureRoot(component=name, name=name, version="1", requested=requested, paths=[NAMES.index(name)])


CLOSURE = ImageClosure(
    [
        ClosurePath(
            path=base(name), size=size, layer=layer, references=[NAMES.index(one) for one in references]
        )
        for name, (size, layer, references) in GRAPH.items()
    ],
    [root("bash", requested=False), root("git"), root("curl")],
)


def chains(name: str) -> list[list[str]]:
    found = CLOSURE.explain(base(name))
    assert found is not None
    return [[path.name for path in chain.paths] for chain in found.chains]


def test_a_path_is_explained_by_the_shortest_chains_from_requested_packages_first() -> None:
    assert chains("libc") == [["curl", "libc"], ["git", "curl", "libc"], ["bash", "libc"]]
    assert chains("perl") == [["git", "perl"]]
    assert chains("git") == [["git"]]
    assert chains("stray") == []
    assert CLOSURE.explain(base("none")) is None


def test_an_explanation_has_the_neighbours_of_a_path() -> None:
    found = CLOSURE.explain(base("curl"))
    assert found is not None
    assert found.needed_by == 2
    assert [path.name for path in found.referrers] == ["git"]
    assert [path.name for path in found.references] == ["libc", "ssl"]


def test_an_explanation_is_bounded() -> None:
    count = 300
    paths = [ClosurePath(path=base("libc"), size=1, layer=1, references=[])]
    paths += [ClosurePath(path=base(f"p{n}"), size=1, layer=1, references=[0]) for n in range(count)]
    roots = [
        ClosureRoot(component=f"p{n}", name="p", version="", requested=True, paths=[n + 1])
        for n in range(count)
    ]
    found = ImageClosure(paths, roots).explain(base("libc"))
    assert found is not None
    assert (len(found.chains), found.needed_by, len(found.referrers)) == (5, 300, 50)


def test_a_package_alone_needs_what_no_other_one_reaches() -> None:
    alone = CLOSURE.needed_alone()
    assert alone["git", "git", "1"] == 100 + 200
    assert alone["curl", "curl", "1"] == 0
    assert alone["bash", "bash", "1"] == 10
    assert CLOSURE.alone("bash") == 10
    assert CLOSURE.alone("nothing") == 0


def test_paths_that_refer_to_each_other_are_followed_once() -> None:
    paths = [ClosurePath(path=base(str(n)), size=1, layer=1, references=[1 - n]) for n in range(2)]
    closure = ImageClosure(paths, [root("git")])
    assert closure.needed_alone() == {("git", "git", "1"): 2}
    found = closure.explain(base("1"))
    assert found is not None
    assert [path.name for path in found.chains[0].paths] == ["0", "1"]


def test_layers_have_their_largest_paths_first() -> None:
    assert {number: [path.name for path in paths] for number, paths in CLOSURE.in_layers().items()} == {
        1: ["git", "curl"],
        2: ["perl", "ssl"],
        3: ["libc", "bash", "stray"],
    }
    assert [path.name for path in CLOSURE.largest(2)] == ["libc", "perl"]
    assert CLOSURE.size == sum(size for size, _, _ in GRAPH.values())


async def test_a_closure_is_stored_and_found(records: RecordStore) -> None:
    closures, digest = ImageClosures(records), Digest.of(b"")
    assert await closures.find(digest) is None
    await closures.keep(digest, CLOSURE)
    found = await closures.find(digest)
    assert found is not None
    assert (found.paths, found.roots) == (CLOSURE.paths, CLOSURE.roots)


async def test_a_closure_beyond_the_bounds_is_not_stored(
    records: RecordStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("_MOST_PATHS", "_MOST_ROOTS", "_MOST_COMMAS", "_LARGEST"):
        with monkeypatch.context() as patched:
            patched.setattr(image_closure, bound, 1)
            await ImageClosures(records).keep(Digest.of(b""), CLOSURE)
    assert await records.get(IMAGE_CLOSURES, Digest.of(b"").hex) is None


@pytest.mark.security
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"{",
        json.dumps(
            {
                "paths": [],
                "roots": [{"component": "", "name": "", "version": "", "requested": True, "paths": [0]}],
            }
        ).encode(),
        json.dumps(
            {"paths": [{"path": "a", "size": 1, "layer": 1, "references": [-1]}], "roots": []}
        ).encode(),
        json.dumps(
            {"paths": [{"path": "a", "size": 1, "layer": 1, "references": [1]}], "roots": []}
        ).encode(),
        json.dumps(
            {"paths": [{"path": "a", "size": 1e300, "layer": 1, "references": []}], "roots": []}
        ).encode(),
        b'{"paths": [' + b"0," * 500_000 + b'0], "roots": []}',
        b" " * 9_000_000,
    ],
)
async def test_a_hostile_record_is_treated_as_missing(text: bytes, records: RecordStore) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- of any kind
        decode_closure(zstandard.compress(text))
    await records.put(IMAGE_CLOSURES, Digest.of(b"").hex, zstandard.compress(text))
    assert await ImageClosures(records).find(Digest.of(b"")) is None


@pytest.mark.security
@pytest.mark.parametrize(
    "text",
    [
        b'{"paths": [%s], "roots": []}',
        b'{"paths": [], "roots": [%s]}',
        b'{"paths": [{"path": "", "size": 0, "layer": 0, "references": [%s]}], "roots": []}',
        b'{"paths": [], "roots": [{"component": "", "name": "", "version": "", "requested": true, "paths": [%s]}]}',
    ],
    ids=["paths", "roots", "references", "outputs"],
)
def test_a_hostile_record_is_read_up_to_its_first_wrong_element(text: bytes) -> None:
    """400,000 wrong ones held all threads for four seconds."""
    planted = text % b",".join([b'{"path": 0}'] * 10_000)
    with pytest.raises(ValidationError) as error:
        decode_closure(zstandard.compress(planted))
    assert error.value.error_count() < 10


@pytest.mark.security
def test_a_record_that_claims_no_size_is_treated_as_torn() -> None:
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(b'{"paths": [], "roots": []}')
    for content in (b"", b"torn", streamed):
        with pytest.raises(ValueError):  # noqa: PT011 -- of any kind
            decode_closure(content)
