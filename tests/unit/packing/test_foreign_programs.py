import functools
import struct
import subprocess
import tracemalloc
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery.closure import StorePath
from nixery.errors import UnsafeContents
from nixery.image.platform import AMD64, ARM64, Platform
from nixery.packing import foreign_programs
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.foreign_programs import add_loader
from nixery.packing.local_store import LocalStore
from nixery.packing.root_filesystem import Content, Link, Tree

MACHINES = {AMD64: 62, ARM64: 183}
FLAGS = {AMD64: 0x0303, ARM64: 0x0A03}
LOADER = b"lib64/ld-linux-x86-64.so.2"
CACHE = b"etc/ld.so.cache"

OLD_GLIBC = "a" * 32 + "-glibc-2.9-61"
GLIBC = "b" * 32 + "-glibc-2.38-27"
OLD_GCC = "c" * 32 + "-gcc-9.5.0-lib"
GCC = "d" * 32 + "-gcc-13.2.0-lib"
DEBIAN = "f" * 32 + "-libc6-2.36-9-deb12u14"
TOOL = "g" * 32 + "-tool-1"

# Writes files of a store path, by their names; a text is the target of a symlink.
Write = Callable[[str, Mapping[str, bytes | str]], None]
Plan = Callable[..., Tree]


def elf(platform: Platform = AMD64, content: bytes = b"", bits: int = 64) -> bytes:
    kind = {32: 1, 64: 2}[bits]
    return struct.pack("<4sBB10xHH", b"\x7fELF", kind, 1, 3, MACHINES[platform]) + content


def loader_of_nixpkgs(base_name: str) -> bytes:
    """A loader whose cache is in its own store path; the text of --help has that name, too."""
    name = in_store(base_name, "etc/ld.so.cache")
    return elf(content=b"\0  --inhibit-cache  Do not use " + name + b"\n\0" + name + b"\0ld.so-1.7.0\0")


def in_store(base_name: str, name: str) -> bytes:
    return f"/nix/store/{base_name}/{name}".encode()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    store.mkdir()
    return store


@pytest.fixture
def write(store: Path) -> Write:
    def write(base_name: str, contents: Mapping[str, bytes | str]) -> None:
        for name, content in contents.items():
            file = store / base_name / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                file.symlink_to(content)
            else:
                file.write_bytes(content)

    return write


@pytest.fixture
def plan(store: Path) -> Plan:
    def plan(tree: Tree | None = None, platform: Platform = AMD64) -> Tree:
        tree = tree or Tree()
        with LocalStore(bytes(store)) as contents:
            files = ClosureFiles([StorePath(path.name) for path in store.iterdir()], contents)
            add_loader(tree, files, platform)
        return tree

    return plan


@pytest.fixture
def glibc(write: Write) -> None:
    write(GLIBC, {"lib/ld-linux-x86-64.so.2": elf(), "lib/libc.so.6": elf()})


def generated(tree: Tree, name: bytes) -> Content:
    node = tree.get(name)
    assert isinstance(node, Content)
    return node


def entries(tree: Tree) -> list[tuple[int, bytes, bytes]]:
    """Read a cache: flags, name and path of each entry, in their order."""
    content = generated(tree, CACHE).content
    magic, count, size = struct.unpack_from("<20sII", content)
    assert magic == b"glibc-ld.so.cache1.1"
    assert len(content) == 48 + 24 * count + size

    def string(offset: int) -> bytes:
        return content[offset : content.index(b"\0", offset)]

    found = [struct.unpack_from("<iII", content, 48 + 24 * index) for index in range(count)]
    return [(flags, string(name), string(path)) for flags, name, path in found]


def libraries(tree: Tree) -> dict[bytes, bytes]:
    return {name: path for _, name, path in entries(tree)}


def test_without_a_c_library_nothing_is_added(write: Write, plan: Plan) -> None:
    write(TOOL, {"lib/libtool.so.1": elf(), "bin/tool": elf()})
    assert plan() == Tree()


def test_the_loader_is_a_link_if_it_reads_the_systems_cache(write: Write, plan: Plan) -> None:
    loader = elf(content=b"\0/etc/ld.so.cache\0")
    write(
        DEBIAN,
        {
            "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": loader,
            "lib/x86_64-linux-gnu/libc.so.6": elf(),
            "lib/ld-linux-x86-64.so.2": "x86_64-linux-gnu/ld-linux-x86-64.so.2",
        },
    )
    tree = plan()
    assert tree.get(LOADER) == Link(in_store(DEBIAN, "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"))
    assert libraries(tree) == {b"libc.so.6": in_store(DEBIAN, "lib/x86_64-linux-gnu/libc.so.6")}
    assert tree.get(b"lib/libc.so.6") == Link(in_store(DEBIAN, "lib/x86_64-linux-gnu/libc.so.6"))


def test_a_loader_with_a_cache_in_the_store_is_copied_with_the_systems(write: Write, plan: Plan) -> None:
    loader = loader_of_nixpkgs(GLIBC)
    write(GLIBC, {"lib/ld-linux-x86-64.so.2": loader, "lib/libc.so.6": elf()})
    copy = generated(plan(), LOADER)
    assert copy.mode == 0o755
    cache = in_store(GLIBC, "etc/ld.so.cache")
    assert copy.content == loader.replace(b"\0" + cache, b"\0" + b"/etc/ld.so.cache".ljust(len(cache), b"\0"))
    assert copy.content.count(cache) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" + in_store(OLD_GLIBC, "etc/ld.so.cache") + b"\0",
        b"\0" + in_store(GLIBC, "etc/ld.so.cache") + b".d\0",
        b"\0/other" + in_store(GLIBC, "etc/ld.so.cache") + b"\0",
        2 * (b"\0" + in_store(GLIBC, "etc/ld.so.cache") + b"\0"),
    ],
)
def test_an_unknown_loader_is_left_as_it_is(write: Write, plan: Plan, content: bytes) -> None:
    write(GLIBC, {"lib/ld-linux-x86-64.so.2": elf(content=content)})
    assert plan().get(LOADER) == Link(in_store(GLIBC, "lib/ld-linux-x86-64.so.2"))


def test_of_several_c_libraries_the_newest_is_taken(write: Write, plan: Plan) -> None:
    for base_name in (OLD_GLIBC, GLIBC):
        write(base_name, {"lib/ld-linux-x86-64.so.2": elf(), "lib/libc.so.6": elf(), "lib/libm.so.6": elf()})
    write(OLD_GLIBC, {"lib/libnsl.so.1": elf()})
    tree = plan()
    assert tree.get(LOADER) == Link(in_store(GLIBC, "lib/ld-linux-x86-64.so.2"))
    assert libraries(tree) == {
        b"libc.so.6": in_store(GLIBC, "lib/libc.so.6"),
        b"libm.so.6": in_store(GLIBC, "lib/libm.so.6"),
        b"libnsl.so.1": in_store(OLD_GLIBC, "lib/libnsl.so.1"),
    }


def test_of_equal_versions_the_first_name_is_taken(write: Write, plan: Plan) -> None:
    for base_name in ("1" * 32 + "-libc-2.38", "0" * 32 + "-libd-2.38", "2" * 32 + "-libc-2.38"):
        write(base_name, {"lib/ld-linux-x86-64.so.2": elf()})
    assert plan().get(LOADER) == Link(in_store("1" * 32 + "-libc-2.38", "lib/ld-linux-x86-64.so.2"))


def test_a_loader_of_another_platform_is_no_loader(write: Write, plan: Plan) -> None:
    write(GLIBC, {"lib/ld-linux-x86-64.so.2": elf(ARM64), "lib/ld-linux-aarch64.so.1": elf(AMD64)})
    assert plan() == Tree()
    assert plan(platform=ARM64) == Tree()


@pytest.mark.security
def test_a_loader_of_the_machine_is_no_loader_of_the_image(write: Write, plan: Plan) -> None:
    write(TOOL, {"lib/ld-linux-x86-64.so.2": "/lib64/ld-linux-x86-64.so.2", "lib/libc.so.6": elf()})
    assert plan() == Tree()


def test_arm64_has_its_own_place_and_flags(write: Write, plan: Plan) -> None:
    write(GLIBC, {"lib/ld-linux-aarch64.so.1": elf(ARM64), "lib/libc.so.6": elf(ARM64)})
    write(GCC, {"lib/libstdc++.so.6": elf(ARM64), "lib/aarch64-linux-gnu/libgcc_s.so.1": elf(ARM64)})
    tree = plan(platform=ARM64)
    assert tree.get(b"lib/ld-linux-aarch64.so.1") == Link(in_store(GLIBC, "lib/ld-linux-aarch64.so.1"))
    assert {flags for flags, _, _ in entries(tree)} == {FLAGS[ARM64]}
    assert libraries(tree).keys() == {b"libc.so.6", b"libgcc_s.so.1", b"libstdc++.so.6"}


@pytest.mark.usefixtures("glibc")
def test_the_loader_of_a_package_stays(write: Write, plan: Plan) -> None:
    write(TOOL, {"lib64/ld-linux-x86-64.so.2": elf()})
    own = Link(in_store(TOOL, "lib64/ld-linux-x86-64.so.2"))
    tree = Tree()
    tree.add(LOADER, own)
    tree = plan(tree)
    assert tree.get(LOADER) == own
    assert tree.get(CACHE) is None
    assert tree.get(b"lib/libc.so.6") is None


def test_a_requested_c_library_is_taken_and_copied(write: Write, plan: Plan) -> None:
    # In nixpkgs, lib64 is a symlink to lib.
    for base_name in (OLD_GLIBC, GLIBC):
        write(base_name, {"lib/ld-linux-x86-64.so.2": loader_of_nixpkgs(base_name), "lib64": "lib"})
    tree = Tree()
    tree.add(LOADER, Link(in_store(OLD_GLIBC, "lib64/ld-linux-x86-64.so.2")))
    copy = generated(plan(tree), LOADER).content
    assert copy.count(b"\0/etc/ld.so.cache\0") == 1
    assert in_store(OLD_GLIBC, "etc/ld.so.cache\n") in copy


@pytest.mark.usefixtures("glibc")
def test_a_link_that_leads_nowhere_is_replaced(plan: Plan) -> None:
    tree = Tree()
    tree.add(LOADER, Link(b"/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"))
    assert plan(tree).get(LOADER) == Link(in_store(GLIBC, "lib/ld-linux-x86-64.so.2"))


@pytest.mark.usefixtures("glibc")
def test_the_cache_of_a_package_stays(write: Write, plan: Plan) -> None:
    write(TOOL, {"etc/ld.so.cache": b"own"})
    own = Link(in_store(TOOL, "etc/ld.so.cache"))
    tree = Tree()
    tree.add(CACHE, own)
    assert plan(tree).get(CACHE) == own


@pytest.mark.usefixtures("glibc")
def test_the_images_own_libraries_win_but_for_the_c_librarys(write: Write, plan: Plan) -> None:
    write(GCC, {"lib/libstdc++.so.6": elf()})
    write(OLD_GCC, {"lib/libstdc++.so.6": elf(), "lib/libgcc_s.so.1": elf()})
    write(TOOL, {"lib/libc.so.6": elf(), "lib/x86_64-linux-gnu/libtool.so.1": elf()})
    tree = Tree()
    for base_name, name in (
        (OLD_GCC, "lib/libstdc++.so.6"),
        (TOOL, "lib/libc.so.6"),
        (TOOL, "lib/x86_64-linux-gnu/libtool.so.1"),
    ):
        tree.add(name.encode(), Link(in_store(base_name, name)))
    assert libraries(plan(tree)) == {
        b"libc.so.6": in_store(GLIBC, "lib/libc.so.6"),
        b"libgcc_s.so.1": in_store(OLD_GCC, "lib/libgcc_s.so.1"),
        b"libstdc++.so.6": b"/lib/libstdc++.so.6",
        b"libtool.so.1": b"/lib/x86_64-linux-gnu/libtool.so.1",
    }
    assert tree.get(b"lib/libc.so.6") == Link(in_store(TOOL, "lib/libc.so.6"))


@pytest.mark.usefixtures("glibc")
def test_of_several_libraries_of_the_closure_the_newest_is_found(write: Write, plan: Plan) -> None:
    for base_name in (GCC, OLD_GCC):
        write(base_name, {"lib/libstdc++.so.6": elf()})
    assert libraries(plan())[b"libstdc++.so.6"] == in_store(GCC, "lib/libstdc++.so.6")


@pytest.mark.usefixtures("glibc")
def test_a_directory_of_libraries_may_be_a_link(write: Write, plan: Plan) -> None:
    write(TOOL, {"lib/x86_64-linux-gnu/libtool.so.1": elf(), "lib/x86_64-linux-gnu/README": b""})
    tree = Tree()
    tree.add(b"lib/x86_64-linux-gnu", Link(in_store(TOOL, "lib/x86_64-linux-gnu")))
    assert libraries(plan(tree))[b"libtool.so.1"] == b"/lib/x86_64-linux-gnu/libtool.so.1"


@pytest.mark.usefixtures("glibc")
def test_only_libraries_of_the_platform_are_in_the_cache(write: Write, plan: Plan) -> None:
    write(
        TOOL,
        {
            "lib/libnarrow.so.1": elf(bits=32),
            "lib/libforeign.so.1": elf(ARM64),
            "lib/libshort.so.1": elf()[:10],
            "lib/libscript.so": b"/* GNU ld script */ INPUT(libscript.so.1)",
            "lib/libempty.so": b"",
            "lib/liboutside.so.1": "/lib/x86_64-linux-gnu/libc.so.6",
            "lib/libdirectory.so.1/file": elf(),
            "lib/libarchive.a": elf(),
            "lib/module.so": elf(),
            "lib/deeper/libdeeper.so.1": elf(),
            "lib/libtool.so.1.2": elf(),
            "lib/libtool.so.1": "libtool.so.1.2",
            "lib/libtool-1.2.so": elf(),
        },
    )
    names = {b"libc.so.6", b"libtool.so.1", b"libtool.so.1.2", b"libtool-1.2.so"}
    assert libraries(plan()).keys() == names


@pytest.mark.usefixtures("glibc")
def test_names_that_the_loader_cannot_compare_are_left_out(write: Write, plan: Plan) -> None:
    names = ("lib/libsnow☃.so.1", "lib/lib4294967297.so", "lib/lib two.so.1", "lib/libz.so.1\n")
    write(TOOL, {name: elf() for name in names} | {"lib/lib123456789.so": elf()})
    assert libraries(plan()).keys() == {b"libc.so.6", b"lib123456789.so"}


@pytest.mark.usefixtures("glibc")
def test_of_names_that_the_loader_takes_for_equal_one_is_in_the_cache(write: Write, plan: Plan) -> None:
    write(TOOL, {"lib/libz.so.01": elf(), "lib/libz.so.1": elf()})
    assert libraries(plan()).keys() == {b"libc.so.6", b"libz.so.01"}


def compare(one: bytes, other: bytes) -> int:
    """``_dl_cache_libcmp`` (glibc, elf/dl-cache.c), line by line."""
    one, other = one + b"\0", other + b"\0"
    i = j = 0
    while one[i]:
        if chr(one[i]).isdigit():
            if not chr(other[j]).isdigit():
                return 1
            first = second = 0
            while chr(one[i]).isdigit():
                first, i = first * 10 + one[i] - ord("0"), i + 1
            while chr(other[j]).isdigit():
                second, j = second * 10 + other[j] - ord("0"), j + 1
            if first != second:
                return first - second
        elif chr(other[j]).isdigit():
            return -1
        elif one[i] != other[j]:
            return one[i] - other[j]
        else:
            i, j = i + 1, j + 1
    return one[i] - other[j]


@given(st.lists(st.from_regex(r"lib[+_.a0-9]{0,6}\.so(\.[0-9]{1,3}){0,2}", fullmatch=True).map(str.encode)))
def test_the_order_is_the_loaders(names: list[bytes]) -> None:
    by_key = {foreign_programs._key(name): foreign_programs._Library(name, name, name) for name in names}
    ordered = sorted(by_key, reverse=True)
    loaders = sorted((one.name for one in by_key.values()), key=functools.cmp_to_key(compare), reverse=True)
    assert [by_key[key].name for key in ordered] == loaders
    assert all(compare(one, other) > 0 for one, other in pairwise(loaders))


@pytest.mark.usefixtures("glibc")
def test_ldconfig_reads_the_cache(write: Write, plan: Plan, tmp_path: Path) -> None:
    names = [f"libz{version}.so.{major}" for version in ("", "1", "10", "9", "-x") for major in (1, 2, 10)]
    write(TOOL, {f"lib/{name}": elf() for name in names})
    tree = plan()
    assert [name for _, name, _ in entries(tree)][:3] == [b"libz10.so.10", b"libz10.so.2", b"libz10.so.1"]
    file = tmp_path / "cache"
    file.write_bytes(generated(tree, CACHE).content)
    listed = subprocess.run(
        ["/sbin/ldconfig", "-p", "-C", str(file)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    expected = [f"\t{name.decode()} (libc6,x86-64) => {path.decode()}" for _, name, path in entries(tree)]
    assert listed[1 : len(expected) + 1] == expected


@pytest.mark.security
@pytest.mark.usefixtures("glibc")
@pytest.mark.parametrize("limit", ["_MOST_LIBRARIES", "_MOST_BYTES"])
def test_an_image_has_a_limit_of_libraries(
    write: Write, plan: Plan, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    write(TOOL, {f"lib/libtool.so.{number}": elf() for number in range(99)})
    everything = libraries(plan())
    enough = len(everything) if limit == "_MOST_LIBRARIES" else sum(map(len, everything.values()))
    monkeypatch.setattr(foreign_programs, limit, enough)
    assert libraries(plan()) == everything
    monkeypatch.setattr(foreign_programs, limit, enough - 1)
    with pytest.raises(
        UnsafeContents, match=r"^/etc/ld\.so\.cache cannot be in an image: it would list more"
    ):
        plan()


@pytest.mark.security
@pytest.mark.usefixtures("glibc")
def test_a_loader_has_a_limit(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_programs, "_LARGEST_LOADER", len(elf()))
    plan()
    monkeypatch.setattr(foreign_programs, "_LARGEST_LOADER", len(elf()) - 1)
    with pytest.raises(UnsafeContents, match="more than 19 bytes"):
        plan()


@pytest.mark.usefixtures("glibc")
def test_long_names_of_libraries_take_little_memory(write: Write, plan: Plan) -> None:
    write(TOOL, {f"lib/lib{number}{'x' * 235}.so": elf() for number in range(2000)})
    tracemalloc.start()
    try:
        assert len(libraries(plan())) == 2001
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
