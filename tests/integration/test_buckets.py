"""Servers whose layers are in a bucket, from the build to the client."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from tests.integration.conftest import StartServer
from tests.support.command_line import CommandLine
from tests.support.faulty_proxy import faulty_proxy
from tests.support.nix import NixSpy, wait_until
from tests.support.object_stores import BUCKET, PREFIX, ObjectStore, gcs, moto
from tests.support.pulled_image import PulledImage
from tests.support.server import HOST, Server, run_server
from tests.validator.image_validator import validate

# `big` has a layer that is too large to be answered from memory.
PACKAGE_SET = Path(__file__).parents[1] / "packageset"
NAME = "shell/big/hello/diamond"


@pytest.fixture(params=[moto, gcs])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    with request.param(tmp_path) as server:
        yield server


def big_layer(server: Server) -> tuple[str, int]:
    layers = server.client.get(f"/v2/{NAME}/manifests/latest").json()["layers"]
    largest = max(layers, key=lambda layer: int(layer["size"]))
    assert largest["size"] > 64 * 1024
    return largest["digest"], largest["size"]


def pulled_by_skopeo(server: Server, directory: Path) -> PulledImage:
    directory.mkdir(exist_ok=True)
    layout = directory / f"layout-{server.port}"
    source = f"docker://{HOST}:{server.port}/{NAME}:latest"
    command = [
        "skopeo",
        "copy",
        "--src-tls-verify=false",
        "--override-os=linux",
        source,
        f"oci:{layout}:image",
    ]
    subprocess.run(command, check=True, timeout=120)
    return validate(PulledImage.from_oci_layout(layout))


@pytest.mark.security
def test_stalled_clients_keep_no_blob_in_memory(start_server: StartServer, tmp_path: Path) -> None:
    content = bytes(64 << 20)
    digest = hashlib.sha256(content).hexdigest()
    with moto(tmp_path) as bucket, ExitStack() as stack:
        store = S3Store(
            BUCKET,
            endpoint=bucket.settings["AWS_ENDPOINT_URL"],
            region=bucket.settings["AWS_REGION"],
            access_key_id="any",
            secret_access_key="any",  # noqa: S106 -- moto takes any
            client_options={"allow_http": True},
        )
        place = f"{PREFIX}/blobs/sha256/{digest[:2]}/{digest}"
        obstore.put(store, place, content)
        obstore.put(store, f"{place}.size", b"%d" % len(content))
        server = start_server(**bucket.settings, NIXERY_BLOB_DELIVERY="proxy")
        path = f"/v2/{NAME}/blobs/sha256:{digest}"
        for _ in range(12):
            connection = stack.enter_context(socket.create_connection((HOST, server.port)))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nRange: bytes=1-\r\n\r\n".encode())
            assert connection.recv(1)
        # The last request gets the whole blob; so could all others.
        assert server.client.get(path).body == content
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert int(peak) < 400 << 10


@pytest.mark.parametrize("delivery", ["redirect", "proxy"])
def test_a_client_pulls(
    bucket: ObjectStore, start_server: StartServer, tmp_path: Path, delivery: str
) -> None:
    server = start_server(**bucket.settings, NIXERY_BLOB_DELIVERY=delivery)
    image = pulled_by_skopeo(server, tmp_path)
    assert len(image.layers) > 1
    digest, size = big_layer(server)
    path = f"/v2/{NAME}/blobs/{digest}"
    head = server.client.request("HEAD", path)
    assert (head.status, head.headers["content-length"]) == (200, str(size))
    answer = server.client.get(path, {"Range": "bytes=10-99"})
    if delivery == "redirect":
        assert answer.status == 307
        assert answer.headers["cache-control"] == "no-store"
        request = urllib.request.Request(answer.headers["location"], headers={"Range": "bytes=10-99"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=30) as found:  # noqa: S310
            part = found.read()
        with urllib.request.urlopen(answer.headers["location"], timeout=30) as found:  # noqa: S310
            whole = found.read()
    else:
        assert answer.status == 206
        assert answer.headers["content-range"] == f"bytes 10-99/{size}"
        part, whole = answer.body, server.client.get(path).body
    assert f"sha256:{hashlib.sha256(whole).hexdigest()}" == digest
    assert part == whole[10:100]
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_replica_without_nix_serves_images_of_another_one(
    start_server: StartServer, tmp_path: Path, spy: NixSpy
) -> None:
    with moto(tmp_path) as bucket:
        image = validate(start_server(**bucket.settings, NIXERY_BLOB_DELIVERY="proxy").client.pull(NAME))
        other = start_server(
            **bucket.settings,
            **spy.environment(),
            NIXERY_BLOB_DELIVERY="proxy",
            STORAGE_PATH=str(tmp_path / "other"),
        )
        spy.forget()  # the requests of a server that starts
        assert validate(other.client.pull(NAME)) == image
        assert spy.calls == []


def test_a_restarted_server_does_not_serve_a_corrupted_copy(
    start_server: StartServer, tmp_path: Path
) -> None:
    with moto(tmp_path) as bucket:
        storage = tmp_path / "storage-with-copies"
        settings = {**bucket.settings, "NIXERY_BLOB_DELIVERY": "proxy", "STORAGE_PATH": str(storage)}
        server = start_server(**settings)
        digest, _ = big_layer(server)
        path = f"/v2/{NAME}/blobs/{digest}"
        layer = server.client.get(path).body
        # The server renames the copy shortly after it sent the last byte.
        copy = storage / "cache" / digest.removeprefix("sha256:")
        wait_until(copy.exists, "the copy", seconds=60)
        assert server.stop() == 0
        assert copy.read_bytes() == layer
        copy.chmod(0o644)
        copy.write_bytes(bytes([layer[0] ^ 1]) + layer[1:])
        server = start_server(**settings)

        def is_repaired() -> bool:
            assert server.client.get(path).body == layer
            return copy.exists() and copy.read_bytes() == layer

        wait_until(is_repaired, "another copy", seconds=60)
        assert server.client.get(path).body == layer
        assert server.stop() == 0
        assert "deleted a corrupted copy of a blob" in server.log
        assert "Traceback" not in server.log


def test_replicas_that_build_the_same_image_at_the_same_moment(
    start_server: StartServer, tmp_path: Path
) -> None:
    with moto(tmp_path) as bucket:
        servers = [
            start_server(
                **bucket.settings,
                NIXERY_BLOB_DELIVERY="proxy",
                STORAGE_PATH=str(tmp_path / f"storage-{number}"),
            )
            for number in range(2)
        ]
        with ThreadPoolExecutor() as executor:
            first, second = executor.map(lambda server: validate(server.client.pull(NAME)), servers)
        assert first == second
        assert all("Traceback" not in server.log for server in servers)


def test_a_warm_pull_requests_only_the_layers_from_the_bucket(
    start_server: StartServer, tmp_path: Path
) -> None:
    with moto(tmp_path) as bucket, faulty_proxy(bucket.port) as proxy:
        url = f"http://{HOST}:{proxy.port}"
        server = start_server(**{**bucket.settings, "AWS_ENDPOINT_URL": url}, NIXERY_BLOB_DELIVERY="redirect")
        pulled_by_skopeo(server, tmp_path / "cold")
        time.sleep(1.1)  # until the next lookup of the image, whose result is cached
        pulled_by_skopeo(server, tmp_path / "second")
        proxy.requests.clear()
        image = pulled_by_skopeo(server, tmp_path / "warm")
        blobs = [path for method, path in proxy.requests if method == "GET" and "/blobs/" in path]
        assert blobs == [path for _, path in proxy.requests]
        assert len(blobs) == len(set(blobs)) <= len(image.layers)


def test_an_interrupted_transfer_from_the_bucket_is_resumed(
    start_server: StartServer, tmp_path: Path
) -> None:
    with moto(tmp_path) as bucket, faulty_proxy(bucket.port) as proxy:
        url = f"http://{HOST}:{proxy.port}"
        # Without local copies; otherwise the server would not read the bucket after the pull.
        server = start_server(
            **{**bucket.settings, "AWS_ENDPOINT_URL": url},
            NIXERY_BLOB_DELIVERY="proxy",
            NIXERY_CACHE_SIZE="0",
        )
        server.client.pull(NAME)
        digest, _ = big_layer(server)
        proxy.fault, proxy.every = "cut", 3
        for _ in range(6):
            body = server.client.get(f"/v2/{NAME}/blobs/{digest}").body
            assert f"sha256:{hashlib.sha256(body).hexdigest()}" == digest
        assert proxy.faults


def test_a_missing_bucket_is_one_line(tmp_path: Path) -> None:
    with moto(tmp_path) as bucket:
        ended = run_server(
            {**bucket.settings, "S3_BUCKET": "no-such", "PORT": "1", "NIXERY_PKGS_PATH": str(PACKAGE_SET)},
            tmp_path,
        )
        assert ended.returncode == 2
        assert sum("no-such" in line for line in ended.stderr.splitlines()) == 1
        assert "Traceback" not in ended.stderr


def test_an_image_collected_by_another_process_is_rebuilt(
    bucket: ObjectStore, start_server: StartServer, tmp_path: Path
) -> None:
    # Seconds: longer than a pull takes, even on a loaded machine.
    grace = 8
    settings = {**bucket.settings, "NIXERY_STORAGE_GRACE": str(grace), "NIXERY_BLOB_DELIVERY": "proxy"}
    server = start_server(**settings, NIXERY_CACHE_SIZE="0")
    nixery = CommandLine({**settings, "NIXERY_PKGS_PATH": str(PACKAGE_SET)}, tmp_path)
    image = validate(server.client.pull(NAME))
    young = json.loads(nixery("gc", "--json", "--max-size", "0").stdout)
    assert (young["deleted"], young["over"]) == (0, young["kept_bytes"])
    # A bucket's times have whole seconds.
    time.sleep(grace + 2)
    collected = json.loads(nixery("gc", "--json", "--max-size", "0").stdout)
    assert (collected["deleted"], collected["kept"]) == (young["kept"], 0)
    again = validate(server.client.pull(NAME))
    assert again.manifest == image.manifest
    scrubbed = json.loads(nixery("scrub", "--json").stdout)
    assert scrubbed["broken"] == []
    assert scrubbed["bytes"] > young["kept_bytes"]
    findings = {one["what"]: one for one in json.loads(nixery("check", "--json").stdout)}
    assert findings["storage"]["found"].startswith(bucket.settings["NIXERY_STORAGE_BACKEND"])
