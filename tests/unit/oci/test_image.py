import json

from nixery.oci.digest import Digest
from nixery.oci.documents import (
    Architecture,
    Descriptor,
    ExecutionParameters,
    Layer,
    MediaType,
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


def test_config_leaves_out_what_has_no_value() -> None:
    config = json.loads(image_config(Architecture("amd64"), ExecutionParameters((), ()), ()).content)
    assert "variant" not in config
    assert "Cmd" not in config["config"]


def test_created_is_no_clock() -> None:
    config = json.loads(image_config(Architecture("amd64"), EXECUTION, LAYERS).content)
    assert {config["created"], *(entry["created"] for entry in config["history"])} == {"1970-01-01T00:00:01Z"}


def test_created_is_the_commit_date_of_the_source() -> None:
    config = json.loads(image_config(Architecture("amd64"), EXECUTION, LAYERS, 1_700_000_000).content)
    assert {config["created"], *(entry["created"] for entry in config["history"])} == {"2023-11-14T22:13:20Z"}


def test_manifest_describes_what_it_refers_to() -> None:
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
