"""Store paths (Nix manual, "Store path"), and closures: all store paths of an image, with their references."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

STORE_DIRECTORY = "/nix/store"

# 32 digits of Nix's own base 32, which leaves out e, o, u and t; names as in Nix's name.cc.
_DIGITS = "0123456789abcdfghijklmnpqrsvwxyz"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}
_BASE_NAME = re.compile(rf"([{_DIGITS}]{{32}})-([0-9a-zA-Z+\-._?=]{{1,211}})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class StorePath:
    """A valid store path.

    Attributes:
        base_name: ``<hash>-<name>``, the name in the store directory; also the sort key.
    """

    base_name: str

    @classmethod
    def parse(cls, text: str) -> StorePath:
        """Parse an absolute store path.

        Raises:
            ValueError: it is not directly below the store directory, or its name is invalid in Nix.
        """
        directory, _, base_name = text.rpartition("/")
        if directory != STORE_DIRECTORY or _BASE_NAME.fullmatch(base_name) is None:
            raise ValueError(f"not a store path: {text!r}")
        return cls(base_name)

    @property
    def name(self) -> str:
        """The name without the hash, e.g. ``bash-interactive-5.2``."""
        return self.base_name[33:]

    @property
    def package_name(self) -> str:
        """The name without the version; see ``without_version``."""
        return without_version(self.name)

    def __str__(self) -> str:
        return f"{STORE_DIRECTORY}/{self.base_name}"


def without_version(name: str) -> str:
    """Remove the version from a name, by Nix's own rule: from the first dash that is not followed by a letter.

    Source: ``builtins.parseDrvName`` in the Nix manual.
    """
    match = re.search(r"-(?=[^a-zA-Z])", name)
    return name[: match.start()] if match else name


def encode_base32(content: bytes) -> str:
    """Write bytes in Nix's own base 32: the last five bits first (``printHash32`` in Nix's ``hash.cc``)."""
    number = int.from_bytes(content, "little")
    length = (len(content) * 8 + 4) // 5
    return "".join(_DIGITS[number >> (5 * place) & 31] for place in reversed(range(length)))


def decode_base32(text: str) -> bytes:
    """Read Nix's base 32.

    Raises:
        ValueError: it has other characters, or bits that belong to no byte.
    """
    number = 0
    for digit in text:
        if digit not in _VALUES:
            raise ValueError(f"{text!r} is not in Nix's base 32")
        number = number << 5 | _VALUES[digit]
    size = len(text) * 5 // 8
    if number >> (8 * size):
        raise ValueError(f"{text!r} is not in Nix's base 32")
    return number.to_bytes(size, "little")


@dataclass(frozen=True, slots=True)
class PathInfo:
    """The entry of a valid store path in Nix's database.

    Attributes:
        path: the store path.
        nar_hash: SHA-256 of its NAR serialisation in hexadecimal digits, which identifies its content.
        nar_size: size of that serialisation in bytes, without the paths that it refers to.
        references: the store paths that it refers to, without itself; sorted.
        deriver: the derivation that built it, if Nix knows it; else empty.
        refers_to_itself: whether its files contain its own path.
    """

    path: StorePath
    nar_hash: str
    nar_size: int
    references: tuple[StorePath, ...]
    deriver: str = ""
    refers_to_itself: bool = False


class Closure:
    """Path infos that are closed under references, in the order of their paths.

    Raises:
        ValueError: a path refers to one that is missing.
    """

    __slots__ = ("_infos",)

    def __init__(self, infos: Iterable[PathInfo]) -> None:
        self._infos = {info.path: info for info in sorted(infos, key=lambda info: info.path.base_name)}
        for info in self._infos.values():
            for reference in info.references:
                if reference not in self._infos:
                    raise ValueError(f"{info.path} refers to {reference}, which is not in the closure")

    def reachable(self, paths: Iterable[StorePath]) -> set[StorePath]:
        """Return paths of the closure together with all that they refer to, directly or not."""
        found: set[StorePath] = set()
        waiting = list(paths)
        while waiting:
            path = waiting.pop()
            if path not in found:
                found.add(path)
                waiting.extend(self._infos[path].references)
        return found

    def __iter__(self) -> Iterator[PathInfo]:
        return iter(self._infos.values())

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, path: StorePath) -> PathInfo:
        return self._infos[path]

    def __contains__(self, path: object) -> bool:
        return path in self._infos
