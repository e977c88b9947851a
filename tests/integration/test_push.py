"""Pushing to Debian's docker-registry, which asks for a password."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from scripts.peers.docker_registry import docker_registry
from scripts.peers.process import Peer
from tests.support.command_line import CommandLine
from tests.support.faulty_proxy import faulty_proxy
from tests.support.object_stores import moto
from tests.support.pulled_image import PulledImage
from tests.support.server import HOST
from tests.validator.image_validator import validate

# A minimal Debian has no program for bcrypt hashes, and docker-registry accepts no others.
_PASSWORD = "open:sesame"  # noqa: S105 -- of a registry that the test runs
_HASH = "$2b$04$p92kC02hEedezxxlJNHecueg1zlhzGxtmsjrUcSo.f4t93Gl6TjbK"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Peer]:
    directory = tmp_path / "registry"
    directory.mkdir()
    (directory / "htpasswd").write_text(f"me:{_HASH}\n")
    with docker_registry(directory, htpasswd=directory / "htpasswd") as peer:
        yield peer


@pytest.fixture
def nixery(settings: Mapping[str, str], tmp_path: Path) -> CommandLine:
    return CommandLine({**settings, "DOCKER_CONFIG": str(tmp_path), "REGISTRY_AUTH_FILE": ""}, tmp_path)


def log_in(directory: Path, registry: Peer, password: str) -> Path:
    encoded = base64.b64encode(f"me:{password}".encode()).decode()
    path = directory / "config.json"
    path.write_text(json.dumps({"auths": {registry.address: {"auth": encoded}}}))
    return path


@pytest.mark.parametrize("platforms", ["linux/amd64", "linux/amd64,linux/arm64"])
def test_a_pushed_image_is_pulled_by_its_digest(
    nixery: CommandLine, registry: Peer, tmp_path: Path, platforms: str
) -> None:
    login = log_in(tmp_path, registry, _PASSWORD)
    target = f"{registry.address}/tools/hello:1"
    built = nixery("build", "shell/hello", "-o", f"registry:{target}", "-q", NIXERY_PLATFORMS=platforms)
    digest = built.stdout.strip()
    for reference in (f"tools/hello@{digest}", "tools/hello:1"):
        place = tmp_path / reference.replace("/", "-").replace(":", "-")
        subprocess.run(
            ["skopeo", "copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--src-authfile", login,
             f"docker://{registry.address}/{reference}", f"oci:{place}:image"],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        index = json.loads((place / "index.json").read_text())
        assert index["manifests"][0]["digest"] == digest
    again = nixery("build", "shell/hello", "-o", f"registry:{target}", "--json", NIXERY_PLATFORMS=platforms)
    events = [json.loads(line) for line in again.stdout.splitlines()]
    assert {event["how"] for event in events if event["event"] == "blob-pushed"} == {"present"}


@pytest.mark.parametrize("delivery", ["redirect", "proxy"])
def test_an_image_in_a_bucket_is_pushed_from_there(
    registry: Peer, settings: Mapping[str, str], tmp_path: Path, delivery: str
) -> None:
    """Another machine than the one that built the image pushes it; one layer is streamed."""
    login = log_in(tmp_path, registry, _PASSWORD)
    target = f"{registry.address}/tools/big:1"
    with moto(tmp_path) as bucket, faulty_proxy(bucket.port) as proxy:
        given = {
            **settings,
            **bucket.settings,
            "AWS_ENDPOINT_URL": f"http://{HOST}:{proxy.port}",
            "NIXERY_BLOB_DELIVERY": delivery,
            "DOCKER_CONFIG": str(tmp_path),
            "REGISTRY_AUTH_FILE": "",
        }
        machines = [tmp_path / name for name in ("first", "second")]
        for machine in machines:
            machine.mkdir()
        built = CommandLine(given, machines[0])("build", "shell/big/hello", "-q").stdout.strip()
        proxy.requests.clear()
        # Interrupted downloads from the bucket are resumed.
        proxy.fault, proxy.every = "cut", 5
        pushed = CommandLine(given, machines[1])("build", "shell/big/hello", "-o", f"registry:{target}", "-q")
        assert pushed.stdout.strip() == built
        assert not [path for method, path in proxy.requests if method == "PUT" and "/blobs/" in path]
        assert proxy.faults
    place = tmp_path / "pulled"
    subprocess.run(
        ["skopeo", "copy", "--preserve-digests", "--src-tls-verify=false", "--src-authfile", login,
         f"docker://{registry.address}/tools/big@{built}", f"oci:{place}:image"],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert validate(PulledImage.from_oci_layout(place)).digest == built


def test_blobs_are_mounted_from_another_repository_of_the_host(
    nixery: CommandLine, registry: Peer, tmp_path: Path
) -> None:
    log_in(tmp_path, registry, _PASSWORD)
    targets = [f"{registry.address}/{name}:latest" for name in ("one", "two")]
    outputs = [part for target in targets for part in ("-o", f"registry:{target}")]
    printed = nixery("build", "hello", *outputs, "--json").stdout
    events = [json.loads(line) for line in printed.splitlines()]
    how = {
        target: {e["how"] for e in events if e["event"] == "blob-pushed" and e["target"] == target}
        for target in targets
    }
    assert how == {targets[0]: {"uploaded"}, targets[1]: {"mounted"}}


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_password_is_one_line(
    nixery: CommandLine, registry: Peer, tmp_path: Path, password: str | None
) -> None:
    if password:
        log_in(tmp_path, registry, password)
    ended = nixery("build", "hello", "-o", f"registry:{registry.address}/hello", "-q", status=1)
    (line,) = ended.stderr.splitlines()
    assert "401" in line
    assert "log in" in line


def test_an_unreachable_registry_is_one_line(nixery: CommandLine, registry: Peer) -> None:
    ended = nixery("build", "hello", "-o", "registry:127.0.0.1:1/hello", "-q", status=1)
    (line,) = ended.stderr.splitlines()
    assert "127.0.0.1:1: cannot connect" in line
    assert registry.port != 1
