"""Binary caches that Nix makes, beside Nix itself: the same configuration, path infos and contents."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from nixery.binary_caches.client import BinaryCaches
from nixery.binary_caches.configuration import CacheConfiguration
from nixery.closure import PathInfo, StorePath
from nixery.errors import BinaryCacheFailed
from nixery.nix.realisation import parse_registrations
from tests.support.nix import nix_environment
from tests.support.object_stores import BUCKET, moto
from tests.support.web_server import file_server

_LIMIT = 1 << 24

COMPRESSIONS = ("zstd", "xz", "bzip2", "gzip", "none")

# Files of many kinds, a path that refers to itself, and one that refers to another path.
PACKAGES = """
let
  builder = name: text: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" text ];
    PATH = "/usr/bin:/bin";
  };
  library = builder "library" ''
    mkdir -p $out/lib/empty; echo $out > $out/lib/self; ln -s self $out/lib/link
    head -c 3000000 /dev/zero > $out/lib/large; echo x > $out/lib/run; chmod +x $out/lib/run
  '';
in
builder "program" "mkdir $out; echo ${library}/lib/run > $out/run; echo ${builtins.toFile "text" "hello"} > $out/text"
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return os.environ | nix_environment(tmp_path_factory.mktemp("nix"))


def run(environment: Mapping[str, str], *command: str) -> str:
    return subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def dump(environment: Mapping[str, str], path: StorePath) -> bytes:
    command = ("nix-store", "--dump", str(path))
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout


@pytest.fixture(scope="module")
def closure(
    environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[StorePath, PathInfo]:
    file = tmp_path_factory.mktemp("packages") / "default.nix"
    file.write_text(PACKAGES)
    top = run(environment, "nix-build", "--no-out-link", str(file))
    paths = run(environment, "nix-store", "--query", "--requisites", top).split()
    assert len(paths) == 3
    dumped = run(environment, "nix-store", "--dump-db", *paths)
    return {info.path: info for info in parse_registrations(dumped)}


def nix(environment: Mapping[str, str], *arguments: str) -> None:
    run(environment, "nix", "--extra-experimental-features", "nix-command", *arguments)


@pytest.fixture(scope="module")
def public_key(environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    directory = tmp_path_factory.mktemp("key")
    run(
        environment,
        "nix-store",
        "--generate-binary-cache-key",
        "real-1",
        str(directory / "secret"),
        str(directory / "public"),
    )
    return (directory / "public").read_text().strip(), directory / "secret"


@pytest.fixture(scope="module")
def caches(
    environment: Mapping[str, str],
    closure: dict[StorePath, PathInfo],
    public_key: tuple[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A signed cache for each compression."""
    made = {}
    for compression in COMPRESSIONS:
        made[compression] = tmp_path_factory.mktemp(compression) / "cache"
        url, paths = f"file://{made[compression]}", list(map(str, closure))
        nix(environment, "copy", "--to", f"{url}?compression={compression}", *paths)
        nix(environment, "store", "sign", "--key-file", str(public_key[1]), "--store", url, *paths)
    return made


def client_of(url: str, keys: str) -> BinaryCaches:
    configured = {
        "NIX_CONF_DIR": "/dev/null",
        "XDG_CONFIG_DIRS": "/dev/null",
        "NIX_CONFIG": f"substituters = {url}\ntrusted-public-keys = {keys}",
    }
    return BinaryCaches(CacheConfiguration.read(configured))


@pytest.fixture(params=COMPRESSIONS)
async def client(
    request: pytest.FixtureRequest, caches: dict[str, Path], public_key: tuple[str, Path]
) -> AsyncIterator[BinaryCaches]:
    with file_server(caches[request.param]) as served:
        client = client_of(served.url, public_key[0])
        yield client
        await client.close()


async def test_path_infos_and_contents_are_nixs(
    client: BinaryCaches, closure: dict[StorePath, PathInfo], environment: Mapping[str, str]
) -> None:
    found = await client.find(closure, _LIMIT)
    assert {path: narinfo.info for path, narinfo in found.items()} == closure
    for path, narinfo in found.items():
        with client.open(narinfo) as pieces:
            content = b"".join(pieces)
        assert content == dump(environment, path)
        assert hashlib.sha256(content).hexdigest() == narinfo.info.nar_hash


async def test_a_directory_is_read_without_a_server(
    caches: dict[str, Path], closure: dict[StorePath, PathInfo], public_key: tuple[str, Path]
) -> None:
    client = client_of(f"file://{caches['xz']}", public_key[0])
    found = await client.find(closure, _LIMIT)
    assert {path: narinfo.info for path, narinfo in found.items()} == closure


async def test_without_the_key_only_content_addressed_paths_are_found(
    caches: dict[str, Path], closure: dict[StorePath, PathInfo]
) -> None:
    client = client_of(f"file://{caches['none']}", "")
    found = await client.find(closure, _LIMIT)
    (path,) = found
    assert path.name == "text"
    with client.open(found[path]) as pieces:
        assert b"hello" in b"".join(pieces)
    other = next(info.path for info in closure.values() if info.path != path)
    assert "it is signed by real-1, which trusted-public-keys does not have" in client.explain(other).reason


async def test_a_content_address_is_compared_with_the_contents(
    caches: dict[str, Path], closure: dict[StorePath, PathInfo], tmp_path: Path
) -> None:
    """A cache may name the hash of any NAR beside a valid content address."""
    path = next(path for path in closure if path.name == "text")
    narinfo = (caches["none"] / f"{path.base_name[:32]}.narinfo").read_text()
    file = next(line.removeprefix("URL: ") for line in narinfo.splitlines() if line.startswith("URL: "))
    nar = (caches["none"] / file).read_bytes().replace(b"hello", b"hullo")
    digits = next(line for line in narinfo.splitlines() if line.startswith("NarHash: "))
    (tmp_path / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    (tmp_path / "nar").mkdir()
    (tmp_path / file).write_bytes(nar)
    (tmp_path / f"{path.base_name[:32]}.narinfo").write_text(
        narinfo.replace(digits, f"NarHash: sha256:{hashlib.sha256(nar).hexdigest()}")
    )
    client = client_of(f"file://{tmp_path}", "")
    found = await client.look_up(path)
    assert found is not None
    with (
        client.open(found) as pieces,
        pytest.raises(BinaryCacheFailed, match="content that its content address says"),
    ):
        b"".join(pieces)


def test_the_configuration_is_nixs(
    environment: Mapping[str, str], tmp_path: Path, public_key: tuple[str, Path]
) -> None:
    (tmp_path / "system").mkdir()
    (tmp_path / "user/nix").mkdir(parents=True)
    (tmp_path / "system/nix.conf").write_text(
        "experimental-features = nix-command\n"
        "substituters = https://one.example.org # a comment\n!include missing\ninclude more.conf\n"
    )
    (tmp_path / "system/more.conf").write_text(
        f"extra-trusted-public-keys = {public_key[0]}\nextra-substituters = https://two.example.org\n"
    )
    (tmp_path / "user/nix/nix.conf").write_text(
        "extra-substituters = https://three.example.org\nrequire-sigs = false\n"
    )
    configured = {
        **environment,
        "NIX_CONF_DIR": str(tmp_path / "system"),
        "XDG_CONFIG_HOME": str(tmp_path / "user"),
        "XDG_CONFIG_DIRS": str(tmp_path / "none"),
        "NIX_CONFIG": "extra-substituters = https://four.example.org",
    }
    options = ("--option", "extra-substituters", "https://five.example.org")
    shown = json.loads(run(configured, "nix", "show-config", "--json", *options))
    found = CacheConfiguration.read(configured, options)
    assert [cache.name for cache in found.caches] == shown["substituters"]["value"]
    assert set(found.trust.keys) == {key.partition(":")[0] for key in shown["trusted-public-keys"]["value"]}
    assert found.trust.require_signatures is shown["require-sigs"]["value"]


async def test_a_bucket_is_read(
    caches: dict[str, Path],
    closure: dict[StorePath, PathInfo],
    public_key: tuple[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with moto(tmp_path) as store:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, store.settings[name])
        endpoint = store.settings["AWS_ENDPOINT_URL"]
        bucket = S3Store(
            BUCKET,
            prefix="some/cache",
            endpoint=endpoint,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        for file in caches["zstd"].rglob("*"):
            if file.is_file():
                obstore.put(bucket, str(file.relative_to(caches["zstd"])), file.read_bytes())
        client = client_of(
            f"s3://{BUCKET}/some/cache?scheme=http&endpoint={endpoint.removeprefix('http://')}", public_key[0]
        )
        found = await client.find([*closure, StorePath(f"{'0' * 32}-absent")], _LIMIT)
        assert {path: narinfo.info for path, narinfo in found.items()} == closure
        for path, narinfo in found.items():
            with client.open(narinfo) as pieces:
                assert hashlib.sha256(b"".join(pieces)).hexdigest() == closure[path].nar_hash
