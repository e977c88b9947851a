from pathlib import Path

import pytest

from nixery.errors import StorageError
from nixery.packing.tree import Content, Link, Tree
from nixery.packing.user_files import add_user_files

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65533:nobody:/:/bin/false\n"
GROUP = b"root:x:0:\nwww:x:33:\n"


@pytest.fixture
def tree() -> Tree:
    root = Tree()
    root.add(b"etc/passwd", Content(PASSWD))
    root.add(b"etc/group", Content(GROUP))
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
def test_directories_belong_to_the_user(tree: Tree, user: str | None, expected: tuple[int, int]) -> None:
    add_user_files(tree, user, "/srv/web", ["/var/lib/web/data/"])
    assert owner(tree, b"srv/web") == owner(tree, b"var/lib/web/data") == expected
    assert owner(tree, b"srv") == owner(tree, b"var/lib/web") == (0, 0)
    assert (content(tree, b"etc/passwd"), content(tree, b"etc/group")) == (PASSWD, GROUP)


def test_an_unknown_user_gets_an_entry(tree: Tree) -> None:
    add_user_files(tree, "web", "/srv/", [])
    assert content(tree, b"etc/passwd") == PASSWD + b"web:x:1000:1000::/srv:/bin/sh\n"
    assert content(tree, b"etc/group") == GROUP + b"web:x:1000:\n"
    assert owner(tree, b"srv") == (1000, 1000)


@pytest.mark.parametrize("place", ["/a:b", "/a\nroot2:x:0:0::/:/bin/sh", "/", "//"])
def test_an_odd_directory_is_no_home(tree: Tree, place: str) -> None:
    add_user_files(tree, "web", place, [])
    assert content(tree, b"etc/passwd") == PASSWD + b"web:x:1000:1000::/:/bin/sh\n"


def test_directories_within_each_other(tree: Tree) -> None:
    add_user_files(tree, "7:7", "/a/b", ["/a/b/c", "//a", "/a/b/c/d/"])
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
def test_an_unknown_group_gets_one(tree: Tree, user: str, passwd: bytes, group: bytes) -> None:
    add_user_files(tree, user, None, [])
    assert content(tree, b"etc/passwd") == PASSWD + passwd
    assert content(tree, b"etc/group") == GROUP + group


def test_a_packages_own_passwd_is_read_and_added_to(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("# ours\napp:x:1000:7:App:/app:/bin/sh\nbroken")
    tree = Tree()
    tree.add(b"etc/passwd", Link(bytes(tmp_path / "passwd")))
    add_user_files(tree, "app", "/app", [])
    assert owner(tree, b"app") == (1000, 7)
    assert isinstance(tree.get(b"etc/passwd"), Link)
    add_user_files(tree, "web", "/srv", [])
    added = b"\nweb:x:1001:1000::/srv:/bin/sh\n"
    assert content(tree, b"etc/passwd") == (tmp_path / "passwd").read_bytes() + added
    tree.children[b"etc"] = Tree({b"passwd": Link(bytes(tmp_path / "gone"))})
    with pytest.raises(StorageError, match=r"cannot read .*gone"):
        add_user_files(tree, "web", None, [])


@pytest.mark.parametrize("place", ["/", "//", "/nix/store/x/share", "/proc/self", "/a/../nix/x"])
def test_some_places_are_not_ours(tree: Tree, place: str) -> None:
    add_user_files(tree, "7", place, [place])
    assert set(tree.children) == {b"etc"}


def test_what_stands_there_stays(tree: Tree) -> None:
    tree.add(b"var/x", Tree())
    tree.add(b"share", Link(b"/nix/store/x/share"))
    add_user_files(tree, "7", "/share/web", ["/var", "/share"])
    assert owner(tree, b"var") == (0, 0)
    assert tree.get(b"share") == Link(b"/nix/store/x/share")
