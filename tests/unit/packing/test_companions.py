from collections.abc import Mapping
from pathlib import Path

import pytest

from nixery.closure import StorePath
from nixery.packing.closure_files import ClosureFiles
from nixery.packing.companions import copy_programs_beside_their_files
from nixery.packing.local_store import LocalStore
from nixery.packing.root_filesystem import Content, Link, Tree

CORE = "a" * 32 + "-libreoffice-core"
COMMON = "b" * 32 + "-libreoffice-common"
WRITER = "c" * 32 + "-libreoffice-writer"
PROGRAMS = "lib/libreoffice/program"
SCRIPT = b"#!/bin/sh\nexec $(dirname $(readlink -f $0))/oosplash\n"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for base_name, files in FILES.items():
        for name, content in files.items():
            file = tmp_path / base_name / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                file.symlink_to(content)
            else:
                file.write_bytes(content)
                file.chmod(0o444 if ".so" in name or name.endswith("rc") else 0o555)
    (tmp_path / CORE / PROGRAMS / "liboffice.so").chmod(0o555)
    return tmp_path


FILES: Mapping[str, Mapping[str, bytes | str]] = {
    CORE: {
        f"{PROGRAMS}/oosplash": b"\x7fELF launcher",
        f"{PROGRAMS}/liboffice.so": b"\x7fELF library",
        f"{PROGRAMS}/viewer": b"\x7fELF" + bytes(1 << 20),
        f"{PROGRAMS}/alone/tool": b"#!/bin/sh\n",
    },
    COMMON: {
        f"{PROGRAMS}/soffice": SCRIPT,
        f"{PROGRAMS}/fundamentalrc": b"[Bootstrap]\n",
        "bin/soffice": "../lib/libreoffice/program/soffice",
        "bin/other": SCRIPT,
        "share/one/program": SCRIPT,
    },
    WRITER: {f"{PROGRAMS}/libswlo.so": b"\x7fELF", f"{PROGRAMS}/outside": "/etc/passwd"},
}


def link(base_name: str, name: str) -> Link:
    return Link(f"/nix/store/{base_name}/{name}".encode())


def root(store: Path, names: Mapping[str, str]) -> Tree:
    tree = Tree()
    for name, base_name in names.items():
        tree.add(name.encode(), link(base_name, name))
    with LocalStore(bytes(store)) as contents:
        copy_programs_beside_their_files(tree, ClosureFiles(map(StorePath, FILES), contents))
    return tree


def all_names() -> dict[str, str]:
    return {
        name: base_name
        for base_name, files in FILES.items()
        for name in files
        if not name.startswith(f"{PROGRAMS}/alone")
    } | {f"{PROGRAMS}/alone": CORE}


def test_a_program_is_in_the_directory_of_all_packages(store: Path) -> None:
    tree = root(store, all_names())
    assert tree.get(f"{PROGRAMS}/soffice".encode()) == Content(SCRIPT, 0o755)
    assert tree.get(f"{PROGRAMS}/oosplash".encode()) == Content(b"\x7fELF launcher", 0o755)


def test_its_name_in_bin_leads_there(store: Path) -> None:
    tree = root(store, all_names())
    assert tree.get(b"bin/soffice") == Link(b"/usr/lib/libreoffice/program/soffice")
    assert tree.get(b"bin/other") == link(COMMON, "bin/other")


@pytest.mark.parametrize(
    "name", ["liboffice.so", "libswlo.so", "fundamentalrc", "viewer", "outside", "alone"]
)
def test_others_remain_symlinks(store: Path, name: str) -> None:
    """Libraries, data, large programs, links out of the closure, and directories of one package."""
    tree = root(store, all_names())
    assert isinstance(tree.get(f"{PROGRAMS}/{name}".encode()), Link)


def test_a_directory_of_one_package_stays_as_it_is(store: Path) -> None:
    tree = root(store, dict.fromkeys(FILES[COMMON], COMMON))
    assert tree.get(f"{PROGRAMS}/soffice".encode()) == link(COMMON, f"{PROGRAMS}/soffice")
    assert tree.get(b"bin/soffice") == link(COMMON, "bin/soffice")
    assert tree.get(b"share/one/program") == link(COMMON, "share/one/program")


def test_copies_are_bounded_together(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nixery.packing.companions._MOST_BYTES", len(SCRIPT))
    tree = root(store, all_names())
    assert isinstance(tree.get(f"{PROGRAMS}/oosplash".encode()), Content)
    assert isinstance(tree.get(f"{PROGRAMS}/soffice".encode()), Link)


@pytest.mark.security
def test_a_large_program_of_many_names_is_read_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    read_beginning = ClosureFiles.read_beginning

    def counted(files: ClosureFiles, file: bytes, size: int) -> bytes | None:
        read.append(file)
        return read_beginning(files, file, size)

    monkeypatch.setattr(ClosureFiles, "read_beginning", counted)
    for number in range(50):
        (store / CORE / PROGRAMS / f"name{number}").symlink_to("viewer")
    root(store, all_names() | {f"{PROGRAMS}/name{number}": CORE for number in range(50)})
    assert len([file for file in read if b"name" in file or b"viewer" in file]) == 1
