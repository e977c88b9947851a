"""A package without files stands for what it depends on: `default-jdk`, `build-essential`, transitional names."""

import os
from pathlib import Path

from building.outputs import Outputs


def fill_metapackage(outputs: Outputs) -> None:
    """Link the dependencies' programs into `bin` when the package has nothing but its licence; the first of a name wins."""
    own = Path(outputs.own)
    if any(_files_beside_licences(own)):
        return
    for dependency in outputs.dependencies:
        if Path(dependency).name[33:].startswith(_IMPLICIT):
            continue
        for program in sorted(Path(dependency, "bin").glob("*")):
            link = own / "bin" / program.name
            if not os.path.lexists(link):
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(program)


# Every package has the shells among its dependencies, and no metapackage means them.
_IMPLICIT = ("dash-", "bash-")


def _files_beside_licences(own: Path) -> list[str]:
    documentation = str(own / "share/doc")
    return [
        name
        for directory, directories, names in os.walk(own)
        if not directory.startswith(documentation)
        for name in (*names, *(entry for entry in directories if Path(directory, entry).is_symlink()))
    ]
