"""Perl and Python modules outside the interpreter's own output: record where they are, and lead scripts to them.

Debian puts all modules into one directory; here each package has its own. A package with modules therefore records their
directories and its dependencies' in `nix-support/`, and scripts get the directories that their own package may use: a
Perl script by a `use lib` line, a Python script by the interpreter, which reads the record of the script's package.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from building.outputs import Outputs

PERL, PYTHON = "perl-path", "python-path"
_PERL_DIRECTORIES = ("share/perl5", "lib/*/perl5/5.*", "lib/*/perl5", "lib/*/perl/5.*", "share/perl/5.*")
_PYTHON_DIRECTORIES = ("lib/python3/dist-packages",)
_PERL_SHEBANG = re.compile(rb"\A#![^\n]*/bin/perl[^\n]*\n")
_PYTHON_SHEBANG = re.compile(rb"\A#![^\n]*/bin/python3[0-9.]*[^\n]*\n")


def record_modules(outputs: Outputs) -> None:
    """Write `nix-support/<kind>` when the package has modules of the kind, or Python scripts."""
    for kind, patterns in ((PERL, _PERL_DIRECTORIES), (PYTHON, _PYTHON_DIRECTORIES)):
        own = [
            path for pattern in patterns for path in sorted(Path(outputs.own).glob(pattern)) if path.is_dir()
        ]
        if own or (kind == PYTHON and outputs.search_path(kind) and _has_python_scripts(outputs)):
            directories = list(dict.fromkeys([*map(str, own), *outputs.search_path(kind)]))
            record = Path(outputs.own, "nix-support", kind)
            record.parent.mkdir(exist_ok=True)
            record.write_text("".join(f"{directory}\n" for directory in directories))


def lead_scripts(outputs: Outputs) -> None:
    """Make the Perl scripts in `bin` find the modules."""
    perl = outputs.search_path(PERL)
    for path, content in _scripts(outputs) if perl else ():
        if match := _PERL_SHEBANG.match(content):
            line = f"use lib qw({' '.join(perl)});\n".encode()
            path.write_bytes(content[: match.end()] + line + content[match.end() :])


def _has_python_scripts(outputs: Outputs) -> bool:
    return any(_PYTHON_SHEBANG.match(content) for _, content in _scripts(outputs))


def _scripts(outputs: Outputs) -> Iterator[tuple[Path, bytes]]:
    """The scripts in `bin` whose interpreter is in the store."""
    for path in sorted(Path(outputs.own, "bin").glob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            content = file.read(4) == b"#!/n" and path.read_bytes()
        if content:
            yield path, content
