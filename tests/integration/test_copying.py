"""``COPY rootfs/ /`` over an image keeps what the image has, by the rules of each builder.

``tests/acceptance/test_building.py`` has the builders themselves; continuous integration leaves out kaniko,
which takes minutes to compile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

import pytest

from tests.integration.conftest import Pull
from tests.support.pulled_image import ImageFilesystem

# Names of an image without leading slashes, with what they are: for a symlink, its target.
Names = dict[str, str]
_DIRECTORY, _FILE, _COPIED = "a directory", "a file", "a copied file"

_FILES = (
    *(
        "usr/bin/x",
        "usr/sbin/x",
        "usr/local/bin/x",
        "usr/local/share/x",
        "bin/x",
        "sbin/x",
        "lib/x",
        "lib/app/x",
    ),
    *("usr/lib/x", "usr/lib/app/x", "usr/share/app/x", "usr/include/x", "usr/libexec/app/x", "usr/src/app/x"),
    *(
        "etc/x",
        "etc/app/x",
        "etc/ssl/certs/x",
        "etc/profile.d/x",
        "opt/app/x",
        "home/web/x",
        "srv/x",
        "mnt/x",
    ),
    *("var/log/app/x", "var/lib/app/x", "var/cache/app/x", "var/spool/x", "run/app/x", "tmp/x", "root/x"),
)

# Files in directories that only one of the packages has.
_BESIDE_PACKAGES = (
    "usr/share/symlinks/x",
    "usr/share/symlinks/above/app/x",
    "usr/share/executables/x",
    f"usr/share/longnames/{'twenty-characters-aa' * 10}/x",
)


def _parents(file: str) -> Iterator[str]:
    yield from (str(parent) for parent in reversed(PurePosixPath(file).parents) if parent.name)


def _copy_as_buildkit(names: Names, file: str) -> None:
    for directory in _parents(file):
        if names.setdefault(directory, _DIRECTORY) != _DIRECTORY:
            raise NotADirectoryError(f"cannot copy to non-directory: {directory}")
    names[file] = _COPIED


def _copy_as_buildah(names: Names, file: str) -> None:
    for directory in _parents(file):
        if names.get(directory) != _DIRECTORY:
            _remove(names, directory)
            names[directory] = _DIRECTORY
    _remove(names, file)
    names[file] = _COPIED


def _remove(names: Names, name: str) -> None:
    for each in [each for each in names if each == name or each.startswith(f"{name}/")]:
        del names[each]


def _copy_as_kaniko(names: Names, file: str) -> None:
    """CopyDir of kaniko's fs_util.go: directories are made as by mkdir -p, files are written through symlinks."""
    *_, parent = _parents(file)
    for directory in _parents(file):
        names.setdefault(_resolved(names, directory), _DIRECTORY)
    if names.get(parent) != _DIRECTORY:
        raise NotADirectoryError(f"destination cannot be a symlink: {parent}")
    names[_resolved(names, file)] = _COPIED


def _resolved(names: Names, name: str) -> str:
    done, todo = "", name.split("/")
    while todo:
        done = str(PurePosixPath("/", done, todo.pop(0)))[1:]
        target = names.get(done, _DIRECTORY)
        if target not in (_DIRECTORY, _FILE, _COPIED):
            absolute = PurePosixPath("/", PurePosixPath(done).parent, target)
            done, todo = "", [*_normal(absolute), *todo]
    return done


def _normal(path: PurePosixPath) -> list[str]:
    parts: list[str] = []
    for part in path.parts[1:]:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return parts


def _names(filesystem: ImageFilesystem) -> Names:
    return {
        name: _DIRECTORY if member.isdir() else member.linkname if member.issym() else _FILE
        for name, member in filesystem.members.items()
    }


@pytest.mark.parametrize("copy", [_copy_as_buildkit, _copy_as_buildah, _copy_as_kaniko])
@pytest.mark.parametrize(
    ("image", "files"),
    [
        ("hello", _FILES),
        ("shell/hello/users", _FILES),
        ("symlinks/executables/longnames", _FILES + _BESIDE_PACKAGES),
    ],
)
def test_copied_files_are_added(
    pull: Pull, image: str, files: Iterable[str], copy: Callable[[Names, str], None]
) -> None:
    before = _names(pull(image).filesystem)
    after = dict(before)
    for file in files:
        copy(after, file)
    assert {name: after.get(name) for name in before} == before
    assert {name for name, kind in after.items() if kind == _COPIED} == set(files)
    assert _resolved(after, "usr/bin/hello") == _resolved(before, "usr/bin/hello")


@pytest.mark.parametrize("name", ["usr/bin/hello", "bin/hello"])
@pytest.mark.parametrize("copy", [_copy_as_buildkit, _copy_as_buildah, _copy_as_kaniko])
def test_a_copied_file_replaces_a_program(pull: Pull, name: str, copy: Callable[[Names, str], None]) -> None:
    names = _names(pull("hello").filesystem)
    copy(names, name)
    # A shell that starts at PATH finds it.
    found = next(
        place
        for place in pull("hello").env["PATH"].split(":")
        if _resolved(names, f"{place[1:]}/hello") in names
    )
    assert names[_resolved(names, f"{found[1:]}/hello")] == _COPIED
