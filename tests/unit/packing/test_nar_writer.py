"""NARs from layers: equal to those of the files, in bounded memory, and never wrong ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nixery.closure import PathInfo, StorePath
from nixery.errors import StorageError
from nixery.packing.archive import Archive
from nixery.packing.compression import compression
from nixery.packing.contents import add_store_paths
from nixery.packing.local_store import LocalStore
from nixery.packing.nar_writer import PIECE, NarWriter, stored_nar
from nixery.packing.packer import LayerPacker

HASH = "0" * 32
OURS = StorePath(f"{HASH}-ours")

# A directory is a mapping, a file has its content and whether it is executable, a symlink has its target.
Node = Mapping[bytes, "Node"] | tuple[bytes, bool] | bytes


def text(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content + bytes(-len(content) % 8)


def node(tree: Node) -> bytes:
    """Serialise as in the Nix manual, "Nix Archive"."""
    if isinstance(tree, bytes):
        inner = [b"type", b"symlink", b"target", tree]
    elif isinstance(tree, tuple):
        content, executable = tree
        inner = [b"type", b"regular", *([b"executable", b""] if executable else []), b"contents", content]
    else:
        entries = b"".join(
            b"".join(map(text, (b"entry", b"(", b"name", name, b"node"))) + node(child) + text(b")")
            for name, child in sorted(tree.items())
        )
        return text(b"(") + text(b"type") + text(b"directory") + entries + text(b")")
    return b"".join(map(text, (b"(", *inner, b")")))


def nar(tree: Node) -> bytes:
    return text(b"nix-archive-1") + node(tree)


def info_of(content: bytes, path: StorePath = OURS) -> PathInfo:
    return PathInfo(path, hashlib.sha256(content).hexdigest(), len(content), ())


def write(tree: Node, place: bytes) -> None:
    file = Path(place.decode(errors="surrogateescape"))
    if isinstance(tree, bytes):
        file.symlink_to(tree.decode(errors="surrogateescape"))
    elif isinstance(tree, tuple):
        file.write_bytes(tree[0])
        file.chmod(0o555 if tree[1] else 0o444)
    else:
        file.mkdir()
        for name, child in tree.items():
            write(child, place + b"/" + name)


def packed(trees: Mapping[StorePath, Node], method: str = "gzip") -> bytes:
    """Pack store paths as the server does."""
    written = io.BytesIO()
    with TemporaryDirectory() as directory:
        for path, tree in trees.items():
            write(tree, f"{directory}/{path.base_name}".encode())
        infos = [info_of(nar(tree), path) for path, tree in trees.items()]
        packer = LayerPacker(compression("zstd" if method == "zstd" else "gzip"))
        with LocalStore(directory.encode()) as store:
            packer.pack(lambda archive: add_store_paths(archive, infos, store), written, lambda: None)
    return written.getvalue()


def converted(info: PathInfo, layer: bytes, size: int = 1 << 18) -> list[bytes]:
    """Convert a layer that arrives in chunks of a size."""
    writer = NarWriter(info, "a layer")
    pieces: list[bytes] = []
    for start in range(0, len(layer), size):
        pieces += writer.add_compressed(layer[start : start + size])
        if writer.is_complete:
            break
    return [*pieces, writer.end()]


names = st.binary(min_size=1, max_size=120).filter(
    lambda name: name not in (b".", b"..") and not {0, ord("/")} & set(name) and not name.startswith(b".wh.")
)
files = st.tuples(st.binary(max_size=1500), st.booleans())
targets = st.binary(min_size=1, max_size=300).filter(lambda target: 0 not in target)
trees: st.SearchStrategy[Node] = st.recursive(
    files | targets, lambda inner: st.dictionaries(names, inner, max_size=5), max_leaves=12
)


@given(tree=trees, method=st.sampled_from(["gzip", "zstd"]), size=st.integers(1, 4096))
@settings(deadline=None, max_examples=60)
def test_the_nar_of_a_path_is_that_of_its_files(tree: Node, method: str, size: int) -> None:
    # Others before and after it, one of which has a name that begins with all of its name.
    layer = packed(
        {
            StorePath(f"{HASH}-a"): {b"a": (b"content", False)},
            OURS: tree,
            StorePath(f"{HASH}-ours-too"): {b"a": b"target"},
        },
        method,
    )
    assert b"".join(converted(info_of(nar(tree)), layer, size)) == nar(tree)


@pytest.mark.parametrize("method", ["gzip", "zstd"])
def test_memory_is_bounded_whatever_the_size(method: str) -> None:
    tree = {b"large": (bytes(64 << 20), False), b"small": (b"", True)}
    layer, whole = packed({OURS: tree}, method), info_of(nar(tree))
    writer, found, longest = NarWriter(whole, "a layer"), hashlib.sha256(), 0
    tracemalloc.start()
    # All of the layer at once: it is a thousandth of its contents.
    for piece in writer.add_compressed(layer):
        found.update(piece)
        longest = max(longest, len(piece))
    found.update(writer.end())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.hexdigest() == whole.nar_hash
    assert longest == PIECE
    assert peak < 32 << 20


def test_work_pauses_while_other_paths_are_passed_over() -> None:
    layer = packed({StorePath(f"{HASH}-a"): (bytes(64 << 20), False), OURS: (b"content", False)})
    pieces = converted(info_of(nar((b"content", False))), layer, len(layer))
    assert len(pieces) > 4
    assert b"".join(pieces) == nar((b"content", False))


def tar(*members: tuple[str, bytes, bytes], file_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """Write a tar of names below the store path, kinds and contents or targets."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=file_format) as opened:
        for name, kind, content in members:
            member = tarfile.TarInfo(f"nix/store/{OURS.base_name}{name}")
            member.type, member.mode = kind, 0o555 if kind == tarfile.DIRTYPE else 0o444
            if kind == tarfile.REGTYPE:
                member.size = len(content)
            else:
                member.linkname = content.decode()
            opened.addfile(member, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return written.getvalue()


DIRECTORY, FILE, SYMLINK = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE
GOOD = tar(("", DIRECTORY, b""), ("/a", FILE, b"content"), ("/b", SYMLINK, b"a"))
GOOD_NAR = nar({b"a": (b"content", False), b"b": b"a"})


def with_field(content: bytes, offset: int, field: bytes) -> bytes:
    return content[:offset] + field + content[offset + len(field) :]


def test_a_layer_of_another_program_that_has_the_same_files() -> None:
    assert b"".join(converted(info_of(GOOD_NAR), gzip.compress(GOOD))) == GOOD_NAR


def gzipped(content: bytes) -> bytes:
    """Compress without the time: tests are named by their parameters."""
    return gzip.compress(content, mtime=0)


@pytest.mark.security
@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (b"no layer at all", "it is neither gzip nor zstd"),
        (b"\x1f\x8b", "its contents are not those that Nix has registered"),
        (b"\x1f\x8b\x08" + bytes(7) + b"\x07garbage", "it cannot be decompressed"),
        (b"\x28\xb5\x2f\xfdgarbage", "it cannot be decompressed"),
        # A window of 128 MiB, which a decompressor would have to allocate.
        (b"\x28\xb5\x2f\xfd\x00\x88" + bytes(8), "it cannot be decompressed"),
        (gzipped(b""), "its contents are not those that Nix has registered"),
        (gzipped(GOOD)[:-40], "its contents are not those that Nix has registered"),
        (gzipped(GOOD[:512]), "its contents are not those that Nix has registered"),
        (zstandard.compress(GOOD[:1300]), "its contents are not those that Nix has registered"),
        (gzipped(GOOD.replace(b"content", b"CONTENT")), "its contents are not those that Nix has"),
        (gzipped(GOOD.replace(b"-ours", b"-mine")), "its contents are not those that Nix has"),
        (gzipped(tar(("/a", FILE, b""))), "it has a file without its directory"),
        (
            gzipped(tar(("", DIRECTORY, b""), ("/a/b", FILE, b"content"))),
            "its names are not in order",
        ),
        (
            gzipped(tar(("", DIRECTORY, b""), ("/b", SYMLINK, b"a"), ("/a", FILE, b"content"))),
            "its contents are not those that Nix has registered",
        ),
        (
            gzipped(tar(("", FILE, b"content"), ("", FILE, b"content"))),
            "its names are not in order",
        ),
        (
            gzipped(tar(("", DIRECTORY, b""), ("/a", tarfile.LNKTYPE, b"b"))),
            "it has an entry that is neither file, directory nor symlink",
        ),
        (
            gzipped(tar(("", DIRECTORY, b""), ("/a", FILE, bytes(10_000)))),
            f"it has more than the {len(GOOD_NAR)} bytes that Nix has registered",
        ),
        (gzipped(with_field(GOOD, 124, b"-1         ")), "it has a header that cannot be read"),
        (gzipped(with_field(GOOD, 124, b"99999999999")), "it has a header that cannot be read"),
        (gzipped(with_field(GOOD, 124, b"\xb2" * 11)), "it has a header that cannot be read"),
        (
            gzipped(with_field(with_field(GOOD, 156, b"x"), 124, b"77777777777")),
            "it has a header that is too large",
        ),
        (
            gzipped(with_field(with_field(GOOD, 156, b"x"), 124, b"00000000000")),
            "it has a header that is too large",
        ),
        (
            gzipped(with_field(with_field(GOOD, 156, b"x"), 124, b"00000000777")),
            "it has a header that cannot be read",
        ),
    ],
)
def test_a_wrong_layer_never_makes_a_whole_nar(layer: bytes, why: str) -> None:
    with pytest.raises(StorageError, match="cannot make the NAR of /nix/store/") as error:
        converted(info_of(GOOD_NAR), layer)
    assert why in str(error.value)
    assert "a layer" in str(error.value)


@pytest.mark.security
def test_what_leaves_before_the_error_is_shorter_than_the_nar() -> None:
    large = {b"large": (bytes(range(256)) * 40_000, False)}
    changed = {b"large": (bytes(range(256)) * 39_999 + bytes(256), False)}
    writer = NarWriter(info_of(nar(large)), "a layer")
    left = b"".join(writer.add_compressed(packed({OURS: changed})))
    assert 0 < len(left) < len(nar(large))
    with pytest.raises(StorageError):
        writer.end()


FLIPPED = {"gzip": gzip.compress(GOOD), "zstd": zstandard.compress(GOOD)}


@pytest.mark.security
@given(where=st.integers(0, 10**6), bit=st.integers(0, 7), method=st.sampled_from(["gzip", "zstd"]))
@settings(deadline=None, max_examples=200)
def test_a_flipped_bit_never_gives_a_wrong_nar(where: int, bit: int, method: str) -> None:
    layer = bytearray(FLIPPED[method])
    layer[where % len(layer)] ^= 1 << bit
    with suppress(StorageError):
        assert b"".join(converted(info_of(GOOD_NAR), bytes(layer), 97)) == GOOD_NAR


def test_a_path_that_this_machine_does_not_have() -> None:
    with pytest.raises(StorageError):
        stored_nar(info_of(GOOD_NAR))


def test_names_that_need_extended_headers() -> None:
    long = b"n" * 250
    tree: Node = {long: {long: {long: (b"content", True)}, b"link": b"t" * 4000}}
    assert b"".join(converted(info_of(nar(tree)), packed({OURS: tree}))) == nar(tree)


def test_a_tar_that_is_not_compressed() -> None:
    writer = NarWriter(info_of(GOOD_NAR), "a tar")
    archive = Archive(writer.add)
    for above in (b"nix", b"nix/store"):
        archive.directory(above)
    name = f"nix/store/{OURS.base_name}".encode()
    archive.directory(name, 0o555)
    archive.file(name + b"/a", 0o444, b"content")
    archive.symlink(name + b"/b", b"a")
    writer.add(archive.end())
    assert writer.end() == GOOD_NAR
