"""Perl and Python modules outside the interpreter's own output: record where they are, and lead scripts to them.

Debian puts all modules into one directory; here each package has its own. A package with modules therefore records their
directories and its dependencies' in `nix-support/`, and scripts get the directories that their own package may use.
"""

import re
from pathlib import Path

from building.outputs import Outputs
from building.wrappers import wrap

PERL, PYTHON = "perl-path", "python-path"
_PERL_DIRECTORIES = ("share/perl5", "lib/*/perl5/5.*", "lib/*/perl5", "lib/*/perl/5.*", "share/perl/5.*")
_PYTHON_DIRECTORIES = ("lib/python3/dist-packages",)
_PERL_SHEBANG = re.compile(rb"\A#![^\n]*/bin/perl[^\n]*\n")
_PYTHON_SHEBANG = re.compile(rb"\A#![^\n]*/bin/python3[0-9.]*[^\n]*\n")


def record_modules(outputs: Outputs) -> None:
    """Write `nix-support/<kind>` when the package has modules of the kind."""
    for kind, patterns in ((PERL, _PERL_DIRECTORIES), (PYTHON, _PYTHON_DIRECTORIES)):
        own = [
            path for pattern in patterns for path in sorted(Path(outputs.own).glob(pattern)) if path.is_dir()
        ]
        if own:
            directories = list(dict.fromkeys([*map(str, own), *outputs.search_path(kind)]))
            record = Path(outputs.own, "nix-support", kind)
            record.parent.mkdir(exist_ok=True)
            record.write_text("".join(f"{directory}\n" for directory in directories))


def lead_scripts(outputs: Outputs) -> None:
    """Make the scripts in `bin` find the modules: Perl by a `use lib` line, Python by a wrapper."""
    perl, python = outputs.search_path(PERL), outputs.search_path(PYTHON)
    for path in sorted(Path(outputs.own, "bin").glob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            content = file.read(4) == b"#!/n" and path.read_bytes()
        if not content:
            continue
        if perl and (match := _PERL_SHEBANG.match(content)):
            line = f"use lib qw({' '.join(perl)});\n".encode()
            path.write_bytes(content[: match.end()] + line + content[match.end() :])
        elif python and _PYTHON_SHEBANG.match(content):
            wrap(outputs, path.name, {"PYTHONPATH": ":".join(python)}, extend=True)
