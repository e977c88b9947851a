"""Write down the packages of an output for dpkg's database, which an image has of its whole closure."""

import re
from collections.abc import Iterable
from pathlib import Path

from building.outputs import DPKG_STATUS, Outputs

# Those that dpkg requires of an installed package, and those that identify it. Dependencies are left out: the set drops some,
# and apt refuses to work if an installed package lacks one.
_FIELDS = (
    "Package", "Priority", "Section", "Installed-Size", "Maintainer", "Architecture", "Multi-Arch", "Source", "Version", "Provides",
    "Description", "Homepage",
)  # fmt: skip
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]+")


def record_packages(controls: Iterable[str], outputs: Outputs) -> None:
    """Write a stanza for each control file, as in `/var/lib/dpkg/status`; must come after the output was searched for files."""
    stanzas = [stanza for control in controls if (stanza := _stanza(control))]
    if stanzas:
        record = Path(outputs.own, DPKG_STATUS)
        record.parent.mkdir(exist_ok=True)
        record.write_text("\n".join(sorted(stanzas)))


def _stanza(control: str) -> str:
    # A line that begins with a space goes on with the field before it: the long description.
    lines = re.findall(r"(?m)^([A-Za-z][A-Za-z-]*):[ \t]*(.*?)[ \t]*$", control)
    fields: dict[str, str] = dict(lines)
    if not _NAME.fullmatch(fields.get("Package", "")):
        return ""
    fields = {name: fields[name] for name in _FIELDS if fields.get(name)}
    text = "".join(f"{name}: {value}\n" for name, value in fields.items())
    name, newline, rest = text.partition("\n")
    return f"{name}{newline}Status: install ok installed\n{rest}"
