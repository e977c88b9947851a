"""Make an output refer to what it uses without naming it: what Debian declares, and the Essential packages.

Nix finds references by the text of store paths. A library that is found at a compiled-in place, a module that is imported by
its name or a program that a script calls by its name is no such text, so it is written down in `nix-support/dependencies`.
"""

import os
import re
from pathlib import Path

from building.outputs import DEPENDENCIES, DPKG_STATUS, Outputs

_SHELL_SHEBANG = re.compile(rb"\A#![ \t]*\S*/(?:env[ \t]+)?(?:ba|da|k|z)?sh\b")
# The name of a command: at the start of a line or after what may come before a command.
_CALLED = re.compile(
    rb"(?:^|[|;&(`{!]|\b(?:then|do|else|elif|if|while|until|exec|xargs|command|sudo|env|nohup|time)\b)"
    rb"[ \t]*(?:[A-Za-z_][A-Za-z0-9_]*=[^\s;|&]*[ \t]+)*"
    rb"(?!(?:then|do|else|elif|if|while|until|exec|xargs|command|sudo|env|nohup|time)\b)([a-z][a-z0-9_.-]*)(?![A-Za-z0-9_=(/.-])",
    re.MULTILINE,
)
# These are built into every shell.
_BUILT_IN = frozenset({"echo", "test", "true", "false", "printf", "pwd", "kill", "sh", "time", "env"})
# The C library runs a shell for a program that calls one of these functions.
_RUNS_A_SHELL = re.compile(rb"\0(?:system|popen)\0|/bin/sh\0")
_ABSOLUTE = re.compile(rb"(?<=\0)/(?:usr/)?s?bin/([a-z][a-z0-9_.+-]*)(?=\0)")
_LARGEST = 256 << 20


def record_dependencies(outputs: Outputs) -> None:
    """Write `nix-support/dependencies`: declared dependencies, and Essential ones that programs of this output call."""
    called = _called_essential(outputs)
    used = [
        *filter(_has_files, outputs.declared),
        *(output for output in outputs.essential if output in called),
    ]
    if used:
        record = Path(outputs.own, DEPENDENCIES)
        record.parent.mkdir(exist_ok=True)
        record.write_text("".join(f"{output}\n" for output in used))


def _has_files(output: str) -> bool:
    """Whether an output has more than licences: a package may be declared for its name alone (`gcc-12-base`)."""
    top = Path(output)
    expected = {top / name for name in ("share", "share/doc", "nix-support", DPKG_STATUS)}
    return bool({*top.iterdir(), *top.glob("share/*"), *top.glob("nix-support/*")} - expected)


def _called_essential(outputs: Outputs) -> set[str]:
    providers = _programs(outputs.essential)
    if not providers:
        return set()
    names = set()
    for path in _executables(outputs.own):
        names |= called_names(path.read_bytes(), is_sourced=_is_sourced(path))
    return {providers[name] for name in names if name in providers}


def called_names(content: bytes, *, is_sourced: bool = False) -> set[str]:
    """The names of programs that an executable file seems to call: a shell script's commands, a program's paths.

    Args:
        content: of the file.
        is_sourced: whether the file is a part of a shell script, whose first line does not say so.
    """
    if content.startswith(b"\x7fELF"):
        names = {match.decode() for match in _ABSOLUTE.findall(content)}
        return names | {"sh"} if _RUNS_A_SHELL.search(content) else names
    if is_sourced or _SHELL_SHEBANG.match(content):
        return {match.decode() for match in _CALLED.findall(content)} - _BUILT_IN
    return set()


def _programs(outputs: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for output in outputs:
        for program in sorted(Path(output, "bin").glob("*")):
            found.setdefault(program.name, output)
    return found


def _is_sourced(path: Path) -> bool:
    return path.suffix == ".sh" and "/share/doc/" not in str(path)


def _executables(root: str) -> list[Path]:
    """Programs; and shared objects and parts of shell scripts, which Debian does not mark as executable."""
    found = []
    for directory, directories, names in os.walk(root):
        directories.sort()
        for name in sorted(names):
            path = Path(directory, name)
            if path.is_symlink() or not path.is_file():
                continue
            status = path.stat()
            is_program = status.st_mode & 0o100 or ".so" in name or _is_sourced(path)
            if is_program and status.st_size <= _LARGEST:
                found.append(path)
    return found
