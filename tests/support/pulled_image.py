"""A pulled image: its bytes, and the registry's headers about them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import zstandard

STORE = "nix/store"

# RFC 8878, 3.1.1.
ZSTD_MAGIC = bytes.fromhex("28b52ffd")


@dataclass(frozen=True)
class LayerBlob:
    """A compressed layer. File names are text, with surrogates for bytes that are not UTF-8."""

    blob: bytes

    @cached_property
    def archive(self) -> bytes:
        return _zstd(self.blob) if self.is_zstd else gzip.decompress(self.blob)

    @property
    def is_zstd(self) -> bool:
        return self.blob.startswith(ZSTD_MAGIC)

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Yield the entries in order; names are as written, but for the slash of directories."""
        with self._open() as tar:
            yield from tar

    def contents(self) -> dict[str, bytes]:
        """Return the contents of regular files by name."""
        contents = {}
        with self._open() as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    contents[member.name] = file.read()
        return contents

    def _open(self) -> tarfile.TarFile:
        return tarfile.open(fileobj=io.BytesIO(self.archive), encoding="utf-8", errors="surrogateescape")


@dataclass(frozen=True)
class PulledImage:
    """A complete image.

    Attributes:
        manifest: exact bytes.
        media_type: the registry's for the manifest.
        digest: the registry's for the manifest.
        config: exact bytes.
        layers: base first.
    """

    manifest: bytes
    media_type: str
    digest: str
    config: bytes
    layers: tuple[LayerBlob, ...]

    @classmethod
    def from_oci_layout(cls, directory: Path) -> PulledImage:
        """Read the only image of an OCI image layout, as skopeo and umoci write it."""
        index = json.loads((directory / "index.json").read_bytes())
        (descriptor,) = index["manifests"]
        manifest = _layout_blob(directory, descriptor["digest"])
        document = json.loads(manifest)
        return cls(
            manifest=manifest,
            media_type=descriptor["mediaType"],
            digest=descriptor["digest"],
            config=_layout_blob(directory, document["config"]["digest"]),
            layers=tuple(LayerBlob(_layout_blob(directory, layer["digest"])) for layer in document["layers"]),
        )

    @cached_property
    def manifest_document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.manifest)
        return document

    @cached_property
    def config_document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.config)
        return document

    @property
    def layer_digests(self) -> list[str]:
        return [layer["digest"] for layer in self.manifest_document["layers"]]

    @property
    def env(self) -> dict[str, str]:
        entries: list[str] = self.config_document["config"].get("Env", [])
        return dict(entry.split("=", 1) for entry in entries)

    @property
    def cmd(self) -> list[str]:
        cmd: list[str] = self.config_document["config"].get("Cmd") or []
        return cmd

    @cached_property
    def filesystem(self) -> ImageFilesystem:
        return ImageFilesystem(self.layers)


def _zstd(blob: bytes) -> bytes:
    frame = zstandard.ZstdDecompressor().decompressobj()
    archive = frame.decompress(blob)
    if not frame.eof or frame.unused_data:
        raise EOFError("the zstd frame does not end where the blob ends")
    return archive


def _layout_blob(directory: Path, digest: str) -> bytes:
    algorithm, _, encoded = digest.partition(":")
    return (directory / "blobs" / algorithm / encoded).read_bytes()


class ImageFilesystem:
    """The file system that a container sees, read from the layers; names have no leading slash."""

    def __init__(self, layers: tuple[LayerBlob, ...]) -> None:
        self.members: dict[str, tarfile.TarInfo] = {}
        self._contents: dict[str, bytes] = {}
        for layer in layers:
            self.members.update({member.name: member for member in layer.members()})
            self._contents.update(layer.contents())

    def __contains__(self, name: str) -> bool:
        return self._resolve(name) in self.members

    def find(self, name: str) -> tarfile.TarInfo:
        """Return the entry at a path. Symlinks are followed in its directories, but not at its end."""
        above, _, last = name.rpartition("/")
        directory = self._resolve(above) if above else ""
        return self.members[f"{directory}/{last}" if directory else last]

    def read(self, name: str) -> bytes:
        """Return the content of a file, following symlinks; nixery's images have no hard links."""
        return self._contents[self._resolve(name)]

    def names_in(self, name: str) -> list[str]:
        """Return the names in a directory, following symlinks; the empty name is the root."""
        above = f"{self._resolve(name)}/" if name else ""
        below = {member.removeprefix(above) for member in self.members if member.startswith(above)}
        return sorted({member.partition("/")[0] for member in below})

    def store_path(self, package: str) -> str:
        """Return the only store path with a name: ``hello-1.0`` -> ``nix/store/...-hello-1.0``."""
        (path,) = [name for name in self.store_paths if name.split("-", 1)[1] == package]
        return path

    @property
    def store_paths(self) -> list[str]:
        return sorted(name for name in self.members if PurePosixPath(name).parent == PurePosixPath(STORE))

    def _resolve(self, name: str, left: int = 40) -> str:
        assert left, f"too many symlinks at {name}"
        resolved: list[str] = []
        components = name.strip("/").split("/")
        for position, component in enumerate(components):
            if component in ("", "."):
                continue
            if component == "..":
                del resolved[-1:]
                continue
            here = "/".join([*resolved, component])
            member = self.members.get(here)
            if member is not None and member.issym():
                rest = components[position + 1 :]
                above = [] if member.linkname.startswith("/") else resolved
                return self._resolve("/".join([*above, member.linkname.lstrip("/"), *rest]), left - 1)
            resolved.append(component)
        return "/".join(resolved)
