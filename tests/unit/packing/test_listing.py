import errno
import stat
import struct

import pytest
import zstandard

from nixery.packing.listing import MOST_BYTES, Kept, Listing
from nixery.packing.nar import list_nar
from tests.support.nar import Executable, Symlink, Tree, info_of, nar_of

TREE: Tree = {
    b"bin": {b"ls": Executable(b"program"), b"dir": Symlink(b"ls")},
    b"etc": {b"passwd": b"root:x:0:0::/:/bin/sh\n", b"other": b"not kept"},
    b"lib": {b"libx.so.1": Executable(b"\x7fELF" + bytes(200)), b"empty": {}},
    b"a\xff": b"",
}


def listed(tree: Tree) -> Listing:
    nar = nar_of(tree)
    return list_nar(info_of(nar), [nar])


def test_names_types_sizes_and_targets() -> None:
    listing = listed(TREE)
    root = listing.directory(b"")
    assert stat.S_ISDIR(listing.root.mode)
    assert list(root.names()) == [(b"a\xff", False), (b"bin", True), (b"etc", True), (b"lib", True)]
    programs = listing.directory(b"bin")
    program, link = programs.find(b"ls"), programs.find(b"dir")
    assert program is not None
    assert link is not None
    assert (program.mode, program.size) == (stat.S_IFREG | 0o555, 7)
    assert (stat.S_IFMT(link.mode), link.target) == (stat.S_IFLNK, b"ls")
    plain = root.find(b"a\xff")
    assert plain is not None
    assert plain.mode == stat.S_IFREG | 0o444
    assert root.find(b"none") is None
    assert list(listing.directory(b"lib/empty").names()) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"none", errno.ENOENT),
        (b"bin/none", errno.ENOENT),
        (b"none/none", errno.ENOENT),
        (b"bin/ls", errno.ENOTDIR),
        (b"bin/ls/x", errno.ENOTDIR),
        (b"bin/dir", errno.ELOOP),
        (b"bin/dir/x", errno.ELOOP),
        (b"bin/", errno.ENOENT),
        (b"..", errno.ENOENT),
    ],
)
def test_what_is_no_directory_has_the_error_of_the_kernel(name: bytes, expected: int) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 -- its number is compared
        listed(TREE).directory(name)
    assert caught.value.errno == expected


@pytest.mark.parametrize("tree", [b"content", Executable(b"program"), Symlink(b"target"), {}, TREE])
def test_a_record_is_read_as_it_was_written(tree: Tree) -> None:
    listing = listed(tree)
    again = Listing.decode(listing.encode())
    assert again.encode() == listing.encode()
    assert again.root == listing.root
    assert dict(again.kept.items()) == dict(listing.kept.items())


def test_the_contents_that_root_file_systems_need_are_kept() -> None:
    assert dict(listed(TREE).kept.items()) == {
        b"etc/passwd": b"root:x:0:0::/:/bin/sh\n",
        b"lib/libx.so.1": b"\x7fELF" + bytes(16),
    }
    assert dict(listed(b"content").kept.items()) == {b"": b"content"}
    assert not listed(Symlink(b"target")).kept.items()


def test_kept_contents_are_bounded() -> None:
    kept = Kept(room=1000)
    for number in range(100):
        kept.add(b"%d" % number, b"x" * 100)
    assert sum(len(name) + len(content) for name, content in kept.items()) <= 1000
    assert len(kept.items()) < 10


def test_programs_leave_room_for_declarations() -> None:
    """They come first in the NAR of systemd, for example."""
    programs: dict[bytes, Tree] = {b"%d" % number: Executable(b"x" * 1000) for number in range(2000)}
    declared = b"u p -\n" * 1000
    kept = listed({b"lib": {b"programs": programs, b"sysusers.d": {b"p.conf": declared}}}).kept
    assert kept.get(b"lib/sysusers.d/p.conf") == declared
    assert kept.get(b"lib/programs/0") == b"x" * 1000


def test_a_large_directory_is_searched() -> None:
    names = [b"%d" % (number * 7919 % 10_000) for number in range(1000)]
    names += [name + b".d" for name in names[:50]]
    tree: dict[bytes, Tree] = {
        name: Symlink(b"t" * (number % 300 + 1)) if number % 3 else b"x" * number
        for number, name in enumerate(names)
    }
    directory = listed({b"d": tree}).directory(b"d")
    for name, child in tree.items():
        node = directory.find(name)
        assert node is not None
        assert node.target == (child.target if isinstance(child, Symlink) else b"")
        assert node.size == (len(child) if isinstance(child, bytes) else 0)
    for missing in (b"", b"!", b"~", b"10000", b"12.", b"0/", b"999999"):
        assert directory.find(missing) is None
    assert [name for name, _ in directory.names()] == sorted(tree)


def record(root: bytes, *directories: bytes, kept: tuple[bytes, ...] = ()) -> bytes:
    parts = (*directories, *kept)
    header = struct.pack("<III", len(directories), len(kept) // 2, len(root))
    sizes = struct.pack(f"<{len(parts)}I", *map(len, parts))
    return zstandard.compress(b"".join((b"nixery listing 1\n", header, sizes, root, *parts)))


def test_the_records_below_would_be_read_if_they_were_valid() -> None:
    Listing.decode(record(b"d1", b"", b"a/r1\0b/d0\0c/l/x\0", kept=(b"a", b"x")))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        zstandard.compress(b""),
        zstandard.compress(b"nixery listing 2\n" + bytes(12)),
        zstandard.compress(b"nixery listing 1\n"),
        zstandard.compress(b"nixery listing 1\n" + b"\xff" * 12),
        zstandard.compress(b"nixery listing 1\n" + struct.pack("<III", 1 << 30, 0, 0)),
        record(b"d1", b"", b"a/r1\0")[:-1],
        record(b"d1", b"", b"a/r1\0") + b"x",
        record(b""),
        record(b"d0"),
        record(b"d1", b""),
        record(b"d01", b"", b""),
        record(b"d-1", b""),
        record(b"r1x"),
        record(b"r-1"),
        record(b"r" + b"9" * 100),
        record(b"l"),
        record(b"l\0"),
        record(b"l" + b"x" * 4096),
        record(b"d0", b"a"),
        record(b"d0", b"a/r1"),
        record(b"d0", b"/r1\0"),
        record(b"d0", b"./r1\0"),
        record(b"d0", b"../r1\0"),
        record(b"d0", b"a/b/r1\0"),
        record(b"d0", b"x" * 256 + b"/r1\0"),
        record(b"d0", b"b/r1\0a/r1\0"),
        record(b"d0", b"a/r1\0a/r1\0"),
        record(b"d0", b"a/d0\0"),
        record(b"d0", b"a/d1\0", b""),
        record(b"d0", b"a/r1\0\0b/r1\0"),
        record(b"d0", b"a/r1\0junk"),
        record(b"d0", b"junka/r1\0/", b""),
    ],
)
def test_a_forged_or_torn_record_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- any
        Listing.decode(content)


def test_a_record_that_claims_much_is_not_decompressed() -> None:
    zeros = zstandard.compress(bytes(MOST_BYTES * 3))
    with pytest.raises(ValueError, match="exceeds its limits"):
        Listing.decode(zeros)


def test_a_listing_agrees_with_one_of_the_same_names_and_contents() -> None:
    def listing(target: bytes, content: bytes | None) -> Listing:
        kept = Kept()
        if content is not None:
            kept.add(b"etc/passwd", content)
        return Listing(b"d1", [b"passwd/r4\0", b"etc/d0\0sh/l" + target + b"\0"], kept)

    one = listing(b"bash", b"root")
    assert one.agrees_with(listing(b"bash", b"root"))
    # What only one of them keeps cannot be compared.
    assert one.agrees_with(listing(b"bash", None))
    assert listing(b"bash", None).agrees_with(one)
    assert not one.agrees_with(listing(b"dash", b"root"))
    assert not one.agrees_with(listing(b"bash", b"evil"))
