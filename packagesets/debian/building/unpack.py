"""Unpack .debs into the output, at the places that `layout` gives; links and alternatives are only collected."""

import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from building.errors import BuildError
from building.layout import is_left_out, output_path

_ALTERNATIVE = re.compile(r"--(?:install|slave)\s+(/\S+)\s+\S+\s+(/\S+)")


@dataclass(slots=True)
class Links:
    """Symbolic links to make once all files are there: Debian's place of the link to its target, as the .deb has it."""

    declared: dict[str, str] = field(default_factory=dict)
    alternatives: dict[str, str] = field(default_factory=dict)


def unpack(deb: str, out: str, links: Links) -> None:
    """Unpack one .deb: files into `out`, links into `links`."""
    with _tar_of(deb, "--fsys-tarfile") as archive:
        for member in archive:
            _unpack_member(archive, member, out, links)
    with _tar_of(deb, "--ctrl-tarfile") as archive:
        for member in archive:
            if Path(member.name).name == "postinst" and (script := archive.extractfile(member)):
                links.alternatives.update(declared_alternatives(script.read().decode(errors="replace")))


def declared_alternatives(script: str) -> dict[str, str]:
    """The links that a postinst script declares with update-alternatives, where it spells them out."""
    joined = re.sub(r"\\\n\s*", " ", script)
    found: dict[str, str] = {}
    for line in joined.splitlines():
        if "--install" in line:
            for link, target in _ALTERNATIVE.findall(line):
                if "$" not in link + target:
                    found.setdefault(link, target)
    return found


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
    if member.issym():
        links.declared[member.name.lstrip(".")] = member.linkname
    elif member.isdir():
        target.mkdir(parents=True, exist_ok=True)
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
