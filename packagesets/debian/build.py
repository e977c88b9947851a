"""Builder of a group's derivation: .debs in, one store path out. default.nix sets the environment that this reads."""

# ruff: noqa: INP001 - a program that is run by its path, not a module of a package

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from building.database import record_packages
from building.elf import patch
from building.errors import BuildError
from building.installation import install
from building.links import link_class_paths, link_programs, link_siblings, make_links
from building.metapackages import fill_metapackage
from building.modules import lead_scripts, record_modules
from building.outputs import Outputs
from building.packages import TEX_MARK, adjust
from building.references import record_dependencies
from building.text import rewrite_file
from building.unpack import KEPT_EMPTY, Links, unpack


def build(environment: Mapping[str, str]) -> None:
    """Unpack all .debs of the group, then make what is there work in the store."""
    outputs = Outputs(
        environment["out"], environment["dependencies"].split(), environment["essential"].split()
    )
    links = Links()
    Path(outputs.own).mkdir()
    for deb in environment["debs"].split():
        unpack(deb, outputs.own, links)
    install(environment["group"], links, outputs)
    make_links(links, outputs)
    link_siblings(outputs)
    link_class_paths(outputs)
    for path in _files(outputs.own):
        with path.open("rb") as file:
            is_elf = file.read(4) == b"\x7fELF"
        if is_elf:
            patch(path, outputs)
        else:
            rewrite_file(path, outputs)
    record_modules(outputs)
    lead_scripts(outputs)
    adjust(environment["group"], outputs)
    fill_metapackage(outputs)
    link_programs(links, outputs)
    record_dependencies(outputs)
    _remove_empty_directories(outputs.own)
    record_packages(links.controls, outputs)


def _files(root: str) -> Iterator[Path]:
    for directory, directories, names in os.walk(root):
        directories.sort()
        for name in sorted(names):
            path = Path(directory, name)
            if not path.is_symlink() and path.is_file():
                yield path


def _remove_empty_directories(root: str) -> None:
    """Empty directories (`bin` after its links were resolved away) would only clutter an image."""
    for directory, _, _ in os.walk(root, topdown=False):
        if directory.endswith(f"/{TEX_MARK}"):
            continue
        relative = os.path.relpath(directory, root)
        if directory != root and not relative.startswith(KEPT_EMPTY) and not any(Path(directory).iterdir()):
            Path(directory).rmdir()


def main(environment: Mapping[str, str]) -> int:
    """Build; an expected failure is one line that names what is wrong."""
    try:
        build(environment)
    except (BuildError, OSError) as error:
        sys.stderr.write(f"{environment['group']}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
