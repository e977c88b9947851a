"""The store paths of a stored image: how large each is, which layer has it, and why the image has it.

A build writes them to a record beside the image, since Nix may delete the paths from its store and its database.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple

import zstandard
from pydantic import BaseModel, Field

from nixery.closure import Closure, StorePath
from nixery.errors import StorageError
from nixery.image.name import LONGEST_NAME, ImageRequest, canonical_names
from nixery.layering.grouping import LayerGroup
from nixery.nix.packages import Contents
from nixery.oci.digest import Digest
from nixery.storage.records import IMAGE_CLOSURES, KINDS, CheckedList, RecordStore, decode, decompressed

# Bytes of the decompressed record, values in it, store paths, and packages: a foreign record may decompress to
# anything. The largest images of nixpkgs have some 5000 paths with 50,000 references.
_LARGEST, _MOST_COMMAS, _MOST_PATHS, _MOST_ROOTS = 8 * 1024 * 1024, 400_000, 20_000, 10_000

# Names of an image: without and with its platform.
_MOST_NAMES = 2

# Of an explanation: chains, and store paths in each of its lists.
_CHAINS, _LISTED = 5, 50

_Text = Annotated[str, Field(max_length=256)]
_Name = Annotated[str, Field(max_length=LONGEST_NAME)]
_Number = Annotated[int, Field(ge=0, le=2**53)]


class ClosurePath(BaseModel):
    """A store path of an image.

    Attributes:
        path: its base name, ``<hash>-<name>``.
        size: of its NAR in bytes.
        layer: the number of its layer, from 1.
        references: positions of the paths that it refers to, without itself.
        nar_hash: SHA-256 of its NAR in hexadecimal digits; empty in records of earlier versions.
        deriver: base name of the derivation that built it, if Nix knew it.
        refers_to_itself: whether its files contain its own path.
    """

    path: _Text
    size: _Number
    layer: _Number
    references: CheckedList[_Number]
    nar_hash: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    deriver: _Text = ""
    refers_to_itself: bool = False

    @property
    def name(self) -> str:
        """The name without the hash."""
        return self.path[33:]


class ClosureRoot(BaseModel):
    """A package that the image was made for.

    Attributes:
        component: of the image's name, which selected it; empty for what an image definition names.
        name: of the package.
        version: of the package.
        requested: whether the client named it; otherwise each image has it, or each image with a shell.
        paths: positions of its outputs.
    """

    component: _Text
    name: str
    version: str
    requested: bool
    paths: CheckedList[_Number]


class _Record(BaseModel):
    names: Annotated[CheckedList[_Name], Field(max_length=_MOST_NAMES)] = []
    paths: Annotated[CheckedList[ClosurePath], Field(max_length=_MOST_PATHS)]
    roots: Annotated[CheckedList[ClosureRoot], Field(max_length=_MOST_ROOTS)]


@dataclass(frozen=True, slots=True)
class Chain:
    """A shortest chain of references from an output of a package to a store path; both are in it."""

    root: ClosureRoot
    paths: Sequence[ClosurePath]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a store path is in an image.

    Attributes:
        path: the store path.
        chains: from packages that need it: requested ones first, the shortest first; at most 5.
        needed_by: number of packages that need it.
        referrers: paths that refer to it, the largest first; at most 50.
        references: paths that it refers to, likewise.
    """

    path: ClosurePath
    chains: Sequence[Chain]
    needed_by: int
    referrers: Sequence[ClosurePath]
    references: Sequence[ClosurePath]


class ImageClosure:
    """The store paths of an image, with their references.

    Args:
        paths: of the image.
        roots: the packages that it was made for.
        names: canonical ones that may stand for it; none in records of earlier versions.

    Raises:
        ValueError: a position leads to no path.
    """

    def __init__(
        self, paths: Sequence[ClosurePath], roots: Sequence[ClosureRoot], names: Sequence[str] = ()
    ) -> None:
        for positions in (*(path.references for path in paths), *(root.paths for root in roots)):
            if any(position >= len(paths) for position in positions):
                raise ValueError("a reference leads to no path")
        self.paths = paths
        self.roots = roots
        self.names = names

    @classmethod
    def of(
        cls, request: ImageRequest, contents: Contents, closure: Closure, groups: Sequence[LayerGroup]
    ) -> ImageClosure:
        """Describe what a build has put into layers."""
        layers = {path: number for number, group in enumerate(groups, 1) for path in group.paths}
        position = {info.path: number for number, info in enumerate(closure)}
        paths = [
            ClosurePath(
                path=info.path.base_name,
                size=info.nar_size,
                layer=layers[info.path],
                references=[position[reference] for reference in info.references],
                nar_hash=info.nar_hash,
                deriver=info.deriver.rpartition("/")[2],
                refers_to_itself=info.refers_to_itself,
            )
            for info in closure
        ]
        roots: dict[tuple[str, str, str], set[StorePath]] = {}
        for package in contents.packages:
            key = (package.requested_name, package.name, package.version)
            roots.setdefault(key, set()).update(package.outputs.values())
        others = set(contents.store_paths).difference(*roots.values())
        if others:
            roots["", "", ""] = others
        return cls(
            paths,
            [
                ClosureRoot(
                    component=component,
                    name=name,
                    version=version,
                    requested=not component or component in request.requested,
                    paths=sorted(position[output] for output in outputs),
                )
                for (component, name, version), outputs in roots.items()
            ],
            canonical_names(request),
        )

    @cached_property
    def size(self) -> int:
        """Bytes of all NARs."""
        return sum(path.size for path in self.paths)

    def largest(self, number: int) -> Sequence[ClosurePath]:
        """Return the largest paths, the largest first."""
        return sorted(self.paths, key=lambda path: (-path.size, path.name))[:number]

    def in_layers(self) -> Mapping[int, Sequence[ClosurePath]]:
        """Return the paths of each layer, the largest first."""
        found: dict[int, list[ClosurePath]] = {}
        for path in sorted(self.paths, key=lambda path: (-path.size, path.name)):
            found.setdefault(path.layer, []).append(path)
        return found

    def needed_alone(self) -> Mapping[tuple[str, str, str], int]:
        """Return for each package the bytes of the NARs that no other package needs.

        Each path is visited twice at most: for the first package that needs it, and for the second one.
        """
        several = -1
        owner: dict[int, int] = {}
        for number, root in enumerate(self.roots):
            waiting = list(root.paths)
            while waiting:
                at = waiting.pop()
                known = owner.get(at)
                if known in {number, several}:
                    continue
                owner[at] = number if known is None else several
                waiting.extend(self.paths[at].references)
        sizes = [0] * len(self.roots)
        for at, number in owner.items():
            if number != several:
                sizes[number] += self.paths[at].size
        return {
            (root.component, root.name, root.version): size
            for root, size in zip(self.roots, sizes, strict=True)
        }

    def alone(self, component: str) -> int:
        """Return the bytes of the NARs that only the packages of a component need."""
        theirs = self._reachable(root for root in self.roots if root.component == component)
        others = self._reachable(root for root in self.roots if root.component != component)
        return sum(self.paths[at].size for at in theirs - others)

    def _reachable(self, roots: Iterable[ClosureRoot]) -> set[int]:
        found = set[int]()
        waiting = [at for root in roots for at in root.paths]
        while waiting:
            at = waiting.pop()
            if at not in found:
                found.add(at)
                waiting.extend(self.paths[at].references)
        return found

    def explain(self, base_name: str) -> Explanation | None:
        """Find out why the image has a store path; ``None`` if it has none of that base name."""
        wanted = next((at for at, path in enumerate(self.paths) if path.path == base_name), None)
        if wanted is None:
            return None
        referrers: dict[int, list[int]] = {}
        for at, path in enumerate(self.paths):
            for reference in path.references:
                referrers.setdefault(reference, []).append(at)
        ways = _shortest_ways(wanted, referrers)
        starts = []
        for number, root in enumerate(self.roots):
            reaching = [(ways[at].length, at) for at in root.paths if at in ways]
            if reaching:
                length, at = min(reaching)
                starts.append((not root.requested, length, number, at))
        chains = []
        for _, _, number, start in sorted(starts)[:_CHAINS]:
            chain = [start]
            while chain[-1] != wanted:
                chain.append(ways[chain[-1]].following)
            chains.append(Chain(self.roots[number], [self.paths[at] for at in chain]))
        path = self.paths[wanted]
        return Explanation(
            path,
            chains,
            len(starts),
            self._listed(referrers.get(wanted, ())),
            self._listed(path.references),
        )

    def _listed(self, positions: Collection[int]) -> Sequence[ClosurePath]:
        found = (self.paths[at] for at in set(positions))
        return sorted(found, key=lambda path: (-path.size, path.name))[:_LISTED]

    def encoded(self) -> bytes | None:
        """Encode the record; ``None`` if it would exceed the bounds."""
        if len(self.paths) > _MOST_PATHS or len(self.roots) > _MOST_ROOTS:
            return None
        record = _Record(names=list(self.names), paths=list(self.paths), roots=list(self.roots))
        text = record.model_dump_json(exclude_defaults=True).encode()
        content = zstandard.compress(text)
        is_readable = _is_bounded(text) and len(content) <= KINDS[IMAGE_CLOSURES].largest
        return content if is_readable else None


class _Way(NamedTuple):
    """A shortest way to a path: its number of references, and the next path on it."""

    length: int
    following: int


def _shortest_ways(wanted: int, referrers: Mapping[int, Sequence[int]]) -> Mapping[int, _Way]:
    """Return the way from each path that needs another one, directly or not; that one has a way of no length."""
    ways = {wanted: _Way(0, wanted)}
    waiting = deque([wanted])
    while waiting:
        at = waiting.popleft()
        for referrer in referrers.get(at, ()):
            if referrer not in ways:
                ways[referrer] = _Way(ways[at].length + 1, at)
                waiting.append(referrer)
    return ways


def decode_closure(content: bytes) -> ImageClosure:
    """Decode a record.

    Raises:
        ValueError: it is torn, too large, or has another schema.
    """
    text = decompressed(content, _LARGEST)
    if not _is_bounded(text):
        raise ValueError("the record of a closure is too large")
    record = _Record.model_validate_json(text)
    return ImageClosure(record.paths, record.roots, record.names)


def _is_bounded(text: bytes) -> bool:
    return len(text) <= _LARGEST and text.count(b",") <= _MOST_COMMAS


class ImageClosures:
    """The closures of stored images, in records by the digest of the image's manifest.

    Args:
        records: of the storage.
    """

    def __init__(self, records: RecordStore) -> None:
        self._records = records
        self._on_stored: Callable[[Digest, ImageClosure], None] = lambda _, __: None

    def observe(self, on_stored: Callable[[Digest, ImageClosure], None]) -> None:
        """Call a function with each closure that this process stores from now on, and its image."""
        self._on_stored = on_stored

    async def keep(self, manifest: Digest, closure: ImageClosure) -> None:
        """Store the closure of an image. Without room for it, the page of the image lacks the explanations."""
        content = await asyncio.to_thread(closure.encoded)
        if content is not None:
            with suppress(StorageError):
                await self._records.put(IMAGE_CLOSURES, manifest.hex, content)
                self._on_stored(manifest, closure)

    async def find(self, manifest: Digest) -> ImageClosure | None:
        """Return the closure of an image; ``None`` if there is no record of it.

        Raises:
            StorageError: the storage cannot be read.
        """
        content = await self._records.get(IMAGE_CLOSURES, manifest.hex)
        return await asyncio.to_thread(decode, decode_closure, content)
