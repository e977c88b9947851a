"""Debian's version order (Debian Policy 5.6.12), as keys that Python can compare.

A version becomes nested tuples once and is compared as often as needed: resolving all of Debian asks for several hundred
thousand comparisons, of some ten thousand different versions.
"""

import re
from functools import cache
from typing import TypeAlias

_Piece: TypeAlias = tuple[tuple[int, ...], int]
Key: TypeAlias = tuple[int, tuple[_Piece, ...], tuple[_Piece, ...]]

_PIECES = re.compile(r"(\D*)(\d*)")


def _character_rank(character: str) -> int:
    """`~` sorts before the end of the text (0), letters before everything else."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256


def _pieces(text: str) -> tuple[_Piece, ...]:
    """Pairs of a text without digits and a number; the ranks' closing 0 stands for the end of the text."""
    found = (match for match in _PIECES.findall(text) if match != ("", ""))
    pieces = [((*map(_character_rank, letters), 0), int(digits or 0)) for letters, digits in found]
    return (*pieces, ((0,), 0))


@cache
def version_key(version: str) -> Key:
    """The key by which `version` is ordered: `epoch:upstream-revision`, epoch and revision being optional."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "0")
    return int(epoch) if epoch.isdigit() else 0, _pieces(upstream), _pieces(revision)


def satisfies(version: str, relation: str, wanted: str) -> bool:
    """Whether `version` stands in `relation` (`<<`, `<=`, `=`, `>=`, `>>`) to `wanted`."""
    left, right = version_key(version), version_key(wanted)
    match relation:
        case "<<":
            return left < right
        case "<=" | "<":
            return left <= right
        case "=":
            return left == right
        case ">>":
            return left > right
        case ">=" | ">":
            return left >= right
        case _:
            return False
