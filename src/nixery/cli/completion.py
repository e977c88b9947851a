"""Shell completion. Runs at each key press, so this module has no heavy imports and makes no slow calls."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nixery.files import read_regular
from nixery.image.platform import SUPPORTED

OUTPUT_KINDS = ("oci:", "oci-archive:", "docker-archive:", "registry:")

# The values of ``nixery.builds.popularity.Basis``.
BASES = ("auto", "closures", "derivations")

_NAME = re.compile(r"[a-z0-9._-]{1,255}", re.ASCII)

_META_PACKAGES = ("amd64", "arm64", "shell")

# Limit on offered names: more than a person reads, and few enough for any shell.
_MOST = 500

# Bytes of a list of packages that is read.
_LARGEST = 64 * 1024 * 1024


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

    The names are those of the package set that ``nixery check`` or a server listed last, from a record in the
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
    try:
        content = (read_regular(records[0], _LARGEST) if records else None) or b""
    except OSError:
        return set()
    # A JSON object whose members are objects. Parsing all of it would take half a second. Quotation marks
    # within strings are escaped, so this search finds only names of members.
    content = content.lower()
    found = set()
    # A name may begin with a digit; its attribute then begins with an underscore.
    for begin in (f'"{beginning}', *([f'"_{beginning}'] if beginning[0].isdigit() else [])):
        at = content.find(begin.encode())
        while at >= 0:
            end = content.find(b'"', at + 1)
            if content[at - 1 : at] in (b"{", b",") and content[end : end + 3] == b'":{':
                name = content[at + len(begin) - len(beginning) : end].decode(errors="replace")
                # Clients cannot request other names, and a package set may have any.
                if _NAME.fullmatch(name):
                    found.add(name)
            at = content.find(begin.encode(), at + 1)
    return found


def user_storage() -> Path:
    """Return the default storage directory of commands, below the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nixery"


def _modified(record: Path) -> float:
    try:
        return record.stat().st_mtime
    except OSError:
        return 0.0  # deleted since it was listed
