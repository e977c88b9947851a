"""Names as Nix wants them: store names, versions in them, and the shard that a name's record is in."""

import hashlib
import re

_FORBIDDEN = re.compile(r"[^A-Za-z0-9+._?=-]")
_LONGEST_STORE_NAME = 211


def store_version(version: str) -> str:
    """Debian's version without its epoch and with no character that a store name cannot hold (`1:2.0~rc1` is `2.0-rc1`)."""
    epoch, colon, rest = version.partition(":")
    return _FORBIDDEN.sub("-", rest if colon and epoch.isdigit() else version)


def store_name(name: str, version: str) -> str:
    """`name-version` as a store name: no leading dot, no forbidden character, at most 211 characters."""
    joined = _FORBIDDEN.sub("-", f"{name}-{store_version(version)}")
    return ("_" + joined[1:] if joined.startswith(".") else joined)[:_LONGEST_STORE_NAME]


def shard_of(name: str) -> str:
    """The shard of the lock that holds `name`; default.nix computes the same."""
    return hashlib.sha256(name.encode()).hexdigest()[:2]
