"""Write the lock so that Nix reads little of it, and so that a reader never meets half of it.

`lock/<system>.json` names every attribute and the directory of this generation's shards; a package's record is in the shard
that its name hashes to. Nix thus parses a few hundred kilobytes for a package and its closure rather than all of Debian.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from locking.names import shard_of
from locking.records import Record, Records


def fingerprint_of(*parts: object) -> str:
    """A short digest of everything that the lock's content depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def is_current(lock: Path, system: str, fingerprint: str) -> bool:
    """Whether the lock that is there was made from the same indexes by the same generator.

    `fingerprint` may be the beginning of the lock's own.
    """
    return (lock / f"{system}.fingerprint").is_file() and (
        (lock / f"{system}.fingerprint").read_text().startswith(fingerprint)
        and (lock / f"{system}.json").is_file()
    )


def write_lock(
    lock: Path,
    system: str,
    fingerprint: str,
    records: Records,
    aliases: Mapping[str, str],
    os_release: Mapping[str, str],
) -> None:
    """Put a new generation in place, the index last; the generation before it stays for those who are reading it."""
    lock.mkdir(parents=True, exist_ok=True)
    generation = f"{system}-{fingerprint}"
    temporary = Path(tempfile.mkdtemp(prefix=f".{generation}-", dir=lock))
    temporary.chmod(0o755)
    for shard, content in _shards(records).items():
        (temporary / f"{shard}.json").write_text(_encode(content))
    shutil.rmtree(lock / generation, ignore_errors=True)
    temporary.rename(lock / generation)
    previous = _generation(lock, system)
    replace_file(
        lock / f"{system}.json",
        _encode(
            {
                "generation": generation,
                "names": sorted(records.packages),
                "essential": records.essential,
                "aliases": dict(sorted(aliases.items())),
                "osRelease": dict(os_release),
            }
        ),
    )
    replace_file(lock / f"{system}.fingerprint", fingerprint)
    for old in lock.glob(f"*{system}-*"):
        if old.is_dir() and old.name not in (generation, previous):
            shutil.rmtree(old, ignore_errors=True)


def _shards(records: Records) -> dict[str, dict[str, dict[str, Record]]]:
    shards: dict[str, dict[str, dict[str, Record]]] = {
        f"{number:02x}": {"packages": {}, "groups": {}} for number in range(256)
    }
    for name, record in sorted(records.packages.items()):
        shards[shard_of(name)]["packages"][name] = record
    for name, record in sorted(records.groups.items()):
        shards[shard_of(name)]["groups"][name] = record
    return shards


def _generation(lock: Path, system: str) -> str:
    try:
        return str(json.loads((lock / f"{system}.json").read_text())["generation"])
    except (OSError, ValueError, KeyError):
        return ""


def _encode(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def replace_file(path: Path, text: str) -> None:
    """Write `text` to `path` so that no reader meets a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
