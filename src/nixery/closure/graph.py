"""The runtime closure: every store path an image needs, and who refers to whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nixery.closure.store_path import StorePath


@dataclass(frozen=True, slots=True)
class PathInfo:
    """What Nix's database knows of a valid store path.

    Attributes:
        path: the store path.
        nar_hash: SHA-256 of its NAR serialisation, hexadecimal: the identity of its content.
        nar_size: size of that serialisation in bytes; its own, without what it refers to.
        references: the store paths it refers to, without itself; sorted.
    """

    path: StorePath
    nar_hash: str
    nar_size: int
    references: tuple[StorePath, ...]


class Closure:
    """Path infos that are closed under references, in the order of their paths.

    Raises:
        ValueError: a reference leads out of the given paths.
    """

    __slots__ = ("_infos",)

    def __init__(self, infos: Iterable[PathInfo]) -> None:
        self._infos = {info.path: info for info in sorted(infos, key=lambda info: info.path.base_name)}
        for info in self._infos.values():
            for reference in info.references:
                if reference not in self._infos:
                    raise ValueError(f"{info.path} refers to {reference}, which is not in the closure")

    def __iter__(self) -> Iterator[PathInfo]:
        return iter(self._infos.values())

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, path: StorePath) -> PathInfo:
        return self._infos[path]

    def __contains__(self, path: object) -> bool:
        return path in self._infos
