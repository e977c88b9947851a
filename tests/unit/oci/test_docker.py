import json
from dataclasses import replace

from nixery.oci.digest import Digest
from nixery.oci.documents import (
    Architecture,
    Descriptor,
    ExecutionParameters,
    Layer,
    MediaType,
    docker_manifest,
    image_config,
    image_manifest,
)

LAYERS = [Layer(Descriptor(MediaType.OCI_LAYER_GZIP, Digest.of(b"a"), 1), Digest.of(b"A"), ())]
CONFIG = image_config(Architecture("amd64"), ExecutionParameters((), ()), LAYERS)


def test_the_bytes_are_the_same_and_the_types_are_dockers_alone() -> None:
    docker, oci = docker_manifest(CONFIG, LAYERS), image_manifest(CONFIG, LAYERS)
    assert docker is not None
    assert b"vnd.oci" not in docker.content
    assert docker.descriptor.digest != oci.descriptor.digest
    mine, other = json.loads(docker.content), json.loads(oci.content)
    assert mine["config"]["digest"] == other["config"]["digest"]
    assert [layer["digest"] for layer in mine["layers"]] == [layer["digest"] for layer in other["layers"]]
    assert mine["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"


def test_dockers_media_types_have_no_zstd() -> None:
    zstd = replace(LAYERS[0].descriptor, media_type=MediaType.OCI_LAYER_ZSTD)
    assert docker_manifest(CONFIG, [LAYERS[0], replace(LAYERS[0], descriptor=zstd)]) is None
