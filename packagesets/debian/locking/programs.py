"""The programs of each package, from the Contents indexes of the machine's apt sources.

apt's signed Release files say which indexes there are, and their hashes. What an index says is kept beside the lock, so
each is fetched once. Search for a program is a convenience: no failure in here keeps the lock from being made.
"""

import json
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from locking.apt import Apt, ContentsIndex
from locking.contents import MOST_PROGRAMS, parse_contents
from locking.errors import LockError
from locking.writing import replace_file

# Bytes: of a compressed index, and of its text. The largest of Debian 12 has 34 MB and 520 MB.
_LARGEST = 256 * 1024**2
_LARGEST_TEXT = 4 * 1024**3
# Empty text, compressed.
_EMPTY = 20
# Seconds for all downloads: a slow network must not hold up set-up.
_PATIENCE = 60
_CHUNK = 1024**2
# Change it when the parser says something else of the same index.
_FORMAT = 1
# Files that are kept; a system has a few indexes.
_KEPT = 64


@dataclass(frozen=True, slots=True)
class Programs:
    """The sorted names of each package's programs, as far as they are known.

    `indexes` has the hashes of the indexes that say so, and `failure` the reason why one could not be read.
    """

    names: dict[str, list[str]]
    indexes: tuple[str, ...]
    failure: str | None


def read_programs(apt: Apt, directory: Path) -> Programs:
    """The programs of the packages that `apt` offers; what was read is kept in `directory`."""
    deadline = time.monotonic() + _PATIENCE
    names: dict[str, set[str]] = {}
    indexes: list[str] = []
    failure = None
    try:
        offered = [index for index in apt.contents() if index.size > _EMPTY]
        directory.mkdir(parents=True, exist_ok=True)
    except (LockError, OSError) as error:
        return Programs({}, (), str(error))
    for index in offered:
        try:
            found = _read(apt, index, directory / f"{index.sha256}-{_FORMAT}.json", deadline)
        except (LockError, OSError, ValueError, zlib.error) as error:
            # One index that is missing or broken takes nothing from the others.
            failure = str(error)
            continue
        indexes.append(index.sha256)
        for package, programs in found.items():
            names.setdefault(package, set()).update(programs)
    _forget_oldest(directory)
    limited = {package: sorted(programs)[:MOST_PROGRAMS] for package, programs in names.items()}
    return Programs(limited, tuple(sorted(indexes)), failure)


def _read(apt: Apt, index: ContentsIndex, kept: Path, deadline: float) -> dict[str, list[str]]:
    if kept.is_file():
        known: dict[str, list[str]] = json.loads(kept.read_text())
        return known
    if index.size > _LARGEST:
        raise LockError(f"a Contents index has {index.size} bytes; at most {_LARGEST} are read")
    with tempfile.TemporaryDirectory(prefix="contents-") as temporary:
        file = Path(temporary).resolve() / "Contents.gz"
        apt.download(index, file, deadline - time.monotonic())
        programs = parse_contents(_text(file))
    replace_file(kept, json.dumps(programs, separators=(",", ":")))
    return programs


def _forget_oldest(directory: Path) -> None:
    kept = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in kept[_KEPT:]:
        path.unlink(missing_ok=True)


def _text(file: Path) -> Iterator[bytes]:
    """The text of a compressed index, in bounded chunks."""
    decompressor = zlib.decompressobj(wbits=31)  # gzip
    size = 0
    with file.open("rb") as compressed:
        while data := compressed.read(_CHUNK):
            while data:
                chunk = decompressor.decompress(data, _CHUNK)
                size += len(chunk)
                if size > _LARGEST_TEXT:
                    raise LockError(f"a Contents index has more than {_LARGEST_TEXT} bytes")
                yield chunk
                data = decompressor.unconsumed_tail
    if not decompressor.eof:
        raise LockError("a Contents index is cut off")
