"""Make the symbolic links of the .debs, within the output where they can be, into its closure otherwise."""

import os
import posixpath
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from building.layout import is_left_out, output_path
from building.outputs import Outputs
from building.unpack import Links

# Links to these stay as they are: they belong to the system that the package runs in.
_OF_THE_SYSTEM = ("/dev", "/etc", "/home", "/proc", "/run", "/sys", "/tmp", "/var")  # noqa: S108  # nothing is written there


def make_links(links: Links, outputs: Outputs) -> None:
    """Make all links; an alternative is made when its target is here and nothing has its name."""
    targets = {place: _absolute(place, target) for place, target in links.declared.items()}
    wanted = {output_path(place): target for place, target in targets.items()}
    for place, target in links.alternatives.items():
        relative = output_path(place)
        exists = os.path.lexists(Path(outputs.own, relative)) or relative in wanted
        if not exists and not is_left_out(relative) and _is_here(output_path(target), wanted, outputs):
            wanted[relative] = target
    for relative, target in sorted(wanted.items()):
        _make_link(relative, target, wanted, outputs)


def link_programs(links: Links, outputs: Outputs) -> None:
    """Give programs the names that they have in Debian outside `bin`; links between such places are not needed twice."""
    own = Path(outputs.own)
    for place in sorted(links.programs):
        link = own / place
        program = own / "bin" / link.name
        if os.path.lexists(program) and not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(posixpath.relpath(f"bin/{link.name}", posixpath.dirname(place)))


def link_siblings(outputs: Outputs) -> None:
    """Link what direct dependencies have in a directory of programs of this output.

    A program outside `bin` looks for its files beside itself (chromium's `icudtl.dat`, maven's `boot`, which other packages
    bring), and its own place is in the store.
    """
    # PHP includes files relative to the place of the one that is running.
    for directory in [*_private_directories(outputs.own), Path(outputs.own, "share/php")]:
        relative = os.path.relpath(directory, outputs.own)
        if directory.is_dir() and not directory.is_symlink():
            _link_missing([Path(dependency, relative) for dependency in outputs.declared], directory)


def _link_missing(sources: Sequence[Path], target: Path) -> None:
    """Link what `target` does not have; a directory that several sources have is made of all of them."""
    found: dict[str, list[Path]] = {}
    for file in [file for source in sources if source.is_dir() for file in sorted(source.iterdir())]:
        found.setdefault(file.name, []).append(file)
    for name, files in sorted(found.items()):
        link = target / name
        directories = [file for file in files if file.is_dir() and not _is_relative_link(file)]
        if not os.path.lexists(link):
            if len(files) == 1 or len(directories) < len(files):
                link.symlink_to(files[0])
                continue
            link.mkdir()
        if link.is_dir() and not link.is_symlink():
            _link_missing(directories, link)


def _is_relative_link(file: Path) -> bool:
    """Links of packages, unlike those that are made here, may lead in circles."""
    return file.is_symlink() and not file.readlink().is_absolute()


def link_class_paths(outputs: Outputs) -> None:
    """Link the Java archives that the manifests of this output's archives name: Java looks for them beside the real file."""
    for archive in sorted(Path(outputs.own, "share/java").glob("*.jar")):
        if archive.is_symlink():
            continue
        for name in _class_path(archive):
            link = archive.parent / name
            place = os.path.relpath(os.path.normpath(link), outputs.own)
            found = place.startswith("share/") and (
                outputs.find_relative(place) or outputs.find_indirect(place)
            )
            if found and not os.path.lexists(link):
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(found)


def _class_path(archive: Path) -> list[str]:
    """The relative names in an archive's class path."""
    try:
        with zipfile.ZipFile(archive) as opened:
            manifest = opened.read("META-INF/MANIFEST.MF").decode(errors="replace")
    except (KeyError, zipfile.BadZipFile):
        return []
    # A line that begins with a space goes on with the one before.
    attribute = re.search(r"(?m)^Class-Path: (.*)", re.sub(r"\r?\n ", "", manifest))
    return (
        [name for name in attribute[1].split() if not name.startswith("/") and ":" not in name]
        if attribute
        else []
    )


def _private_directories(own: str) -> list[Path]:
    """The directories `lib/NAME`, `share/NAME` and `share/nodejs/NAME` that have a program at their top or in `bin`."""
    return [
        directory
        for above in ("lib", "share", "share/nodejs")
        for directory in sorted(Path(own, above).glob("*"))
        if directory.is_dir()
        and not directory.is_symlink()
        and not directory.name.endswith(("-linux-gnu", "-linux-gnueabihf"))
        and any(_is_program(path) for pattern in ("*", "bin/*") for path in directory.glob(pattern))
    ]


def _is_program(path: Path) -> bool:
    return not path.is_symlink() and path.is_file() and bool(path.stat().st_mode & 0o100)


def _absolute(place: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(place), target))


def _is_here(relative: str, wanted: dict[str, str], outputs: Outputs) -> bool:
    return relative in wanted or os.path.lexists(f"{outputs.own}/{relative}")


def _make_link(relative: str, target: str, wanted: dict[str, str], outputs: Outputs) -> None:
    place = Path(outputs.own, relative)
    aim = output_path(target)
    if aim == relative or os.path.lexists(place):
        return
    parts = aim.split("/")
    if any(
        _is_here("/".join(parts[:length]), wanted, outputs)
        for length in {len(parts)} | _linked(parts, wanted)
    ):
        text = posixpath.relpath(aim, posixpath.dirname(relative) or ".")
    elif found := outputs.find_relative(aim) or outputs.find_indirect(aim):
        text = found
    elif target.startswith(_OF_THE_SYSTEM):
        text = target
    else:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(text)


def _linked(parts: list[str], wanted: dict[str, str]) -> set[int]:
    """How many leading parts of the path make a directory that is itself a link of this package."""
    return {length for length in range(1, len(parts)) if "/".join(parts[:length]) in wanted}
