"""NARs of trees that need not exist on any disk, valid or not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from nixery.closure import PathInfo, StorePath

PATH = StorePath("a" * 32 + "-p")


@dataclass(frozen=True)
class Executable:
    content: bytes


@dataclass(frozen=True)
class Symlink:
    target: bytes


# A directory, a file, an executable file, a symlink.
Tree: TypeAlias = "Mapping[bytes, Tree] | bytes | Executable | Symlink"


def string(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + bytes(-len(text) % 8)


def strings(*texts: bytes) -> bytes:
    return b"".join(map(string, texts))


def entry(name: bytes, node: bytes) -> bytes:
    return strings(b"entry", b"(", b"name", name, b"node") + node + string(b")")


def directory(*entries: bytes) -> bytes:
    return strings(b"(", b"type", b"directory") + b"".join(entries) + string(b")")


def file(content: bytes) -> bytes:
    return strings(b"(", b"type", b"regular", b"contents", content, b")")


def symlink(target: bytes) -> bytes:
    return strings(b"(", b"type", b"symlink", b"target", target, b")")


def whole(node: bytes) -> bytes:
    return string(b"nix-archive-1") + node


def node_of(tree: Tree) -> bytes:
    match tree:
        case bytes():
            return file(tree)
        case Executable(content):
            return strings(b"(", b"type", b"regular", b"executable", b"", b"contents", content, b")")
        case Symlink(target):
            return symlink(target)
        case _:
            return directory(*(entry(name, node_of(tree[name])) for name in sorted(tree)))


def nar_of(tree: Tree) -> bytes:
    return whole(node_of(tree))


def info_of(nar: bytes, path: StorePath = PATH) -> PathInfo:
    return PathInfo(path, hashlib.sha256(nar).hexdigest(), len(nar), ())


def cut(nar: bytes, size: int = 1 << 16) -> Iterator[memoryview]:
    """Yield pieces; each of them is overwritten when the next one is asked for."""
    buffer = bytearray(size)
    for start in range(0, len(nar), size):
        piece = nar[start : start + size]
        buffer[: len(piece)] = piece
        yield memoryview(buffer)[: len(piece)]
        buffer[: len(piece)] = b"\xee" * len(piece)


def write_tree(place: Path, tree: Tree) -> None:
    match tree:
        case bytes():
            place.write_bytes(tree)
        case Executable(content):
            place.write_bytes(content)
            place.chmod(0o755)
        case Symlink(target):
            place.symlink_to(os.fsdecode(target))
        case _:
            place.mkdir()
            for name, below in tree.items():
                write_tree(place / os.fsdecode(name), below)
