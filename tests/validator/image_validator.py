"""Validate an image by recomputing everything that can be recomputed.

Sources: the OCI image specification 1.1 (descriptor.md, manifest.md, config.md, layer.md) and what this
project promises on top of it: canonical bytes, owner 0:0, one fixed time, no host's names.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.support.pulled_image import LayerBlob, PulledImage

_SCHEMAS = Path(__file__).parent.parent / "schemas"

# The maximum number of layers, including that of the root file system.
_BUDGET = 94

# The time of every path in a Nix store.
_MTIME = 1

# Directories below these may belong to accounts that packages declare.
_OF_DECLARED_ACCOUNTS = ("etc/", "opt/", "run/", "srv/", "var/")

# Files and directories that belong to the user of an image with Nix.
_STATE_OF_NIX = ("nix/var/nix", "nix/var/log/nix")

_OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_OCI_LAYERS = {
    False: "application/vnd.oci.image.layer.v1.tar+gzip",
    True: "application/vnd.oci.image.layer.v1.tar+zstd",
}

_NO_TAR = (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError, tarfile.TarError)

_ALLOWED_TYPES = {
    tarfile.REGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hard link",
}


def validate(image: PulledImage) -> PulledImage:
    """Return an image without flaws.

    Raises:
        AssertionError: with all flaws.
    """
    found = problems(image)
    assert not found, "\n".join(found)
    return image


def problems(image: PulledImage) -> list[str]:
    """Return descriptions of all flaws of an image."""
    return list(_problems(image))


def _problems(image: PulledImage) -> Iterator[str]:
    try:
        manifest, config = json.loads(image.manifest), json.loads(image.config)
    except ValueError as error:
        yield f"manifest or config is no JSON: {error}"
        return
    malformed = [*_against_schema("manifest", manifest), *_against_schema("config", config)]
    yield from malformed
    if malformed:
        return  # later checks rely on the form
    yield from _bytes(image, manifest, config)
    yield from _media_types(image, manifest)
    yield from _descriptor("config", manifest["config"], image.config)
    yield from _counts(image, manifest, config)
    for number, (layer, descriptor) in enumerate(zip(image.layers, manifest["layers"], strict=False)):
        yield from _descriptor(f"layer {number}", descriptor, layer.blob)
        if descriptor["mediaType"] != _OCI_LAYERS[layer.is_zstd]:
            yield f"layer {number} is {_OCI_LAYERS[layer.is_zstd]}, its descriptor says {descriptor['mediaType']}"
    for number, (layer, diff_id) in enumerate(zip(image.layers, config["rootfs"]["diff_ids"], strict=False)):
        yield from _layer(number, layer, diff_id, _writable(config["config"]))
    yield from _roles(image)


def _writable(execution: dict[str, Any]) -> frozenset[str]:
    """Return the directories that may belong to the image's user."""
    places = [*execution.get("Volumes", {}), execution.get("WorkingDir", "")]
    return frozenset(map(_normal, places)) if "User" in execution else frozenset()


def _schema_validator(name: str) -> Draft202012Validator:
    resources = [
        Resource.from_contents(json.loads(path.read_bytes())) for path in sorted(_SCHEMAS.glob("*.json"))
    ]
    registry: Registry[Any] = resources @ Registry()
    schema = json.loads((_SCHEMAS / f"{name}.json").read_bytes())
    return Draft202012Validator(schema, registry=registry)


def _against_schema(name: str, document: object) -> Iterator[str]:
    for error in _schema_validator(name).iter_errors(document):
        yield f"{name} does not match its schema: {error.json_path}: {error.message}"


def _bytes(image: PulledImage, manifest: object, config: object) -> Iterator[str]:
    if _sha256(image.manifest) != image.digest:
        yield f"manifest is {_sha256(image.manifest)}, the registry says {image.digest}"
    for name, document, content in (("manifest", manifest, image.manifest), ("config", config, image.config)):
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if content != canonical:
            yield f"{name} is not in canonical form"


def _media_types(image: PulledImage, manifest: dict[str, Any]) -> Iterator[str]:
    if image.media_type != manifest["mediaType"]:
        yield f"Content-Type {image.media_type} is not the manifest's mediaType {manifest['mediaType']}"
    found = [
        manifest["mediaType"],
        manifest["config"]["mediaType"],
        *{la["mediaType"] for la in manifest["layers"]},
    ]
    if found not in ([_OCI_MANIFEST, _OCI_CONFIG, layer] for layer in _OCI_LAYERS.values()):
        yield f"media types are not those of one OCI image with gzip or zstd layers: {found}"


def _descriptor(what: str, descriptor: dict[str, Any], content: bytes) -> Iterator[str]:
    if descriptor["digest"] != _sha256(content):
        yield f"{what} has digest {_sha256(content)}, its descriptor says {descriptor['digest']}"
    if descriptor["size"] != len(content):
        yield f"{what} has size {len(content)}, its descriptor says {descriptor['size']}"


def _counts(image: PulledImage, manifest: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    history = [entry for entry in config.get("history", []) if not entry.get("empty_layer", False)]
    counts = {
        "blobs": len(image.layers),
        "layers": len(manifest["layers"]),
        "diff ids": len(config["rootfs"]["diff_ids"]),
        "history": len(history),
    }
    if len(set(counts.values())) != 1:
        yield f"numbers of layers do not agree: {counts}"
    if len(manifest["layers"]) > _BUDGET:
        yield f"{len(manifest['layers'])} layers are more than the budget of {_BUDGET}"
    digests = [layer["digest"] for layer in manifest["layers"]]
    if len(set(digests)) != len(digests):
        yield "a layer is listed twice"


def _layer(number: int, layer: LayerBlob, diff_id: str, writable: frozenset[str]) -> Iterator[str]:
    what = f"layer {number}"
    try:
        archive = layer.archive
        members = list(layer.members())
    except _NO_TAR as error:
        yield f"{what} is no compressed tar: {error}"
        return
    if _sha256(archive) != diff_id:
        yield f"{what} has diff id {_sha256(archive)}, the config says {diff_id}"
    if not layer.is_zstd:
        yield from _gzip_header(what, layer.blob)
    yield from _end_of_archive(what, archive)
    yield from _order(what, members)
    for problem in _members(members, writable):
        yield f"{what}: {problem}"


def _gzip_header(what: str, blob: bytes) -> Iterator[str]:
    # RFC 1952, 2.3: flags, and four bytes of time.
    if blob[3] != 0:
        yield f"{what}: the gzip header has a name, a comment or extra fields"
    if blob[4:8] != bytes(4):
        yield f"{what}: the gzip header has a time"


def _end_of_archive(what: str, archive: bytes) -> Iterator[str]:
    if len(archive) % 512:
        yield f"{what}: the tar does not end with a whole block"
    if archive[-1024:] != bytes(1024):
        yield f"{what}: the tar does not end with two blocks of zeros"


def _order(what: str, members: list[tarfile.TarInfo]) -> Iterator[str]:
    names = [_normal(member.name).encode(errors="surrogateescape").split(b"/") for member in members]
    if names != sorted(names):
        yield f"{what}: names are not sorted by bytes within their directories"


def _members(members: list[tarfile.TarInfo], writable: frozenset[str]) -> Iterator[str]:
    seen: dict[str, tarfile.TarInfo] = {}
    for member in members:
        name = _normal(member.name)
        yield from _name(member.name, name)
        yield from _metadata(member, writable)
        if name in seen:
            yield f"{member.name!r} is listed twice"
        above = name.rpartition("/")[0]
        if above and (above not in seen or not seen[above].isdir()):
            yield f"{member.name!r} is listed without or before its directory {above!r}"
        if member.islnk() and _normal(member.linkname) not in seen:
            yield f"{member.name!r} is a hard link to {member.linkname!r}, which is not listed before it"
        seen[name] = member


def _normal(name: str) -> str:
    """Normalise a path: ``./a``, ``a/`` and ``a`` are the same."""
    return "/".join(component for component in name.split("/") if component not in ("", "."))


def _name(name: str, normal: str) -> Iterator[str]:
    if name != normal:
        yield f"{name!r} is not written as {normal!r}"
    components = name.split("/")
    if ".." in components:
        yield f"{name!r} leads upwards"
    if components[-1].startswith(".wh."):
        yield f"{name!r} is a whiteout"


def _metadata(member: tarfile.TarInfo, writable: frozenset[str]) -> Iterator[str]:
    if member.type not in _ALLOWED_TYPES or member.sparse is not None:
        yield f"{member.name!r} is of type {member.type!r}"
    if (member.uid, member.gid) != (0, 0) and not _may_be_the_users(member, writable):
        yield f"{member.name!r} belongs to {member.uid}:{member.gid}"
    if member.uname or member.gname:
        yield f"{member.name!r} has names of a host: {member.uname!r}:{member.gname!r}"
    if member.mtime != _MTIME:
        yield f"{member.name!r} has time {member.mtime}"
    unexpected = set(member.pax_headers) - {"path", "linkpath", "size", "hdrcharset", "uid", "gid"}
    if unexpected:
        yield f"{member.name!r} has extended headers {sorted(unexpected)}"


def _may_be_the_users(member: tarfile.TarInfo, writable: frozenset[str]) -> bool:
    name = _normal(member.name)
    if member.isdir() and name.startswith(_OF_DECLARED_ACCOUNTS):
        return True
    if writable and name.startswith("home/"):
        return member.isdir() and name.count("/") == 1
    if writable and name == "nix/store":
        # That user's group may add store paths, and replace none.
        return member.uid == 0 and member.mode == 0o1775
    is_state = any(name == place or name.startswith(f"{place}/") for place in _STATE_OF_NIX)
    return bool(writable) and (is_state or (member.isdir() and name in writable))


def _roles(image: PulledImage) -> Iterator[str]:
    """Every layer but the last holds store paths; the last one holds the rest."""
    store = ("nix", "nix/store")
    for number, layer in enumerate(image.layers):
        try:
            members = list(layer.members())
        except _NO_TAR:
            continue  # reported already
        is_root = number == len(image.layers) - 1
        for member in members:
            below_store = member.name.startswith("nix/store/")
            if is_root:
                if below_store:
                    yield f"the last layer holds the store path {member.name!r}"
                continue
            if not below_store and member.name not in store:
                yield f"layer {number} holds {member.name!r}, which is no store path"
            yield from _store_mode(number, member)


def _store_mode(number: int, member: tarfile.TarInfo) -> Iterator[str]:
    if member.name in ("nix", "nix/store"):
        allowed = {0o755}
    elif member.isdir():
        allowed = {0o555}
    elif member.issym():
        allowed = {0o777}
    else:
        allowed = {0o444, 0o555}
    if member.mode not in allowed:
        yield f"layer {number}: {member.name!r} has mode {member.mode:o}"


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
