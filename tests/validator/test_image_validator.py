"""Each check of the validator can fail: a valid image with one flaw at a time."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import zstandard

from tests.support.pulled_image import LayerBlob, PulledImage
from tests.validator.image_validator import problems, validate

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
STORE_PATH = "nix/store/00000000000000000000000000000000-x"


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def member(
    name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o444, content: bytes = b""
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime, info.size = kind, mode, 1, len(content)
    return info


def directory(name: str, mode: int = 0o555) -> tarfile.TarInfo:
    return member(name, tarfile.DIRTYPE, mode)


def symlink(name: str, target: str) -> tarfile.TarInfo:
    info = member(name, tarfile.SYMTYPE, 0o777)
    info.linkname = target
    return info


def hard_link(name: str, target: str) -> tarfile.TarInfo:
    info = member(name, tarfile.LNKTYPE, 0o444)
    info.linkname = target
    return info


def archive(members: list[tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


def store_members() -> list[tarfile.TarInfo]:
    return [
        directory("nix", 0o755),
        directory("nix/store", 0o755),
        directory(STORE_PATH),
        directory(f"{STORE_PATH}/bin"),
        member(f"{STORE_PATH}/bin/program", mode=0o555, content=b"program"),
        member(f"{STORE_PATH}/file"),
    ]


def root_members() -> list[tarfile.TarInfo]:
    return [
        directory("bin", 0o755),
        symlink("bin/program", f"/{STORE_PATH}/bin/program"),
        directory("tmp", 0o1777),
    ]


@dataclass
class Recipe:
    """The parts of an image, which are consistent unless a test replaces one."""

    layers: list[list[tarfile.TarInfo]] = field(default_factory=lambda: [store_members(), root_members()])
    compress: Callable[[bytes], bytes] = lambda data: gzip.compress(data, mtime=0)
    change_archive: Callable[[bytes], bytes] = lambda data: data
    change_config: Callable[[dict[str, Any]], object] = lambda _: None
    change_manifest: Callable[[dict[str, Any]], object] = lambda _: None
    serialise: Callable[[dict[str, Any]], bytes] = canonical

    def image(self) -> PulledImage:
        archives = [self.change_archive(archive(members)) for members in self.layers]
        blobs = [self.compress(content) for content in archives]
        config_document: dict[str, Any] = {
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:01Z",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(content) for content in archives]},
            "history": [{"created_by": "test"} for _ in archives],
        }
        self.change_config(config_document)
        config = self.serialise(config_document)
        manifest_document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256(config),
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": sha256(blob),
                    "size": len(blob),
                }
                for blob in blobs
            ],
        }
        self.change_manifest(manifest_document)
        manifest = self.serialise(manifest_document)
        return PulledImage(
            manifest, MANIFEST, sha256(manifest), config, tuple(LayerBlob(blob) for blob in blobs)
        )


def test_a_valid_image_has_no_flaws() -> None:
    validate(Recipe().image())


def test_hard_links_within_a_layer_are_valid() -> None:
    members = [*store_members(), hard_link(f"{STORE_PATH}/zz-link", f"{STORE_PATH}/file")]
    assert problems(Recipe(layers=[members, root_members()]).image()) == []


def with_store_layer(change: Callable[[list[tarfile.TarInfo]], object]) -> PulledImage:
    members = store_members()
    change(members)
    return Recipe(layers=[members, root_members()]).image()


def with_last_member(**attributes: object) -> PulledImage:
    def change(members: list[tarfile.TarInfo]) -> None:
        for name, value in attributes.items():
            setattr(members[-1], name, value)

    return with_store_layer(change)


def with_added(*members: tarfile.TarInfo) -> PulledImage:
    return with_store_layer(lambda all_members: all_members.extend(members))


LAYER_CASES: list[tuple[str, Callable[[], PulledImage], str]] = [
    ("a path twice", lambda: with_added(member(f"{STORE_PATH}/file")), "is listed twice"),
    ("a path in two spellings", lambda: with_added(member(f"./{STORE_PATH}/file")), "is listed twice"),
    ("a spelling with a dot", lambda: with_added(member(f"./{STORE_PATH}/other")), "is not written as"),
    ("an absolute name", lambda: with_added(member(f"/{STORE_PATH}/other")), "is not written as"),
    ("a name that leads upwards", lambda: with_added(member(f"{STORE_PATH}/../other")), "leads upwards"),
    ("a directory left out", lambda: with_store_layer(lambda m: m.pop(3)), "without or before its directory"),
    (
        "a directory too late",
        lambda: with_store_layer(lambda m: m.append(m.pop(3))),
        "without or before its directory",
    ),
    (
        "a file below a file",
        lambda: with_added(member(f"{STORE_PATH}/file/below")),
        "without or before its directory",
    ),
    ("names out of order", lambda: with_added(member(f"{STORE_PATH}/aaa")), "are not sorted"),
    ("a whiteout", lambda: with_added(member(f"{STORE_PATH}/.wh.file")), "is a whiteout"),
    ("an opaque whiteout", lambda: with_added(member(f"{STORE_PATH}/.wh..wh..opq")), "is a whiteout"),
    ("an owner", lambda: with_last_member(uid=1000), "belongs to 1000:0"),
    ("a group", lambda: with_last_member(gid=30000), "belongs to 0:30000"),
    ("an owner's name", lambda: with_last_member(uname="nixbld1"), "has names of a host"),
    ("a group's name", lambda: with_last_member(gname="nixbld"), "has names of a host"),
    ("a time", lambda: with_last_member(mtime=1700000000), "has time 1700000000"),
    ("the epoch", lambda: with_last_member(mtime=0), "has time 0"),
    ("a device", lambda: with_last_member(type=tarfile.CHRTYPE), "is of type"),
    ("a pipe", lambda: with_last_member(type=tarfile.FIFOTYPE), "is of type"),
    ("an extended header", lambda: with_last_member(pax_headers={"comment": "x"}), "has extended headers"),
    ("a mode that store files do not have", lambda: with_last_member(mode=0o644), "has mode 644"),
    (
        "a writable directory",
        lambda: with_added(directory(f"{STORE_PATH}/writable", 0o755)),
        "has mode 755",
    ),
    (
        "a hard link into nothing",
        lambda: with_added(hard_link(f"{STORE_PATH}/link", f"{STORE_PATH}/nothing")),
        "is a hard link to",
    ),
    (
        "something else in a store layer",
        lambda: with_added(directory("etc", 0o755)),
        "which is no store path",
    ),
    (
        "a store path in the last layer",
        lambda: Recipe(layers=[store_members(), [*store_members(), *root_members()]]).image(),
        "the last layer holds the store path",
    ),
    (
        "a time in the gzip header",
        lambda: Recipe(compress=lambda data: gzip.compress(data, mtime=1)).image(),
        "gzip header has a time",
    ),
    (
        "a name in the gzip header",
        lambda: Recipe(compress=named_gzip).image(),
        "gzip header has a name",
    ),
    (
        "a tar without an end",
        lambda: Recipe(change_archive=lambda data: data.rstrip(b"\0").ljust(512, b"\0")).image(),
        "does not end with",
    ),
]


def named_gzip(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile("layer.tar", "wb", fileobj=buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


DOCUMENT_CASES: list[tuple[str, Callable[[], PulledImage], str]] = [
    (
        "a wrong manifest digest",
        lambda: replace(Recipe().image(), digest=sha256(b"other")),
        "the registry says",
    ),
    (
        "another Content-Type",
        lambda: replace(Recipe().image(), media_type="application/json"),
        "is not the manifest's mediaType",
    ),
    (
        "indented JSON",
        lambda: Recipe(serialise=lambda document: json.dumps(document, indent=1).encode()).image(),
        "is not in canonical form",
    ),
    ("no JSON", lambda: replace(Recipe().image(), config=b"<html>"), "is no JSON"),
    (
        "a wrong config size",
        lambda: Recipe(change_manifest=lambda m: m["config"].update(size=1)).image(),
        "config has size",
    ),
    (
        "a wrong config digest",
        lambda: Recipe(change_manifest=lambda m: m["config"].update(digest=sha256(b""))).image(),
        "config has digest",
    ),
    (
        "a wrong layer size",
        lambda: Recipe(change_manifest=lambda m: m["layers"][1].update(size=1)).image(),
        "layer 1 has size",
    ),
    (
        "a wrong layer digest",
        lambda: Recipe(change_manifest=lambda m: m["layers"][0].update(digest=sha256(b""))).image(),
        "layer 0 has digest",
    ),
    (
        "a wrong diff id",
        lambda: Recipe(change_config=lambda c: c["rootfs"]["diff_ids"].__setitem__(0, sha256(b""))).image(),
        "layer 0 has diff id",
    ),
    (
        "diff ids in another order",
        lambda: Recipe(change_config=lambda c: c["rootfs"]["diff_ids"].reverse()).image(),
        "has diff id",
    ),
    (
        "a diff id too few",
        lambda: Recipe(change_config=lambda c: c["rootfs"]["diff_ids"].pop()).image(),
        "numbers of layers do not agree",
    ),
    (
        "a history entry too few",
        lambda: Recipe(change_config=lambda c: c["history"].pop()).image(),
        "numbers of layers do not agree",
    ),
    (
        "a history entry without a layer",
        lambda: Recipe(change_config=lambda c: c["history"][0].update(empty_layer=True)).image(),
        "numbers of layers do not agree",
    ),
    (
        "a layer that is not there",
        lambda: replace(Recipe().image(), layers=Recipe().image().layers[:1]),
        "numbers of layers do not agree",
    ),
    (
        "a layer twice",
        lambda: Recipe(layers=[store_members(), store_members(), root_members()]).image(),
        "a layer is listed twice",
    ),
    (
        "too many layers",
        lambda: Recipe(
            layers=[
                [directory("nix", 0o755), directory("nix/store", 0o755), member(f"nix/store/{n}")]
                for n in range(95)
            ]
        ).image(),
        "more than the budget",
    ),
    (
        "a layer that is no gzip",
        lambda: Recipe(compress=lambda data: data).image(),
        "is no compressed tar",
    ),
    (
        "a layer that is cut off",
        lambda: Recipe(compress=lambda data: gzip.compress(data, mtime=0)[:-20]).image(),
        "is no compressed tar",
    ),
    (
        "a layer of another family",
        lambda: Recipe(
            change_manifest=lambda m: m["layers"][0].update(
                mediaType="application/vnd.docker.image.rootfs.diff.tar.gzip"
            )
        ).image(),
        "$.layers[0].mediaType",
    ),
    (
        "a layer said to be uncompressed",
        lambda: Recipe(
            change_manifest=lambda m: m["layers"][0].update(
                mediaType="application/vnd.oci.image.layer.v1.tar"
            )
        ).image(),
        "media types are not those of one OCI image",
    ),
    (
        "a gzip layer said to be zstd",
        lambda: Recipe(
            change_manifest=lambda m: [
                layer.update(mediaType="application/vnd.oci.image.layer.v1.tar+zstd") for layer in m["layers"]
            ]
        ).image(),
        "layer 0 is application/vnd.oci.image.layer.v1.tar+gzip, its descriptor says",
    ),
    (
        "a zstd layer said to be gzip",
        lambda: Recipe(compress=zstandard.compress).image(),
        "layer 0 is application/vnd.oci.image.layer.v1.tar+zstd, its descriptor says",
    ),
    (
        "layers of two kinds",
        lambda: Recipe(
            change_manifest=lambda m: m["layers"][0].update(
                mediaType="application/vnd.oci.image.layer.v1.tar+zstd"
            )
        ).image(),
        "media types are not those of one OCI image",
    ),
    (
        "a zstd layer that is cut off",
        lambda: Recipe(compress=lambda data: zstandard.compress(data)[:-20]).image(),
        "is no compressed tar",
    ),
    (
        "a zstd layer with something behind it",
        lambda: Recipe(compress=lambda data: zstandard.compress(data) + b"x").image(),
        "is no compressed tar",
    ),
    (
        "another manifest type",
        lambda: Recipe(
            change_manifest=lambda m: m.update(
                mediaType="application/vnd.docker.distribution.manifest.v2+json"
            )
        ).image(),
        "$.mediaType",
    ),
    (
        "a manifest without a config",
        lambda: Recipe(change_manifest=lambda m: m.pop("config")).image(),
        "'config'",
    ),
    (
        "another schema version",
        lambda: Recipe(change_manifest=lambda m: m.update(schemaVersion=1)).image(),
        "$.schemaVersion",
    ),
    (
        "an annotation that is no string",
        lambda: Recipe(change_manifest=lambda m: m.update(annotations={"a": 1})).image(),
        "$.annotations.a",
    ),
    (
        "a digest in capitals",
        lambda: Recipe(change_manifest=lambda m: m["config"].update(digest=f"sha256:{'A' * 64}")).image(),
        "$.config.digest",
    ),
    (
        "a negative size",
        lambda: Recipe(change_manifest=lambda m: m["config"].update(size=-1)).image(),
        "$.config.size",
    ),
    (
        "no architecture",
        lambda: Recipe(change_config=lambda c: c.pop("architecture")).image(),
        "'architecture'",
    ),
    (
        "Nix's name of an architecture",
        lambda: Recipe(change_config=lambda c: c.update(architecture="x86_64")).image(),
        "$.architecture",
    ),
    (
        "arm64 without its variant",
        lambda: Recipe(change_config=lambda c: c.update(architecture="arm64")).image(),
        "'variant'",
    ),
    (
        "amd64 with a variant",
        lambda: Recipe(change_config=lambda c: c.update(variant="v8")).image(),
        "False schema",
    ),
    (
        "a created that is no time",
        lambda: Recipe(change_config=lambda c: c.update(created="yesterday")).image(),
        "$.created",
    ),
    (
        "an Env entry without a value",
        lambda: Recipe(change_config=lambda c: c["config"]["Env"].append("PATH")).image(),
        "$.config.Env[1]",
    ),
    (
        "a Cmd that is a string",
        lambda: Recipe(change_config=lambda c: c["config"].update(Cmd="bash")).image(),
        "$.config.Cmd",
    ),
    (
        "no diff ids",
        lambda: Recipe(change_config=lambda c: c["rootfs"].update(diff_ids=[])).image(),
        "$.rootfs.diff_ids",
    ),
]


@pytest.mark.parametrize(
    ("make", "expected"),
    [pytest.param(make, expected, id=name) for name, make, expected in LAYER_CASES + DOCUMENT_CASES],
)
def test_each_flaw_is_found(make: Callable[[], PulledImage], expected: str) -> None:
    found = problems(make())
    assert any(expected in problem for problem in found), found


def test_every_flaw_is_reported() -> None:
    image = with_last_member(uid=1000, mtime=5)
    with pytest.raises(AssertionError, match=r"(?s)belongs to 1000:0.*has time 5"):
        validate(image)
