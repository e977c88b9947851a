from __future__ import annotations

import pytest

from tests.integration.conftest import Pull
from tests.support.pulled_image import ImageFilesystem

COMPONENT = "twenty-characters-aa" * 10


def below(filesystem: ImageFilesystem, package: str) -> dict[str, str]:
    """Names within a store path, and what they are."""
    prefix = f"{filesystem.store_path(package)}/"
    kinds = {"0": "file", "1": "hard link", "2": "symlink", "5": "directory"}
    return {
        name.removeprefix(prefix): kinds[member.type.decode()]
        for name, member in filesystem.members.items()
        if name.startswith(prefix)
    }


def test_empty_directories(pull: Pull) -> None:
    filesystem = pull("emptydirectory").filesystem
    assert below(filesystem, "emptydirectory-1.0") == {
        "empty": "directory",
        "empty/within": "directory",
        "share": "directory",
        "share/emptydirectory": "directory",
    }
    assert "empty/within" in filesystem


def test_hard_links_are_files_of_their_own(pull: Pull) -> None:
    filesystem = pull("hardlinks").filesystem
    assert set(below(filesystem, "hardlinks-1.0").values()) == {"file", "directory"}
    for name in ("zz-first", "second", "deeper/third"):
        assert filesystem.read(f"share/{name}") == b"one file, three names\n"


def test_symlinks(pull: Pull) -> None:
    filesystem = pull("symlinks").filesystem
    targets = {
        name: filesystem.find(f"share/symlinks/{name}").linkname
        for name in ("relative", "upwards", "absolute", "dangling", "long")
    }
    assert targets == {
        "relative": "target",
        "upwards": "../../share/symlinks",
        "absolute": f"/{filesystem.store_path('bottom-1.0')}/bottom",
        "dangling": "/does/not/exist",
        "long": "nowhere/" + "twenty-characters-aa" * 15,
    }
    assert filesystem.read("share/symlinks/absolute") == b"bottom\n"
    assert filesystem.read("share/symlinks/upwards/relative") == b"target\n"


def test_executable_bits(pull: Pull) -> None:
    filesystem = pull("executables").filesystem
    store_path = filesystem.store_path("executables-1.0")
    modes = {
        name: filesystem.members[f"{store_path}/{name}"].mode
        for name in ("bin/executable", "bin/owner-only", "share/plain", "share/writable")
    }
    assert modes == {
        "bin/executable": 0o555,
        "bin/owner-only": 0o555,
        "share/plain": 0o444,
        "share/writable": 0o444,
    }


def test_long_names(pull: Pull) -> None:
    filesystem = pull("longnames").filesystem
    above = f"share/longnames/{COMPONENT}"
    assert filesystem.read(f"{above}/{COMPONENT}-not-a-directory") == b"shallow\n"
    assert filesystem.read(f"{above}/{COMPONENT}/{COMPONENT}") == b"deep\n"
    assert filesystem.find("share/longnames/link").linkname == COMPONENT


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (b"caf\xe9", b"latin\n"),
        (b"\xff\xfe", b"all-ones\n"),
        (b"caf\xc3\xa9/inside", b"utf-8\n"),
        (b"a\nb", b"newline\n"),
        (b" blank ", b"blank\n"),
        (b"link\xff", b"all-ones\n"),
    ],
)
def test_names_that_are_bytes(pull: Pull, name: bytes, content: bytes) -> None:
    text = name.decode(errors="surrogateescape")
    assert pull("bytenames").filesystem.read(f"share/bytenames/{text}") == content


def test_long_name_that_is_bytes(pull: Pull) -> None:
    filesystem = pull("bytenames").filesystem
    name = f"\udcff{'0' * 150}"
    assert filesystem.read(f"share/bytenames/{name}") == b"long\n"
    # Extended headers are UTF-8 unless they say otherwise (POSIX.1-2017, pax).
    assert filesystem.find(f"share/bytenames/{name}").pax_headers["hdrcharset"] == "BINARY"


def test_empty_file(pull: Pull) -> None:
    assert pull("emptyfile").filesystem.read("share/empty") == b""


def test_store_path_that_is_a_file(pull: Pull) -> None:
    filesystem = pull("singlefile").filesystem
    assert filesystem.read(filesystem.store_path("singlefile-1.0")) == b"content\n"


def test_big_file(pull: Pull) -> None:
    filesystem = pull("big").filesystem
    assert len(filesystem.read(f"{filesystem.store_path('big-1.0')}/random")) == 16_000_000


def test_outputs_to_install(pull: Pull) -> None:
    filesystem = pull("outputs").filesystem
    assert filesystem.read("bin/program").startswith(b"program\n")
    assert filesystem.read("share/man/manual") == b"manual\n"
    assert "lib/library" not in filesystem
    assert "include" not in filesystem
    names = {path.split("-", 1)[1] for path in filesystem.store_paths}
    # The program refers to the library, so that output is there, but not at the root. Nothing refers to the header.
    assert {"outputs-1.0", "outputs-1.0-bin", "outputs-1.0-man"} <= names
    assert "outputs-1.0-dev" not in names


def test_first_output_without_a_word_about_outputs(pull: Pull) -> None:
    filesystem = pull("firstoutput").filesystem
    assert filesystem.read("share/firstoutput") == b"out\n"
    assert "share/documentation" not in filesystem


def test_self_reference(pull: Pull) -> None:
    filesystem = pull("selfreference").filesystem
    store_path = filesystem.store_path("selfreference-1.0")
    assert filesystem.read("share/self") == f"/{store_path}\n".encode()
    assert filesystem.members[f"{store_path}/share/myself"].linkname == f"/{store_path}"


def test_diamond(pull: Pull) -> None:
    filesystem = pull("diamond").filesystem
    names = {path.split("-", 1)[1] for path in filesystem.store_paths}
    assert {"diamond-1.0", "left-1.0", "right-1.0", "bottom-1.0"} <= names
    assert filesystem.read(f"{filesystem.store_path('bottom-1.0')}/bottom") == b"bottom\n"
