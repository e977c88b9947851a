"""Read Debian's Contents indexes: which package has which file, one line a file, sorted by path.

    usr/bin/jq                                              utils/jq
    usr/sbin/sendmail                                       mail/exim4-daemon-light,mail/postfix

Only names of programs are kept. An index of all of Debian has six million lines, so it is never in memory as a whole.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from locking.errors import LockError

MOST_PROGRAMS = 200
"""Names of programs that are kept of one package, the first ones in the order of bytes."""

# Bytes. The longest line of Debian's indexes has 329.
_LONGEST_LINE = 64 * 1024
# Of one index. Debian 12 has 47,000.
_MOST_NAMES = 1_000_000

# A search for these is much faster than a pattern.
_STARTS = (
    b"\nbin/", b"\nsbin/", b"\nusr/bin/", b"\nusr/sbin/", b"\nusr/games/", b"\nusr/lib/postgresql/", b"\nusr/lib/jvm/",
)  # fmt: skip
_OWNERS = rb"[ \t]+(\S+)[ \t]*$"
_PROGRAM = re.compile(rb"^(?:(?:usr/)?s?bin|usr/games)/([!-.0-~]{1,64})" + _OWNERS, re.MULTILINE)
# The builder makes links in bin/ for these (building/packages.py), for the packages that have the directory.
_LINKED = (
    (
        re.compile(rb"^usr/lib/postgresql/[0-9]+/bin/([!-.0-~]{1,64})" + _OWNERS, re.MULTILINE),
        re.compile(r"postgresql-(client-)?\d+"),
    ),
    (
        re.compile(
            rb"^usr/lib/jvm/java-[0-9]+-openjdk-[a-z0-9]+/bin/([!-.0-~]{1,64})" + _OWNERS, re.MULTILINE
        ),
        re.compile(r"openjdk-\d+-(jre|jdk)-headless"),
    ),
)
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,127}")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file as a Release file lists it; `size` is in bytes."""

    sha256: str
    size: int


def parse_release(text: str) -> dict[str, ListedFile]:
    """The files in the SHA256 field of a Release or InRelease file, by name. apt has checked the signature."""
    signed = text.partition("-----BEGIN PGP SIGNATURE-----")[0]
    _, _, field = signed.partition("\nSHA256:")
    found = {}
    for line in field.split("\n")[1:]:
        entry = re.fullmatch(r" +([0-9a-f]{64}) +(\d{1,15}) +(\S+)", line)
        if entry is None:
            break
        found[entry[3]] = ListedFile(entry[1], int(entry[2]))
    return found


def parse_contents(chunks: Iterable[bytes]) -> dict[str, list[str]]:
    """The sorted names of each package's programs in one index, which `chunks` are the text of.

    A line in another form is left out: no owner, a path in a directory below, a name that is too long or not printable.

    Raises:
        LockError: the index names more programs than any release of Debian has.
    """
    programs: dict[str, set[str]] = {}
    count = 0
    for program, package in _owned(_blocks(chunks)):
        names = programs.setdefault(package, set())
        count += program not in names
        if count > _MOST_NAMES:
            raise LockError(f"a Contents index has more than {_MOST_NAMES} programs")
        names.add(program)
    return {package: sorted(names)[:MOST_PROGRAMS] for package, names in sorted(programs.items())}


def _owned(blocks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    for block in blocks:
        if _is_elsewhere(block) or not any(start in block for start in _STARTS):
            continue
        for match in _PROGRAM.finditer(block):
            yield from ((name, owner) for name, owner in _pairs(match) if _PACKAGE_NAME.fullmatch(owner))
        for pattern, owners in _LINKED:
            for match in pattern.finditer(block):
                yield from ((name, owner) for name, owner in _pairs(match) if owners.fullmatch(owner))


def _is_elsewhere(block: bytes) -> bool:
    """Whether all lines are in usr/share/, as most are: an index is sorted by path."""
    last = block.rfind(b"\n", 0, -1) + 1
    return block.startswith(b"\nusr/share/") and block.startswith(b"usr/share/", last)


def _pairs(match: re.Match[bytes]) -> Iterator[tuple[str, str]]:
    """The program with each of its packages; a package is written with its section, and the area if that is not main."""
    name = match[1].decode("ascii")
    if name not in {".", ".."}:
        for owner in match[2].decode("ascii", errors="replace").split(","):
            yield name, owner.rpartition("/")[2]


def _blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, many at a time, with a newline before each; a line that spans chunks has at most `_LONGEST_LINE`."""
    tail = b""
    too_long = False
    for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if end:
            block = tail + chunk[:end]
            yield b"\n" + (block.partition(b"\n")[2] if too_long else block)
            tail, too_long = chunk[end:], False
        else:
            tail += chunk
        if len(tail) > _LONGEST_LINE:
            tail, too_long = b"", True
    if not too_long:
        yield b"\n" + tail
