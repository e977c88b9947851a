"""Unpack .debs into the output, at the places that `layout` gives; links are only collected."""

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from building.errors import BuildError
from building.layout import is_left_out, other_name, output_path

# Directories of data and configuration, which programs expect to be there when they are empty.
KEPT_EMPTY = ("etc/", "var/", "srv/")
# A script is text of some kilobytes.
_LARGEST_SCRIPT = 1 << 20


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory whose mode or owner is not that of every directory in a store path."""

    path: str
    mode: str
    user: str
    group: str


@dataclass(slots=True)
class Links:
    """What cannot be unpacked as it is. Links are made once all files are there: Debian's place of the link to its target.

    `programs` are the places of programs outside `bin`, `scripts` the postinst scripts, `early_scripts` the preinst scripts,
    `controls` the control files.
    """

    declared: dict[str, str] = field(default_factory=dict)
    alternatives: dict[str, str] = field(default_factory=dict)
    programs: set[str] = field(default_factory=set)
    directories: list[Directory] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    early_scripts: list[str] = field(default_factory=list)
    controls: list[str] = field(default_factory=list)


def unpack(deb: str, out: str, links: Links) -> None:
    """Unpack one .deb: files into `out`, links into `links`."""
    with _tar_of(deb, "--fsys-tarfile") as archive:
        for member in archive:
            _unpack_member(archive, member, out, links)
    with _tar_of(deb, "--ctrl-tarfile") as archive:
        for member in archive:
            texts = {
                "postinst": links.scripts,
                "preinst": links.early_scripts,
                "control": links.controls,
            }.get(Path(member.name).name)
            if texts is not None and (text := archive.extractfile(member)):
                texts.append(text.read(_LARGEST_SCRIPT).decode(errors="replace"))


@contextmanager
def _tar_of(deb: str, part: str) -> Iterator[tarfile.TarFile]:
    with subprocess.Popen(["dpkg-deb", part, deb], stdout=subprocess.PIPE) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                yield archive
                # dpkg-deb fails when its output is closed before the padding at the end was read.
                while process.stdout and process.stdout.read(1 << 16):
                    pass
        except tarfile.TarError as error:
            raise BuildError(f"{deb}: cannot be read as a .deb: {error}") from error
    if process.returncode != 0:
        raise BuildError(f"{deb}: dpkg-deb {part} failed with status {process.returncode}")


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, out: str, links: Links) -> None:
    relative = output_path(member.name)
    if not relative or is_left_out(relative):
        return
    target = Path(out, relative)
    place = member.name.lstrip(".")
    if not member.isdir() and (name := other_name(place)):
        links.programs.add(name)
    if member.issym():
        links.declared[place] = member.linkname
    elif member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        if relative.startswith(KEPT_EMPTY) and (member.mode & 0o7777 != 0o755 or member.uid or member.gid):  # noqa: PLR2004
            mode = f"{member.mode & 0o7777:04o}"
            links.directories.append(Directory(place.rstrip("/"), mode, member.uname, member.gname))
    elif member.islnk():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        shutil.copy(Path(out, output_path(member.linkname)), target)
    elif member.isfile() and (content := archive.extractfile(member)):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        # A store path keeps nothing of a mode but the execute bit; Nix forbids builders to set the setuid bit.
        target.chmod(0o755 if member.mode & 0o111 else 0o644)
