import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery.errors import UnsafeContents
from nixery.packing import tar


def read_back(header: bytes, content: bytes = b"") -> tarfile.TarInfo:
    """Read an entry with Python's own tar reader, names as bytes in surrogate escapes."""
    archive = header + content + tar.padding(len(content)) + tar.END_OF_ARCHIVE
    with tarfile.open(fileobj=io.BytesIO(archive), encoding="utf-8", errors="surrogateescape") as reader:
        (member,) = reader.getmembers()
    return member


def as_bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def test_the_header_of_a_directory() -> None:
    member = read_back(tar.directory(b"tmp", 0o1777, (0, 0)))
    assert (member.isdir(), member.name, member.mode) == (True, "tmp", 0o1777)


@pytest.mark.parametrize("owner", [(0, 0), (1000, 100), (2097151, 2097152), (4294967294, 65534)])
def test_an_owner_is_in_the_header(owner: tuple[int, int]) -> None:
    member = read_back(tar.directory(b"data", 0o755, owner))
    assert (member.uid, member.gid, member.mode) == (*owner, 0o755)
    assert (member.uname, member.gname) == ("", "")


def test_the_header_of_a_symlink() -> None:
    member = read_back(tar.symlink(b"bin/sh", b"/nix/store/x/bin/sh"))
    assert (member.issym(), member.name, member.linkname) == (True, "bin/sh", "/nix/store/x/bin/sh")


def test_headers_contain_no_data_of_the_host() -> None:
    member = read_back(tar.file(b"etc/passwd", 0o644, 1), b"x")
    assert (member.uid, member.gid, member.uname, member.gname, member.mtime) == (0, 0, "", "", 1)
    assert (member.mode, member.size) == (0o644, 1)


@pytest.mark.parametrize(
    "name",
    [
        b"a" * 100,
        b"a" * 101,
        b"a" * 255,
        b"nix/store/" + b"d" * 60 + b"/" + b"f" * 90,
        b"d/" * 120 + b"f",
        b"p" * 155 + b"/" + b"n" * 100,
        b"p" * 156 + b"/" + b"n" * 100,
        b"\xff\xfe",
        b"\xff" * 200,
        "ü".encode() * 90,
    ],
)
def test_long_and_odd_names(name: bytes) -> None:
    for header in (tar.directory(name, 0o755, (0, 0)), tar.symlink(name, name), tar.file(name, 0o444, 0)):
        member = read_back(header)
        assert as_bytes(member.name) == name
        if member.issym():
            assert as_bytes(member.linkname) == name


def test_a_size_that_does_not_fit_into_the_old_field() -> None:
    header = tar.file(b"big", 0o444, 8**11)
    assert b"size=8589934592\n" in header


targets = st.binary(min_size=1, max_size=300).map(lambda n: n.replace(b"\0", b"x").strip(b"/") or b"x")
names = targets.map(lambda n: n.replace(b".wh.", b".hw."))


@given(names, targets)
def test_any_name_survives_a_round_trip(name: bytes, target: bytes) -> None:
    member = read_back(tar.symlink(name, target))
    assert (as_bytes(member.name), as_bytes(member.linkname)) == (name, target)


@given(names)
def test_headers_are_whole_blocks(name: bytes) -> None:
    assert len(tar.directory(name, 0o755, (0, 0))) % tar.BLOCK == 0


@pytest.mark.parametrize(
    "name", [b".wh.nix", b"a/.wh..wh..opq", b"a/.wh.b/c", b"x.wh./.wh.", b"a" * 200 + b"/.wh.b"]
)
def test_whiteouts_are_not_allowed_as_names(name: bytes) -> None:
    with pytest.raises(UnsafeContents, match=r"names that begin with \.wh\. delete files"):
        tar.directory(name, 0o755, (0, 0))
    with pytest.raises(UnsafeContents):
        tar.symlink(name, b"x")
    with pytest.raises(UnsafeContents):
        tar.file(name, 0o444, 0)


def test_whiteouts_are_allowed_as_targets() -> None:
    assert read_back(tar.symlink(b"a.wh.b/wh.c", b".wh.d")).linkname == ".wh.d"
