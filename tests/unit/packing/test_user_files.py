import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixery.closure import StorePath
from nixery.errors import UnsafeContents
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.local_store import LocalStore
from nixery.packing.root_filesystem import Content, Link, Tree
from nixery.packing.system_files import default_accounts
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
    with LocalStore(bytes(package.parent)) as contents:
        yield ClosureFiles([PACKAGE], contents)


def with_link(name: str) -> Tree:
    """A root file system with a file of the package."""
    root = Tree()
    for each, content in default_accounts(root).items():
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


def test_directories_of_root(tree: Tree, files: ClosureFiles) -> None:
    for user in (None, "root", "0", "00"):
        add_user_files(tree, files, user, "/srv/web", ["/var/lib/web/data/"])
        assert owner(tree, b"srv/web") == owner(tree, b"var/lib/web/data") == (0, 0)
        assert (content(tree, b"etc/passwd"), content(tree, b"etc/group")) == (PASSWD, GROUP)
    assert tree.get(b"home") is None


@pytest.mark.parametrize(
    ("user", "expected", "passwd", "group"),
    [
        ("web", (1000, 1000), b"web:x:1000:1000:web:/home/web:/bin/sh\n", b"web:x:1000:\n"),
        ("web:www", (1000, 33), b"web:x:1000:33:web:/home/web:/bin/sh\n", b""),
        ("web:5", (1000, 5), b"web:x:1000:5:web:/home/web:/bin/sh\n", b"group5:x:5:\n"),
        ("web:staff", (1000, 1000), b"web:x:1000:1000:web:/home/web:/bin/sh\n", b"staff:x:1000:\n"),
        ("7", (7, 0), b"user7:x:7:0:user7:/home/user7:/bin/sh\n", b""),
        ("007:0", (7, 0), b"user7:x:7:0:user7:/home/user7:/bin/sh\n", b""),
        ("7:7", (7, 7), b"user7:x:7:7:user7:/home/user7:/bin/sh\n", b"user7:x:7:\n"),
        ("7:8", (7, 8), b"user7:x:7:8:user7:/home/user7:/bin/sh\n", b"group8:x:8:\n"),
        ("7:www", (7, 33), b"user7:x:7:33:user7:/home/user7:/bin/sh\n", b""),
        ("7:staff", (7, 1000), b"user7:x:7:1000:user7:/home/user7:/bin/sh\n", b"staff:x:1000:\n"),
    ],
)
def test_a_user_without_an_entry_gets_one_and_a_home(
    tree: Tree,
    files: ClosureFiles,
    user: str,
    expected: tuple[int, int],
    passwd: bytes,
    group: bytes,
) -> None:
    add_user_files(tree, files, user, "/srv/web", ["/var/lib/web/data/"])
    assert content(tree, b"etc/passwd") == PASSWD + passwd
    assert content(tree, b"etc/group") == GROUP + group
    places = (b"srv/web", b"var/lib/web/data", passwd.split(b":")[5][1:])
    assert {owner(tree, place) for place in places} == {expected}
    assert owner(tree, b"srv") == owner(tree, b"var/lib/web") == owner(tree, b"home") == (0, 0)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("nobody", (65534, 65533)),
        ("65534", (65534, 65533)),
        ("nobody:www", (65534, 33)),
        ("nobody:0", (65534, 0)),
    ],
)
def test_a_user_whose_home_belongs_to_root_gets_another_one(
    tree: Tree, files: ClosureFiles, user: str, expected: tuple[int, int]
) -> None:
    add_user_files(tree, files, user, "/srv", [])
    assert content(tree, b"etc/passwd") == PASSWD.replace(b":/:", b":/home/nobody:")
    assert content(tree, b"etc/group") == GROUP
    assert owner(tree, b"home/nobody") == owner(tree, b"srv") == expected


def test_directories_of_group_0_can_be_written_by_it(tree: Tree, files: ClosureFiles) -> None:
    def modes(*names: bytes) -> set[int]:
        directories = [tree.get(name) for name in names]
        return {directory.mode for directory in directories if isinstance(directory, Tree)}

    add_user_files(tree, files, "7", "/srv/web", ["/data"])
    assert modes(b"srv/web", b"data", b"home/user7") == {0o775}
    add_user_files(tree, files, "8:8", "/srv/other", [])
    assert modes(b"srv/other", b"home/user8", b"srv", b"home") == {0o755}


def test_directories_within_each_other(tree: Tree, files: ClosureFiles) -> None:
    add_user_files(tree, files, "7:7", "/a/b", ["/a/b/c", "//a", "/a/b/c/d/"])
    assert {owner(tree, name) for name in (b"a", b"a/b", b"a/b/c", b"a/b/c/d")} == {(7, 7)}


def test_bash_is_the_shell_of_a_user(tree: Tree, files: ClosureFiles) -> None:
    tree.add(b"bin/bash", Link(b"/nix/store/x/bin/bash"))
    add_user_files(tree, files, "web", None, [])
    assert content(tree, b"etc/passwd").endswith(b"web:x:1000:1000:web:/home/web:/bin/bash\n")


@pytest.mark.parametrize(
    ("home", "kept"),
    [
        ("/var/lib/app", True),
        ("/var/lib/there", True),
        ("/var/lib/full", False),
        ("/", False),
        ("", False),
        ("/var/empty", False),
        ("/nonexistent", False),
        ("/proc/self", False),
        ("/nix/store/x", False),
        ("/var/lib/../../etc", False),
        ("/tmp", False),  # noqa: S108 -- of the image
        ("/" + "x" * 65, False),
        ("/x" * 17, False),
        ("srv", False),
    ],
)
def test_the_home_of_a_packages_user_is_made_or_replaced(
    package: Path, files: ClosureFiles, home: str, *, kept: bool
) -> None:
    line = "app:x:7:7:App,,,:{}:/bin/false"
    (package / "passwd").write_text(f"root:x:0:0::/root:\n{line.format(home)}\nz:x:9:9::/:\n")
    tree = with_link("etc/passwd")
    tree.add(b"var/lib/there", Tree())
    tree.add(b"var/lib/full/file", Content(b""))
    tree.add(b"tmp", Tree(mode=0o1777))
    add_user_files(tree, files, "app", None, [])
    expected = home if kept else "/home/app"
    assert owner(tree, expected[1:].encode()) == (7, 7)
    lines = (package / "passwd").read_text() if kept else content(tree, b"etc/passwd").decode()
    assert lines.split("\n")[1] == line.format(expected)
    assert (owner(tree, b"var/lib/full"), owner(tree, b"tmp")) == ((0, 0), (0, 0))


@pytest.mark.parametrize("name", ["../../etc", "a/b", "x" * 256, ".", "caf\xe9"])
def test_a_name_that_is_no_file_name_makes_no_home(package: Path, files: ClosureFiles, name: str) -> None:
    (package / "passwd").write_text(f"{name}:x:7:7::/:\nshort:x:8:8", encoding="latin-1")
    tree = with_link("etc/passwd")
    add_user_files(tree, files, "7", None, [])
    assert owner(tree, b"home/user7") == (7, 7)
    tree = with_link("etc/passwd")
    add_user_files(tree, files, "short", None, [])
    assert content(tree, b"etc/passwd").endswith(b"\nshort:x:8:8::/home/short:\n")


def test_a_packages_own_passwd_is_read_and_added_to(package: Path, files: ClosureFiles) -> None:
    (package / "passwd").write_text("# ours\napp:x:1000:7:App:/app:/bin/sh\nbroken")
    tree = with_link("etc/passwd")
    add_user_files(tree, files, "app", "/app", [])
    assert owner(tree, b"app") == (1000, 7)
    assert isinstance(tree.get(b"etc/passwd"), Link)
    add_user_files(tree, files, "web", "/srv", [])
    added = b"\nweb:x:1001:1000:web:/home/web:/bin/sh\n"
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
    passwd, group = default_accounts(Tree()).values()
    assert content(tree, b"etc/passwd") == passwd + b"web:x:1000:1000:web:/home/web:/bin/sh\n"
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
    add_user_files(tree, files, None, place, [place])
    assert set(tree.children) == {b"etc"}


def test_directories_of_the_system_stay_roots(tree: Tree, files: ClosureFiles) -> None:
    for name in (b"sbin", b"usr/local/bin", b"lib", b"etc", b"srv", b"var/log"):
        tree.add(name, Tree())
    line = b"daemon:x:1:1::/usr/sbin:/bin/false\nserver:x:2:2::/srv:/bin/false\n"
    above = tree.get(b"etc")
    assert isinstance(above, Tree)
    above.children[b"passwd"] = Content(line)
    add_user_files(tree, files, "daemon", "/usr/sbin", ["/usr/local/bin", "/lib", "/srv", "/var/log"])
    assert owner(tree, b"sbin") == owner(tree, b"usr/local/bin") == owner(tree, b"lib") == (0, 0)
    assert owner(tree, b"srv") == owner(tree, b"var/log") == owner(tree, b"home/daemon") == (1, 1)
    add_user_files(tree, files, "server", None, [])
    assert content(tree, b"etc/passwd").count(b":/home/") == 2


def test_existing_nodes_are_kept(tree: Tree, files: ClosureFiles) -> None:
    tree.add(b"var/x", Tree())
    tree.add(b"share", Link(b"/nix/store/x/share"))
    add_user_files(tree, files, "7", "/share/web", ["/var", "/share"])
    assert owner(tree, b"var") == (0, 0)
    assert tree.get(b"share") == Link(b"/nix/store/x/share")
