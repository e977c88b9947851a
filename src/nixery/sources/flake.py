"""What a tag means where packages come from a flake (Nix manual, "Flake references")."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from nixery.errors import TagUnknown
from nixery.sources.location import COMMIT
from nixery.sources.source import Reference

# Forges, where the revision is a part of the path: github:owner/repository/revision. And names of a registry: name/revision.
_BY_PATH = re.compile(
    r"(?P<base>(?:github|gitlab|sourcehut):[^/?#]+/[^/?#]+|[a-zA-Z][\w-]*)(?P<rest>[/?#].*)?", re.ASCII
)


def flake_reference(tag: str, configured: str) -> Reference:
    """Tell which flake a tag selects.

    Args:
        tag: ``latest`` for the configured flake as it is; otherwise a branch, a tag, or a commit's 40 digits.
        configured: a flake reference.

    Raises:
        TagUnknown: that flake has no versions, as a directory has none.
    """
    if tag == "latest":
        return Reference(
            configured, moving=re.search(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])", configured) is None
        )
    is_commit = COMMIT.fullmatch(tag) is not None
    location, _, query = configured.partition("?")
    parameters = {key: value for key, value in parse_qsl(query) if key not in ("ref", "rev", "allRefs")}
    if location.startswith(("git+", "git:", "hg+")) or _is_repository(location):
        # Without all references, Nix looks for a commit on the default branch alone.
        parameters |= {"allRefs": "1", "rev": tag} if is_commit else {"ref": tag}
        base = location if ":" in location else f"git+file://{Path(location).absolute()}"
        return Reference(f"{base}?{urlencode(parameters)}", moving=not is_commit)
    match = _BY_PATH.fullmatch(location)
    if match is None:
        raise TagUnknown(tag, "the packages come from a flake without versions; use latest")
    suffix = f"?{urlencode(parameters)}" if parameters else ""
    return Reference(f"{match['base']}/{tag}{suffix}", moving=not is_commit)


def _is_repository(location: str) -> bool:
    return location.startswith(("/", ".")) and (Path(location) / ".git").exists()
