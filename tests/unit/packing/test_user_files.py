import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixery.closure import StorePath
from nixery.errors import UnsafeContents
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.root_filesystem import Content, Link, Tree
from nixery.packing.system_files import ACCOUNTS
from nixery.packing.user_files import add_user_files

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533:nobody:/:/bin/false\n"
GROUP = b"root:x:0:\nwww:x:33:\n"
PACKAGE = StorePath("a" * 32 + "-p")


@pytest.fixture
def tree() -> Tree:
    root = Tree()
    root.add(b"etc/passwd", Content(PASSWD))
    root.add(b"etc/group", Content(GROUP))
    return root


@pytest.fixture
def package(tmp_path: Path) -> Path:
    package = tmp_path / "store" / PACKAGE.base_name
    package.mkdir(parents=True)
    return package


@pytest.fixture
def files(package: Path) -> Iterator[ClosureFiles]:
    with ClosureFiles([PACKAGE], bytes(package.parent)) as files:
        yield files


def with_link(name: str) -> Tree:
    """A root file system with a file of the package."""
    root = Tree()
    for each, content in ACCOUNTS.items():
        root.add(each, Content(content))
    above, _, last = name.rpartition("/")
    directory = root.get(above.encode())
    assert isinstance(directory, Tree)
    directory.children[last.encode()] = Link(f"{PACKAGE}/{last}".encode())
    return root


def owner(tree: Tree, name: bytes) -> tuple[int, int]:
    directory = tree.get(name)
    assert isinstance(directory, Tree)
    return directory.owner


def content(tree: Tree, name: bytes) -> bytes:
    file = tree.get(name)
    assert isinstance(file, Content)
    return file.content


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, (0, 0)),
        ("root", (0, 0)),
        ("0", (0, 0)),
        ("1234", (1234, 0)),
        ("1234:5678", (1234, 5678)),
        ("1234:www", (1234, 33)),
        ("nobody", (65534, 65533)),
        ("65534", (65534, 65533)),
        ("nobody:www", (65534, 33)),
        ("nobody:7", (65534, 7)),
    ],
)
def test_directories_belong_to_the_user(
    tree: Tree, files: ClosureFiles, user: str | None, expected: tuple[int, int]
) -> None:
    add_user_files(tree, files, user, "/srv/web", ["/var/lib/web/data/"])
    assert owner(tree, b"srv/web") == owner(tree, b"var/lib/web/data") == expected
    assert owner(tree, b"srv") == owner(tree, b"var/lib/web") == (0, 0)
    assert (content(tree, b"etc/passwd"), content(tree, b"etc/group")) == (PASSWD, GROUP)


def test_an_unknown_user_gets_an_entry(tree: Tree, files: ClosureFiles) -> None:
    add_user_files(tree, files, "web", "/srv/", [])
    assert content(tree, b"etc/passwd") == PASSWD + b"web:x:1000:1000::/srv:/bin/sh\n"
    assert content(tree, b"etc/group") == GROUP + b"web:x:1000:\n"
    assert owner(tree, b"srv") == (1000, 1000)


@pytest.mark.parametrize("place", ["/a:b", "/a\nroot2:x:0:0::/:/bin/sh", "/", "//"])
def test_a_directory_that_passwd_cannot_express_is_no_home(
    tree: Tree, files: ClosureFiles, place: str
) -> None:
    add_user_files(tree, files, "web", place, [])
    assert content(tree, b"etc/passwd") == PASSWD + b"web:x:1000:1000::/:/bin/sh\n"


def test_directories_within_each_other(tree: Tree, files: ClosureFiles) -> None:
    add_user_files(tree, files, "7:7", "/a/b", ["/a/b/c", "//a", "/a/b/c/d/"])
    assert {owner(tree, name) for name in (b"a", b"a/b", b"a/b/c", b"a/b/c/d")} == {(7, 7)}


@pytest.mark.parametrize(
    ("user", "passwd", "group"),
    [
        ("web:www", b"web:x:1000:33::/:/bin/sh\n", b""),
        ("web:5", b"web:x:1000:5::/:/bin/sh\n", b""),
        ("web:staff", b"web:x:1000:1000::/:/bin/sh\n", b"staff:x:1000:\n"),
        ("7:staff", b"", b"staff:x:1000:\n"),
    ],
)
def test_an_unknown_group_gets_one(
    tree: Tree, files: ClosureFiles, user: str, passwd: bytes, group: bytes
) -> None:
    add_user_files(tree, files, user, None, [])
    assert content(tree, b"etc/passwd") == PASSWD + passwd
    assert content(tree, b"etc/group") == GROUP + group


def test_a_packages_own_passwd_is_read_and_added_to(package: Path, files: ClosureFiles) -> None:
    (package / "passwd").write_text("# ours\napp:x:1000:7:App:/app:/bin/sh\nbroken")
    tree = with_link("etc/passwd")
    add_user_files(tree, files, "app", "/app", [])
    assert owner(tree, b"app") == (1000, 7)
    assert isinstance(tree.get(b"etc/passwd"), Link)
    add_user_files(tree, files, "web", "/srv", [])
    added = b"\nweb:x:1001:1000::/srv:/bin/sh\n"
    assert content(tree, b"etc/passwd") == (package / "passwd").read_bytes() + added


@pytest.mark.parametrize("name", ["etc/passwd", "etc/group"])
@pytest.mark.parametrize("target", ["/proc/self/environ", "/dev/zero", "/etc/passwd", "../../pipe", "none"])
def test_a_symlink_out_of_the_image_counts_as_missing(
    package: Path, files: ClosureFiles, tmp_path: Path, name: str, target: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (package / name.rpartition("/")[2]).symlink_to(target)
    tree = with_link(name)
    add_user_files(tree, files, "web", "/srv", [])
    passwd, group = ACCOUNTS.values()
    assert content(tree, b"etc/passwd") == passwd + b"web:x:1000:1000::/srv:/bin/sh\n"
    assert content(tree, b"etc/group") == group + b"web:x:1000:\n"


@pytest.mark.parametrize("name", ["etc/passwd", "etc/group"])
@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"x" * ((1 << 20) + 1), "more than 1,048,576 bytes"),
        (b"\n" * (1 << 16), "more than 65,536 lines"),
        (b"a:x:" + b"1" * 500_000 + b":1", "no larger than 4294967294"),
        (b"a:x:4294967295:1", "no larger than 4294967294"),
    ],
)
def test_a_flake_file_that_is_no_regular_file_is_refused(
    package: Path, files: ClosureFiles, name: str, file: bytes, reason: str
) -> None:
    last = name.rpartition("/")[2]
    (package / last).write_bytes(file)
    with pytest.raises(UnsafeContents, match=f"{PACKAGE}/{last} cannot be in an image: .*{reason}"):
        add_user_files(with_link(name), files, "web", None, [])


def test_the_number_of_a_users_group_is_limited(package: Path, files: ClosureFiles) -> None:
    (package / "passwd").write_text(f"a:x:4294967294:{'9' * 5000}::/:")
    with pytest.raises(UnsafeContents, match="no larger"):
        add_user_files(with_link("etc/passwd"), files, "a", None, [])
    # Members of a group have the same position.
    (package / "group").write_text(f"a:x:4294967294:{'9' * 5000}")
    tree = with_link("etc/group")
    add_user_files(tree, files, "a:a", "/srv", [])
    assert owner(tree, b"srv") == (1000, 4294967294)


def test_lines_end_as_in_the_c_library(package: Path, files: ClosureFiles) -> None:
    (package / "passwd").write_text("a:x:1:1::/:\x0bweb:x:0:0::/:\u2028web:x:0:0::/:\n")
    tree = with_link("etc/passwd")
    add_user_files(tree, files, "web", "/srv", [])
    assert owner(tree, b"srv") == (1000, 1000)


@pytest.mark.parametrize("place", ["/", "//", "/nix/store/x/share", "/proc/self", "/a/../nix/x"])
def test_store_paths_and_generated_files_are_covered_by_name(
    tree: Tree, files: ClosureFiles, place: str
) -> None:
    add_user_files(tree, files, "7", place, [place])
    assert set(tree.children) == {b"etc"}


def test_existing_nodes_are_kept(tree: Tree, files: ClosureFiles) -> None:
    tree.add(b"var/x", Tree())
    tree.add(b"share", Link(b"/nix/store/x/share"))
    add_user_files(tree, files, "7", "/share/web", ["/var", "/share"])
    assert owner(tree, b"var") == (0, 0)
    assert tree.get(b"share") == Link(b"/nix/store/x/share")
