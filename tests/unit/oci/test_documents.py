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

LAYERS = [
    Layer(Descriptor(MediaType.OCI_LAYER_GZIP, Digest.of(b"a"), 1), Digest.of(b"A"), ("bash-5", "glibc-2")),
    Layer(Descriptor(MediaType.OCI_LAYER_GZIP, Digest.of(b"b"), 2), Digest.of(b"B"), ("grün",)),
]
EXECUTION = ExecutionParameters(env=("B=1", "A=2"), cmd=("bash",))


def test_config_has_a_diff_id_and_a_history_entry_for_each_layer() -> None:
    config = json.loads(image_config(Architecture("arm64", "v8"), EXECUTION, LAYERS).content)
    assert (config["os"], config["architecture"], config["variant"]) == ("linux", "arm64", "v8")
    assert config["rootfs"] == {"type": "layers", "diff_ids": [str(Digest.of(b"A")), str(Digest.of(b"B"))]}
    assert [entry["comment"] for entry in config["history"]] == ["bash-5 glibc-2", "grün"]
    assert config["config"] == {"Env": ["B=1", "A=2"], "Cmd": ["bash"]}


def test_config_omits_properties_without_a_value() -> None:
    config = json.loads(image_config(Architecture("amd64"), ExecutionParameters((), ()), ()).content)
    assert "variant" not in config
    assert "Cmd" not in config["config"]


def test_an_image_without_a_date_has_a_fixed_one() -> None:
    config = json.loads(image_config(Architecture("amd64"), EXECUTION, LAYERS).content)
    assert {config["created"], *(entry["created"] for entry in config["history"])} == {"1970-01-01T00:00:01Z"}


def test_created_is_the_commit_date_of_the_source() -> None:
    config = json.loads(image_config(Architecture("amd64"), EXECUTION, LAYERS, 1_700_000_000).content)
    assert {config["created"], *(entry["created"] for entry in config["history"])} == {"2023-11-14T22:13:20Z"}


def test_manifest_has_digest_and_size_of_config_and_layers() -> None:
    config = image_config(Architecture("amd64"), EXECUTION, LAYERS)
    document = image_manifest(config, LAYERS)
    manifest = json.loads(document.content)
    assert manifest["mediaType"] == document.descriptor.media_type
    assert manifest["config"]["digest"] == str(Digest.of(config.content))
    assert manifest["config"]["size"] == len(config.content)
    assert [layer["size"] for layer in manifest["layers"]] == [1, 2]


def test_documents_are_canonical() -> None:
    content = image_config(Architecture("amd64"), EXECUTION, LAYERS).content
    again = json.dumps(
        json.loads(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    assert content == again


DOCKER_LAYERS = [Layer(Descriptor(MediaType.OCI_LAYER_GZIP, Digest.of(b"a"), 1), Digest.of(b"A"), ())]
CONFIG = image_config(Architecture("amd64"), ExecutionParameters((), ()), DOCKER_LAYERS)


def test_a_docker_manifest_has_the_same_blobs_under_dockers_media_types() -> None:
    docker, oci = docker_manifest(CONFIG, DOCKER_LAYERS), image_manifest(CONFIG, DOCKER_LAYERS)
    assert docker is not None
    assert b"vnd.oci" not in docker.content
    assert docker.descriptor.digest != oci.descriptor.digest
    mine, other = json.loads(docker.content), json.loads(oci.content)
    assert mine["config"]["digest"] == other["config"]["digest"]
    assert [layer["digest"] for layer in mine["layers"]] == [layer["digest"] for layer in other["layers"]]
    assert mine["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"


def test_dockers_media_types_have_no_zstd() -> None:
    zstd = replace(DOCKER_LAYERS[0].descriptor, media_type=MediaType.OCI_LAYER_ZSTD)
    assert docker_manifest(CONFIG, [DOCKER_LAYERS[0], replace(DOCKER_LAYERS[0], descriptor=zstd)]) is None
