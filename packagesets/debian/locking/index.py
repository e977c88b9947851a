"""Parse the stanzas that `apt-cache dumpavail` prints: the candidate of each package that apt knows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Package:
    """One binary package as the index describes it; `dependencies` is Pre-Depends and Depends, unparsed clauses."""

    name: str
    version: str
    source: str
    section: str
    description: str
    homepage: str
    filename: str
    sha256: str
    dependencies: tuple[str, ...]
    provides: tuple[str, ...]


_WANTED = frozenset(
    {
        "Package", "Version", "Source", "Section", "Description", "Homepage", "Filename", "SHA256",
        "Depends", "Pre-Depends", "Provides", "Architecture",
    }
)  # fmt: skip


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in stanza.split("\n"):
        name, _, value = line.partition(": ")
        if name in _WANTED:
            fields[name] = value
    return fields


def _clauses(text: str) -> tuple[str, ...]:
    return tuple(clause.strip() for clause in text.split(",") if clause.strip())


def _package(fields: dict[str, str]) -> Package:
    return Package(
        name=fields["Package"],
        version=fields["Version"],
        source=fields.get("Source", fields["Package"]).split(" ", 1)[0],
        section=fields.get("Section", ""),
        description=fields.get("Description", ""),
        homepage=fields.get("Homepage", ""),
        filename=fields["Filename"],
        sha256=fields["SHA256"],
        dependencies=_clauses(fields.get("Pre-Depends", "")) + _clauses(fields.get("Depends", "")),
        provides=_clauses(fields.get("Provides", "")),
    )


def parse_index(stanzas: Iterable[str], architecture: str) -> Iterator[Package]:
    """The packages for `architecture` (and `all`) that can be fetched.

    A stanza without Filename is a package that is installed here but that no index offers.
    """
    for stanza in stanzas:
        fields = _fields(stanza)
        if (
            fields.get("Architecture") in (architecture, "all")
            and "Filename" in fields
            and "SHA256" in fields
        ):
            yield _package(fields)
