"""A storage that an attacker has written to causes no wrong response and no 500, and gives access to no other file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from nixery.builds.index_records import HEADER, decode_index
from tests.integration.conftest import StartServer
from tests.support.client import RegistryClient
from tests.support.nix import wait_until
from tests.support.server import Server, clean_environment, run_server
from tests.validator.image_validator import validate

pytestmark = pytest.mark.security

NAMES = ("hello", "shell/greeting")


def records(server: Server) -> list[Path]:
    """List what stays: the progress of a build is removed shortly after its image is pulled."""
    found = (path for path in (server.storage / "records").rglob("*") if not path.is_dir())
    return sorted(path for path in found if "build-progress" not in path.parts)


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/proc/self/environ")


def directory(path: Path) -> None:
    path.unlink()
    (path / "within").mkdir(parents=True)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def huge(path: Path) -> None:
    """Write a sparse file larger than any record may be."""
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)


def nested(path: Path) -> None:
    replace(path, b"[" * 100_000)


def rewritten(old: str, new: object) -> Callable[[Path], None]:
    """Replace all strings or numbers of a record that look like a given one."""

    def change(value: object) -> object:
        if isinstance(value, dict):
            return {key: change(item) for key, item in value.items()}
        if isinstance(value, list):
            return [change(item) for item in value]
        if old == "numbers":
            return new if isinstance(value, int | float) and not isinstance(value, bool) else value
        return new if isinstance(value, str) and old in value else value

    def rewrite(path: Path) -> None:
        try:
            document = json.loads(path.read_bytes())
        except ValueError:
            return
        replace(path, json.dumps(change(document)).encode())

    return rewrite


HOSTILE: dict[str, Callable[[Path], None]] = {
    "symlinks": link,
    "FIFOs": pipe,
    "directories": directory,
    "too large": huge,
    "nested": nested,
    "strings": rewritten("", "../../../../etc/passwd\r\nX: y"),
    "options": rewritten("", "--option"),
    "numbers": rewritten("numbers", 10**400),
    "infinite": rewritten("numbers", float("inf")),
    "negative": rewritten("numbers", -1),
    "null": rewritten("", None),
}


def ask_everything(server: Server, digests: list[str]) -> None:
    paths = ["/v2/_catalog", "/", "/builds", "/api/v1/builds", "/readyz", "/metrics"]
    for name in NAMES:
        paths += [f"/v2/{name}/tags/list", f"/api/v1/images/{name}:latest", f"/images/{name}:latest"]
    for digest in digests:
        paths += [f"/v2/hello/referrers/{digest}", f"/v2/hello/manifests/{digest}"]
    paths += [f"/builds/{path.name}" for path in records(server) if "builds" in path.parts]
    for path in paths:
        response = server.client.get(path)
        assert response.status < 500, (path, response)
    assert "Traceback" not in server.log


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_records(hostile: Callable[[Path], None], start_server: StartServer) -> None:
    server = start_server()
    images = {name: server.client.pull(name) for name in NAMES}
    digests = [image.digest for image in images.values()]
    ask_everything(server, digests)
    assert server.stop() == 0
    for path in records(server):
        hostile(path)
    server = start_server()
    ask_everything(server, digests)
    for name, image in images.items():
        assert validate(server.client.pull(name)) == image
    ask_everything(server, digests)


def test_records_that_lead_to_other_blobs(start_server: StartServer) -> None:
    """Every digest of a record becomes that of another blob: all responses still match their digests."""
    server = start_server()
    images = {name: server.client.pull(name) for name in NAMES}
    blobs = [path for path in (server.storage / "blobs").rglob("*") if path.is_file() and not path.suffix]
    assert server.stop() == 0
    for number, blob in enumerate(blobs):
        for path in records(server):
            rewritten("sha256:", f"sha256:{blob.name}")(path)
        server = start_server()
        for name in NAMES:
            check_digest(server.client, name)
        ask_everything(server, [image.digest for image in images.values()])
        assert server.stop() == 0, number


def test_an_evaluation_that_names_outputs_of_another_derivation(start_server: StartServer) -> None:
    """Only the package index may name outputs without their derivation; such a build starts over once."""
    server = start_server(NIXERY_INDEX="0")
    images = {name: server.client.pull(name) for name in NAMES}
    assert server.stop() == 0
    evaluations = [path for path in records(server) if "evaluations" in path.parts]
    found = {path: json.loads(path.read_bytes()) for path in evaluations}
    packages = [item for items in found.values() for item in items if "derivation" in item]
    derivations = sorted({package["derivation"]["base_name"] for package in packages})
    for package in packages:
        other = next(name for name in derivations if name != package["derivation"]["base_name"])
        package.update(is_realised=True, derivation={"base_name": other})
    for path, items in found.items():
        replace(path, json.dumps(items).encode())
    for path in records(server):
        if "images" in path.parts:
            path.unlink()
    server = start_server(NIXERY_INDEX="0")
    assert {name: server.client.pull(name) for name in NAMES} == images


@pytest.mark.parametrize(
    "line",
    [b'{"error"', b'{"error": ' + b"[" * 100_000, b'{"error": "\\ud800"}', b"\xff"],
    ids=["cut off", "nested", "surrogate", "bytes"],
)
def test_parts_of_the_package_index(line: bytes, start_server: StartServer, tmp_path: Path) -> None:
    """A server evaluates the package set in the background even if all stored parts are torn."""
    package_set = tmp_path / "default.nix"
    package_set.write_text(
        '{ system, ... }: { hello = derivation { name = "hello"; inherit system; builder = "x"; }; }'
    )
    server = start_server(NIXERY_PKGS_PATH=str(package_set), NIXERY_INDEX="1")
    wait_until(lambda: '"indexed the package set"' in server.log, "the index is complete", 30)
    assert server.stop() == 0
    for path in records(server):
        if "package-details" in path.parts:
            lines = zstandard.decompress(path.read_bytes()).count(b"\n") + 1
            replace(path, zstandard.compress(b"\n".join([line] * lines)))
        elif "packages" in path.parts:
            path.unlink()
    server = start_server(NIXERY_PKGS_PATH=str(package_set), NIXERY_INDEX="1")
    wait_until(lambda: '"indexed the package set"' in server.log, "the index is complete", 30)
    assert server.client.get("/api/v1/packages?q=hello").status == 200
    # Its builder does not exist; the server says so, rather than that it cannot read a record.
    assert server.client.manifest("hello").status == 422


@pytest.mark.parametrize("created", [10**400, 10**14], ids=["no number", "no date"])
def test_the_date_of_a_planted_index(created: int, start_server: StartServer, tmp_path: Path) -> None:
    """The page of a package shows its versions in all stored indexes."""
    package_set = tmp_path / "default.nix"
    package_set.write_text(
        '{ system, ... }: { hello = derivation { name = "hello-1"; inherit system; builder = "x"; }; }'
    )
    server = start_server(NIXERY_PKGS_PATH=str(package_set), NIXERY_INDEX="1")
    wait_until(lambda: '"indexed the package set"' in server.log, "the index is complete", 30)
    (stored,) = [path for path in records(server) if "packages" in path.parts]
    index = decode_index(stored.read_bytes())
    index.header = index.header.model_copy(update={"created": created, "revision": "planted"})
    planted = stored.parents[1] / "ab" / ("ab" * 32)
    planted.parent.mkdir(exist_ok=True)
    planted.write_bytes(index.encoded())
    for path in ("/packages/hello", "/api/v1/packages/hello"):
        answer = server.client.get(path)
        assert answer.status == 200, answer
        assert b"planted" not in answer.body


def check_digest(client: RegistryClient, name: str) -> None:
    response = client.manifest(name)
    assert response.status == 200, response
    digest = f"sha256:{hashlib.sha256(response.body).hexdigest()}"
    assert response.headers["docker-content-digest"] == digest
    document = response.json()
    assert document["mediaType"] == response.headers["content-type"]
    for part in (document["config"], *document["layers"]):
        blob = client.blob(name, part["digest"])
        assert (blob.status, len(blob.body)) == (200, part["size"])
        assert f"sha256:{hashlib.sha256(blob.body).hexdigest()}" == part["digest"]


@pytest.mark.parametrize(
    "change", [lambda content: b"1" + content, lambda _: b"1" * 100], ids=["one", "long"]
)
def test_sizes_beside_blobs(change: Callable[[bytes], bytes], start_server: StartServer) -> None:
    server = start_server()
    image = server.client.pull("hello")
    for path in (server.storage / "blobs").rglob("*.size"):
        replace(path, change(path.read_bytes()))
    for digest in (image.digest, *image.layer_digests):
        for answer in (server.client.blob("hello", digest), server.client.manifest("hello", digest)):
            assert answer.status in {200, 404}
    assert server.stop() == 0
    server = start_server()
    assert server.client.blob("hello", image.layer_digests[0]).status == 404
    assert validate(server.client.pull("hello")) == image
    check_digest(server.client, "hello")


@pytest.mark.parametrize(
    "name", ["blobs", "records", "temporary", "gc-roots", "locks", "records/tags-in-order"]
)
def test_a_symlink_in_the_place_of_a_directory(name: str, start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    server.client.pull("hello")
    assert server.stop() == 0
    elsewhere = tmp_path / "elsewhere"
    (server.storage / name).rename(elsewhere)
    (server.storage / name).symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    settings = {"PORT": "1", "NIXERY_STORAGE_BACKEND": "filesystem", "STORAGE_PATH": str(server.storage)}
    ended = run_server({**settings, **_set(tmp_path)}, tmp_path)
    assert ended.returncode == 2, ended
    assert str(server.storage / name) in ended.stderr
    assert sorted(elsewhere.rglob("*")) == before


def _set(directory: Path) -> dict[str, str]:
    path = directory / "set"
    path.mkdir(exist_ok=True)
    (path / "default.nix").write_text("{ system }: { }")
    return {"NIXERY_PKGS_PATH": str(path)}


def test_stored_files_are_private(start_server: StartServer, tmp_path: Path) -> None:
    # A storage of an earlier version.
    (tmp_path / "storage" / "records").mkdir(parents=True)
    (tmp_path / "storage").chmod(0o755)
    before = os.umask(0)
    try:
        server = start_server()
        server.client.pull("hello")
    finally:
        os.umask(before)
    open_to_others = []
    for path in (server.storage, *server.storage.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # the progress of the build may be removed meanwhile
            if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077:
                open_to_others.append(path)
    assert open_to_others == []
    # So are the files of its child processes.
    assert "Umask:\t0077\n" in Path(f"/proc/{server.process.pid}/status").read_text()


# Bytes of address space; a scrub of usual records takes a third of it.
_MEMORY = 2_000_000_000


def _index(header: bytes, rows: bytes) -> bytes:
    compressed = zstandard.compress(header)
    return HEADER + b"hello\n\n%016x" % len(compressed) + compressed + zstandard.compress(rows)


_NAMES = b'{"source":"","revision":"","created":null,"rounds":[[[[],["hello"]]]]}'


@pytest.mark.parametrize(
    ("kind", "content"),
    {
        "rows": ("packages", _index(_NAMES, b"[" + b"0," * 60_000_000 + b"0]")),
        "names": ("packages", _index(b'{"rounds":[' + b"0," * 5_000_000 + b"0]}", b"")),
        "lines": ("package-details", zstandard.compress(b"aa\n" * 40_000_000)),
        "members": ("evaluations", b'[{"licences":[' + b"0," * 2_000_000 + b"0]}]"),
        "references": ("batch-closures", b'{"a":[' + b"0," * 8_000_000 + b"0]}"),
    }.values(),
    ids=["rows", "names", "lines", "members", "references"],
)
def test_a_record_takes_no_multiple_of_its_size_in_memory(kind: str, content: bytes, tmp_path: Path) -> None:
    """A record of some kilobytes can have gigabytes of values, and an error for each."""
    path = tmp_path / "storage" / "records" / kind / "ab" / ("ab" * 32)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    settings = {"STORAGE_PATH": str(tmp_path / "storage"), "NIXERY_STORAGE_BACKEND": "filesystem"}
    completed = subprocess.run(
        ["prlimit", f"--as={_MEMORY}", sys.executable, "-m", "nixery", "scrub"],
        env=clean_environment({**settings, "MALLOC_ARENA_MAX": "2"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode in {0, 1}, completed.stderr[-1000:]
    assert "Traceback" not in completed.stderr, completed.stderr[-1000:]
