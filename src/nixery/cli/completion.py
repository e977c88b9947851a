"""What the shell may offer. Called for each key, so that nothing heavy is imported here, and nobody is asked who may be slow."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nixery.files import read_regular
from nixery.image.platform import SUPPORTED

OUTPUT_KINDS = ("oci:", "oci-archive:", "docker-archive:", "registry:")

_NAME = re.compile(r"[a-z0-9._-]{1,255}", re.ASCII)

_META_PACKAGES = ("amd64", "arm64", "shell")

# Names that are offered: more than anybody reads, and few enough for any shell.
_MOST = 500

# Limit in bytes for a list of packages.
_LARGEST = 64 * 1024 * 1024


def complete_platform(incomplete: str) -> list[str]:
    """Offer platforms."""
    return [str(platform) for platform in SUPPORTED if str(platform).startswith(incomplete)]


def complete_truth(incomplete: str) -> list[str]:
    """Offer what is or is not."""
    return [value for value in ("true", "false") if value.startswith(incomplete)]


def complete_output(incomplete: str) -> list[str]:
    """Offer kinds of outputs."""
    return [kind for kind in OUTPUT_KINDS if kind.startswith(incomplete)]


def complete_name(incomplete: str) -> list[str]:
    """Offer names of packages for the last part of an image's name, the shortest first.

    They are those of the package set that was listed last, by ``nixery check`` or a server, and kept in the storage; if none was, or
    if that is a bucket, nothing is offered.
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
    # A JSON object whose members are objects. Reading all of it would take half a second; a quotation mark within a string is
    # escaped, so that this finds names of members and nothing else.
    content = content.lower()
    found = set()
    # An attribute cannot begin with a digit, a name can.
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
    """Return where commands keep what they make, unless they are told another place."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nixery"


def _modified(record: Path) -> float:
    try:
        return record.stat().st_mtime
    except OSError:
        return 0.0  # deleted meanwhile
