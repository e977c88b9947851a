from collections.abc import Iterator
from pathlib import Path

import pytest

from nixery.closure import StorePath
from nixery.errors import UnsafeContents
from nixery.packing import dpkg_database as module
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.dpkg_database import add_dpkg_database
from nixery.packing.local_store import LocalStore
from nixery.packing.root_filesystem import Content, Link, Tree

TOOL, LIBC, DATA = (
    StorePath(digit * 32 + name) for digit, name in (("a", "-tool"), ("b", "-libc"), ("c", "-data"))
)
STATUS = b"var/lib/dpkg/status"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for path in (TOOL, LIBC, DATA):
        (tmp_path / path.base_name / "nix-support").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def files(store: Path) -> Iterator[ClosureFiles]:
    with LocalStore(bytes(store)) as contents:
        yield ClosureFiles((TOOL, LIBC, DATA), contents)


def write(store: Path, path: StorePath, text: str) -> None:
    (store / path.base_name / "nix-support/dpkg-status").write_text(text)


def test_the_packages_of_all_store_paths_are_in_the_database_once_and_in_order(
    store: Path, files: ClosureFiles
) -> None:
    write(store, TOOL, "Package: tool\nVersion: 1\n\nPackage: zlib\nVersion: 2\n")
    write(store, LIBC, "Package: libc6\nVersion: 3\n\nPackage: tool\nVersion: 1\n")
    tree = Tree()
    tree.add(STATUS, Link(f"{LIBC}/var/lib/dpkg/status".encode()))
    add_dpkg_database(tree, files)
    assert tree.get(STATUS) == Content(
        b"Package: libc6\nVersion: 3\n\nPackage: tool\nVersion: 1\n\nPackage: zlib\nVersion: 2\n"
    )


def test_an_image_without_packages_of_debian_has_no_database(store: Path, files: ClosureFiles) -> None:
    write(store, TOOL, "no stanza\n\nPackage: ../x\nVersion: 1\n")
    tree = Tree()
    add_dpkg_database(tree, files)
    assert tree == Tree()


def test_the_size_of_the_database_is_bounded(
    store: Path, files: ClosureFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST_STATUS", 40)
    for path in (TOOL, LIBC, DATA):
        write(store, path, f"Package: {path.base_name[33:]}\n")
    with pytest.raises(UnsafeContents, match="more than 40 bytes"):
        add_dpkg_database(Tree(), files)


def test_a_record_that_is_too_long_or_no_file_is_refused(
    store: Path, files: ClosureFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST_RECORD", 10)
    write(store, TOOL, "Package: tool\n")
    with pytest.raises(UnsafeContents, match="more than 10 bytes"):
        add_dpkg_database(Tree(), files)
    (store / TOOL.base_name / "nix-support/dpkg-status").unlink()
    (store / LIBC.base_name / "nix-support/dpkg-status").mkdir()
    with pytest.raises(UnsafeContents, match="regular file"):
        add_dpkg_database(Tree(), files)
