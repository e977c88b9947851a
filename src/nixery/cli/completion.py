"""Shell completion. Runs at each key press, so this module has no heavy imports and makes no slow calls."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nixery.files import read_beginning
from nixery.image.meta_packages import META_PACKAGES
from nixery.image.platform import SUPPORTED

OUTPUT_KINDS = ("oci:", "oci-archive:", "docker-archive:", "registry:")

# The values of ``nixery.builds.popularity.Basis``.
BASES = ("auto", "closures", "derivations")

_NAME = re.compile(r"[a-z0-9._-]{1,255}", re.ASCII)

_META_PACKAGES = ("amd64", "arm64", *META_PACKAGES)

# Limit on offered names: more than a person reads, and few enough for any shell.
_MOST = 500

# The beginning of a record with an index: ``nixery.builds.index_records.HEADER``.
HEADER = b"nixery package index 1\n"

# Bytes of a record that are read, and records: 300,000 names have 8 MB.
_LARGEST, _RECORDS = 16 * 1024 * 1024, 5


def complete_platform(incomplete: str) -> list[str]:
    """Offer platforms."""
    return [str(platform) for platform in SUPPORTED if str(platform).startswith(incomplete)]


def complete_truth(incomplete: str) -> list[str]:
    """Offer true and false."""
    return [value for value in ("true", "false") if value.startswith(incomplete)]


def complete_basis(incomplete: str) -> list[str]:
    """Offer the values of ``--from``."""
    return [value for value in BASES if value.startswith(incomplete)]


def complete_output(incomplete: str) -> list[str]:
    """Offer the kinds of outputs."""
    return [kind for kind in OUTPUT_KINDS if kind.startswith(incomplete)]


def complete_name(incomplete: str) -> list[str]:
    """Offer package names for the last part of an image name, the shortest first.

    The names are those of the package index that ``nixery check`` or a server stored last, from a record in the
    storage directory; without one, for example because the storage is a bucket, only meta-packages are
    offered.
    """
    before, slash, part = incomplete.rpartition("/")
    part = part.lower()
    if not part or not _NAME.fullmatch(part):
        return []
    names = {name for name in _META_PACKAGES if name.startswith(part)} | _listed(part)
    return [f"{before}{slash}{name}" for name in sorted(names, key=lambda name: (len(name), name))[:_MOST]]


def _listed(beginning: str) -> set[str]:
    storage = Path(os.environ.get("STORAGE_PATH") or user_storage())
    records = sorted((storage / "records" / "packages").glob("*/*"), key=_modified, reverse=True)
    for record in records[:_RECORDS]:
        try:
            content = read_beginning(record, _LARGEST)
        except OSError:
            continue  # deleted since it was listed, or not a regular file
        if content.startswith(HEADER):  # an older version wrote others
            return _beginning_with(beginning, content)
    return set()


def _beginning_with(beginning: str, record: bytes) -> set[str]:
    """Find names in the record of a package index: one in a line, up to an empty line."""
    end = record.find(b"\n\n", len(HEADER) - 1)
    if end < 0:
        end = record.rfind(b"\n")  # longer than what was read
    found: set[str] = set()
    text = f"\n{beginning}".encode()
    at = record.find(text, len(HEADER) - 1, end)
    # The shortest names come first.
    while at >= 0 and len(found) < _MOST:
        line_end = record.find(b"\n", at + 1)
        name = record[at + 1 : line_end].decode(errors="replace")
        if _NAME.fullmatch(name):
            found.add(name)
        at = record.find(text, line_end, end)
    return found


def user_storage() -> Path:
    """Return the default storage directory of commands, below the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nixery"


def _modified(record: Path) -> float:
    try:
        return record.stat().st_mtime
    except OSError:
        return 0.0  # deleted since it was listed
