"""The files of store paths are the same in the image as in the store."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Pull
from tests.support.pulled_image import ImageFilesystem

COMPONENT = "twenty-characters-aa" * 10


def below(filesystem: ImageFilesystem, package: str) -> dict[str, str]:
    """Map the names in a store path to their kinds."""
    prefix = f"{filesystem.store_path(package)}/"
    kinds = {"0": "file", "1": "hard link", "2": "symlink", "5": "directory"}
    return {
        name.removeprefix(prefix): kinds[member.type.decode()]
        for name, member in filesystem.members.items()
        if name.startswith(prefix)
    }


def test_empty_directories_are_in_the_image(pull: Pull) -> None:
    filesystem = pull("emptydirectory").filesystem
    assert below(filesystem, "emptydirectory-1.0") == {
        "empty": "directory",
        "empty/within": "directory",
        "share": "directory",
        "share/emptydirectory": "directory",
    }
    assert "empty/within" in filesystem


def test_hard_links_become_separate_files(pull: Pull) -> None:
    filesystem = pull("hardlinks").filesystem
    assert set(below(filesystem, "hardlinks-1.0").values()) == {"file", "directory"}
    for name in ("zz-first", "second", "deeper/third"):
        assert filesystem.read(f"share/{name}") == b"one file, three names\n"


def test_symlinks_keep_their_targets(pull: Pull) -> None:
    filesystem = pull("symlinks").filesystem
    store_path = filesystem.store_path("symlinks-1.0")
    targets = {
        name: filesystem.members[f"{store_path}/share/symlinks/{name}"].linkname
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


def test_files_keep_their_executable_bit(pull: Pull) -> None:
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


def test_names_of_any_length_are_kept(pull: Pull) -> None:
    filesystem = pull("longnames").filesystem
    above = f"share/longnames/{COMPONENT}"
    assert filesystem.read(f"{above}/{COMPONENT}-not-a-directory") == b"shallow\n"
    assert filesystem.read(f"{above}/{COMPONENT}/{COMPONENT}") == b"deep\n"
    link = filesystem.members[f"{filesystem.store_path('longnames-1.0')}/share/longnames/link"]
    assert link.linkname == COMPONENT


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
def test_names_that_are_not_text_are_kept(pull: Pull, name: bytes, content: bytes) -> None:
    text = name.decode(errors="surrogateescape")
    assert pull("bytenames").filesystem.read(f"share/bytenames/{text}") == content


def test_a_long_name_that_is_not_text_is_kept(pull: Pull) -> None:
    filesystem = pull("bytenames").filesystem
    name = f"\udcff{'0' * 150}"
    assert filesystem.read(f"share/bytenames/{name}") == b"long\n"
    # Extended headers are UTF-8 unless they say otherwise (POSIX.1-2017, pax).
    assert filesystem.find(f"share/bytenames/{name}").pax_headers["hdrcharset"] == "BINARY"


def test_an_empty_file_is_kept(pull: Pull) -> None:
    assert pull("emptyfile").filesystem.read("share/empty") == b""


def test_a_store_path_may_be_a_file(pull: Pull) -> None:
    filesystem = pull("singlefile").filesystem
    assert filesystem.read(filesystem.store_path("singlefile-1.0")) == b"content\n"


def test_a_large_file_is_complete(pull: Pull) -> None:
    filesystem = pull("big").filesystem
    assert len(filesystem.read(f"{filesystem.store_path('big-1.0')}/random")) == 16_000_000


def test_the_outputs_to_install_are_in_the_image(pull: Pull) -> None:
    filesystem = pull("outputs").filesystem
    assert filesystem.read("bin/program").startswith(b"program\n")
    assert filesystem.read("share/man/manual") == b"manual\n"
    assert "lib/library" not in filesystem
    assert filesystem.names_in("usr/include") == []
    names = {path.split("-", 1)[1] for path in filesystem.store_paths}
    # The program refers to the library: that output is in the image, but not at its root. Nothing refers to
    # the header.
    assert {"outputs-1.0", "outputs-1.0-bin", "outputs-1.0-man"} <= names
    assert "outputs-1.0-dev" not in names


def test_the_first_output_is_installed_by_default(pull: Pull) -> None:
    filesystem = pull("firstoutput").filesystem
    assert filesystem.read("share/firstoutput") == b"out\n"
    assert "share/documentation" not in filesystem


def test_a_store_path_may_refer_to_itself(pull: Pull) -> None:
    filesystem = pull("selfreference").filesystem
    store_path = filesystem.store_path("selfreference-1.0")
    assert filesystem.read("share/self") == f"/{store_path}\n".encode()
    assert filesystem.members[f"{store_path}/share/myself"].linkname == f"/{store_path}"


def test_a_shared_dependency_is_in_the_image_once(pull: Pull) -> None:
    filesystem = pull("diamond").filesystem
    names = {path.split("-", 1)[1] for path in filesystem.store_paths}
    assert {"diamond-1.0", "left-1.0", "right-1.0", "bottom-1.0"} <= names
    assert filesystem.read(f"{filesystem.store_path('bottom-1.0')}/bottom") == b"bottom\n"
