import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nixery.closure import Closure, PathInfo, StorePath
from nixery.errors import UnsafeContents
from nixery.packing import nix_database as module
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.local_store import LocalStore
from nixery.packing.nix_database import add_nix_database, nix_database
from nixery.packing.root_filesystem import Content, Link, Tree

LIBC, NIX, TOOL = (
    StorePath(digit * 32 + name) for digit, name in (("a", "-libc"), ("b", "-nix"), ("c", "-tool"))
)
CLOSURE = Closure(
    (
        PathInfo(NIX, "11" * 32, 2000, (LIBC,), "/nix/store/" + "d" * 32 + "-nix.drv", refers_to_itself=True),
        PathInfo(TOOL, "22" * 32, 3000, (LIBC, NIX)),
        PathInfo(LIBC, "33" * 32, 5_000_000_000, ()),
    )
)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ClosureFiles]:
    store = tmp_path / "store"
    for info in CLOSURE:
        (store / info.path.base_name).mkdir(parents=True)
    program = store / NIX.base_name / "bin" / "nix-store"
    program.parent.mkdir()
    program.touch()
    with LocalStore(bytes(store)) as contents:
        yield ClosureFiles((info.path for info in CLOSURE), contents)


def tree_with(target: str) -> Tree:
    tree = Tree()
    tree.add(b"bin/nix-store", Link(target.encode()))
    return tree


def content(tree: Tree, name: bytes) -> bytes:
    node = tree.get(name)
    assert isinstance(node, Content)
    return node.content


def test_an_image_with_nix_has_its_state(files: ClosureFiles) -> None:
    tree = tree_with(f"{NIX}/bin/nix-store")
    add_nix_database(tree, files, CLOSURE, [NIX, TOOL])
    assert content(tree, b"nix/var/nix/db/db.sqlite") == nix_database(CLOSURE)
    assert content(tree, b"nix/var/nix/db/schema") == b"10"
    roots = tree.get(b"nix/var/nix/gcroots/image")
    assert isinstance(roots, Tree)
    assert set(roots.children.values()) == {Link(str(NIX).encode()), Link(str(TOOL).encode())}
    assert tree.get(b"nix/var/nix/gcroots/profiles") == Link(b"/nix/var/nix/profiles")
    assert b"sandbox = false" in content(tree, b"etc/nix/nix.conf")


@pytest.mark.parametrize(
    "target", [f"{NIX}/bin/missing", "/usr/bin/nix-store", f"/nix/store/{'f' * 32}-nix/bin/nix-store"]
)
def test_an_image_without_nix_has_none(files: ClosureFiles, target: str) -> None:
    for tree in (Tree(), tree_with(target)):
        add_nix_database(tree, files, CLOSURE, [TOOL])
        assert tree.get(b"nix") is None
        assert tree.get(b"etc") is None


def test_a_package_keeps_its_configuration(files: ClosureFiles) -> None:
    tree = tree_with(f"{NIX}/bin/nix-store")
    own = Link(f"{NIX}/etc/nix/nix.conf".encode())
    tree.add(b"etc/nix/nix.conf", own)
    add_nix_database(tree, files, CLOSURE, [NIX])
    assert tree.get(b"etc/nix/nix.conf") == own


def test_the_database_has_all_paths_and_references(tmp_path: Path) -> None:
    file = tmp_path / "db.sqlite"
    file.write_bytes(nix_database(CLOSURE))
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        # Path, hash, registration time, deriver, size, "ultimate", signatures and content address.
        assert connection.execute("SELECT * FROM ValidPaths").fetchall() == [
            (1, str(LIBC), "sha256:" + "33" * 32, 1, None, 5_000_000_000, None, None, None),
            (2, str(NIX), "sha256:" + "11" * 32, 1, None, 2000, None, None, None),
            (3, str(TOOL), "sha256:" + "22" * 32, 1, None, 3000, None, None, None),
        ]
        assert connection.execute("SELECT referrer, reference FROM Refs").fetchall() == [
            (2, 1),
            (2, 2),
            (3, 1),
            (3, 2),
        ]


def test_the_deriver_does_not_count() -> None:
    # A path has another one on a machine that fetched it, or that built the same content another way.
    other = Closure(
        PathInfo(i.path, i.nar_hash, i.nar_size, i.references, "", i.refers_to_itself) for i in CLOSURE
    )
    assert nix_database(other) == nix_database(CLOSURE)


def test_references_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_REFERENCES", 4)
    nix_database(CLOSURE)
    monkeypatch.setattr(module, "_MOST_REFERENCES", 3)
    with pytest.raises(UnsafeContents, match="-tool cannot be in an image: with it, the store paths"):
        nix_database(CLOSURE)


@pytest.mark.parametrize(
    ("owner", "modes"),
    [((1000, 100), {0o755, 0o644}), ((1000, 0), {0o775, 0o664}), ((0, 0), {0o775, 0o664})],
)
def test_the_state_belongs_to_the_user_of_the_image(
    files: ClosureFiles, owner: tuple[int, int], modes: set[int]
) -> None:
    tree = tree_with(f"{NIX}/bin/nix-store")
    add_nix_database(tree, files, CLOSURE, [NIX], owner)
    found = set()
    state = (
        "nix/var/nix",
        "nix/var/nix/db",
        "nix/var/nix/gcroots",
        "nix/var/nix/profiles",
        "nix/var/nix/temproots",
    )
    for name in (*state, "nix/var/nix/db/db.sqlite", "nix/var/nix/db/schema", "nix/var/log/nix"):
        node = tree.get(name.encode())
        assert isinstance(node, Tree | Content)
        assert node.owner == owner, name
        found.add(node.mode)
    assert found == modes
    store = tree.get(b"nix/store")
    assert isinstance(store, Tree)
    assert (store.mode, store.owner) == (0o1775, (0, owner[1]))
    above = tree.get(b"nix")
    assert isinstance(above, Tree)
    assert above.owner == (0, 0)
