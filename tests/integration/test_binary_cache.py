"""A real Nix fetches the store paths of images from the server, from its store or from layers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.integration.test_access import PASSWORDS, access, basic, hashes
from tests.support.command_line import CommandLine
from tests.support.nix import PACKAGE_SETS, wait_until
from tests.support.private_nix import PrivateNix
from tests.support.second_store import SecondStore, hash_of, registered_paths
from tests.support.server import HOST, Server, free_port, running_server

__all__ = ["access", "hashes"]

# All kinds of files and names, references, a path that refers to itself, one that is a file, and a large one.
IMAGE = "big/bytenames/diamond/emptydirectory/emptyfile/executables/hardlinks/longnames/selfreference/singlefile/symlinks"

MakeStore = Callable[..., SecondStore]


@pytest.fixture
def private(tmp_path: Path) -> Iterator[PrivateNix]:
    made = PrivateNix.create(tmp_path / "private")
    yield made
    made.remove()


@pytest.fixture
def second_store(tmp_path: Path) -> Iterator[MakeStore]:
    with ExitStack() as stack:

        def make(server: Server, key: str | None = None, netrc: str = "") -> SecondStore:
            """Make a store with the server as its only substituter, whose key it trusts by default."""
            number = len(list(tmp_path.glob("store-*")))
            trusted = public_key(server) if key is None else key
            store = SecondStore.create(tmp_path / f"store-{number}", server, trusted, netrc)
            stack.callback(store.remove)
            return store

        yield make


def public_key(server: Server) -> str:
    return server.client.get("/nix-cache/public-key").body.decode().strip()


def narinfo(server: Server, path: str, headers: Mapping[str, str] | None = None) -> Mapping[str, str]:
    response = server.client.get(f"/nix-cache/{hash_of(path)}.narinfo", headers)
    assert response.status == 200, response
    return dict(line.split(": ", 1) for line in response.body.decode().splitlines())


def path_of(server: Server, name: str) -> str:
    """Return the path of a package that an image of the storage has."""
    (found,) = (path for path in registered_paths(server.storage) if path[44:].startswith(f"{name}-1"))
    return found


def require_all(store: SecondStore, server: Server) -> None:
    """Fetch all paths of all images, and compare hashes and references with those that Nix registered at the build."""
    registered = registered_paths(server.storage)
    names = [path[44:] for path in registered]
    store.fetch(*registered)
    for path, known in registered.items():
        assert store.nar_hash(path) == known["nar_hash"], path
        own = {path} if known.get("refers_to_itself") else set()
        others = {f"/nix/store/{list(registered)[at][11:]}" for at in known["references"]}
        assert set(store.references(path)) == own | others, path
    assert len(names) > 10


def test_a_second_machine_gets_the_closure_of_an_image(
    start_server: StartServer, second_store: MakeStore
) -> None:
    server = start_server(NIXERY_SERVE_CACHE="1")
    server.client.digest(IMAGE)
    require_all(second_store(server), server)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_paths_that_the_store_has_lost_come_from_layers(
    private: PrivateNix, tmp_path: Path, second_store: MakeStore, compression: str
) -> None:
    settings = {
        **private.environment(),
        "NIXERY_PKGS_PATH": str(PACKAGE_SETS),
        "NIXERY_SERVE_CACHE": "1",
        "NIXERY_COMPRESSION": compression,
        # Several paths in a layer.
        "NIXERY_LAYER_BUDGET": "6",
    }
    with running_server(tmp_path / "server", settings, launcher=private.launcher) as server:
        server.client.digest(IMAGE)
        private.collect_garbage()
        left = {path.name for path in (private.directory / "nix" / "store").iterdir()}
        assert not {path.removeprefix("/nix/store/") for path in registered_paths(server.storage)} & left
        require_all(second_store(server), server)


def test_nix_refuses_paths_without_a_signature_of_a_trusted_key(
    start_server: StartServer, second_store: MakeStore
) -> None:
    server = start_server(NIXERY_SERVE_CACHE="1")
    server.client.digest("hello")
    path = path_of(server, "hello")
    name, _, _ = public_key(server).partition(":")
    for key in ("", f"{name}:{'A' * 43}="):
        store = second_store(server, key)
        with pytest.raises(AssertionError, match="not signed by any of the keys"):
            store.fetch(path)
        assert not store.has(path)


@pytest.mark.security
def test_a_changed_layer_is_never_a_wrong_path(
    private: PrivateNix, tmp_path: Path, second_store: MakeStore
) -> None:
    settings = {
        **private.environment(),
        "NIXERY_PKGS_PATH": str(PACKAGE_SETS),
        "NIXERY_SERVE_CACHE": "1",
    }
    with running_server(tmp_path / "server", settings, launcher=private.launcher) as server:
        manifest = server.client.manifest("big/hello").json()
        private.collect_garbage()
        for layer in manifest["layers"]:
            file = server.blob_path(layer["digest"])
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.unlink()  # nobody may write to it
            file.write_bytes(content)
        for name in ("big", "hello"):
            path = path_of(server, name)
            store = second_store(server)
            with pytest.raises(AssertionError):
                store.fetch(path)
            assert not store.has(path)
        # All of a small NAR is compared before its status is sent.
        answer = server.client.get(f"/nix-cache/{narinfo(server, path_of(server, 'hello'))['URL']}")
        assert (answer.status, answer.error["code"]) == (500, "UNKNOWN")
        assert "cannot make the NAR of" in answer.error["message"]


@pytest.mark.security
def test_a_path_that_was_changed_in_the_store_comes_from_its_layer(
    private: PrivateNix, tmp_path: Path, second_store: MakeStore
) -> None:
    settings = {
        **private.environment(),
        "NIXERY_PKGS_PATH": str(PACKAGE_SETS),
        "NIXERY_SERVE_CACHE": "1",
    }
    with running_server(tmp_path / "server", settings, launcher=private.launcher) as server:
        server.client.digest("hello")
        path = path_of(server, "hello")
        program = private.directory / path.removeprefix("/") / "bin" / "hello"
        program.chmod(0o755)
        program.write_text("#!/bin/sh\necho changed\n")
        store = second_store(server)
        store.fetch(path)
        assert store.nar_hash(path) == registered_paths(server.storage)[path]["nar_hash"]


@pytest.mark.security
def test_hundreds_of_requests_for_a_small_path_of_a_large_layer(private: PrivateNix, tmp_path: Path) -> None:
    settings = {
        **private.environment(),
        "NIXERY_PKGS_PATH": str(PACKAGE_SETS),
        "NIXERY_SERVE_CACHE": "1",
        # One layer for all store paths.
        "NIXERY_LAYER_BUDGET": "2",
    }
    with running_server(tmp_path / "server", settings, launcher=private.launcher) as server:
        server.client.digest("big/hello/greeting/left/right")
        private.collect_garbage()
        # The last path of the layer, behind all others.
        path = max(registered_paths(server.storage))
        known = narinfo(server, path)
        with ThreadPoolExecutor(100) as threads:
            answers = list(threads.map(lambda _: server.client.get(f"/nix-cache/{known['URL']}"), range(300)))
            assert {answer.status for answer in answers} <= {200, 429}
        bodies = {answer.body for answer in answers if answer.status == 200}
        assert [len(body) for body in bodies] == [int(known["NarSize"])]
        assert server.client.manifest("big/hello/greeting/left/right").status == 200


def test_without_the_setting_there_is_no_cache(start_server: StartServer) -> None:
    server = start_server()
    server.client.digest("hello")
    path = path_of(server, "hello")
    for name in ("nix-cache-info", "public-key", f"{hash_of(path)}.narinfo"):
        assert server.client.get(f"/nix-cache/{name}").status == 404


def test_an_image_that_another_server_built_is_found(
    start_server: StartServer, second_store: MakeStore
) -> None:
    server = start_server(NIXERY_SERVE_CACHE="1")
    other = start_server(NIXERY_SERVE_CACHE="1")
    assert public_key(server) == public_key(other)
    server.client.digest("hello")
    path = path_of(server, "hello")
    wait_until(
        lambda: other.client.get(f"/nix-cache/{hash_of(path)}.narinfo").status == 200, "the path is known"
    )
    second_store(other).fetch(path)


def test_images_that_were_built_without_the_setting_are_found(
    start_server: StartServer, second_store: MakeStore
) -> None:
    start_server().client.digest("hello")
    server = start_server(NIXERY_SERVE_CACHE="1")
    second_store(server).fetch(path_of(server, "hello"))


def test_paths_of_a_deleted_image_are_unknown(start_server: StartServer) -> None:
    first = start_server(NIXERY_SERVE_CACHE="1")
    first.client.digest("hello")
    path = path_of(first, "hello")
    assert narinfo(first, path)["StorePath"] == path
    first.stop()
    # Its blobs, as a collector deletes them; the record is deleted later.
    for blob in (first.storage / "blobs").rglob("*"):
        if blob.is_file():
            blob.unlink()
    server = start_server(NIXERY_SERVE_CACHE="1")
    answer = server.client.get(f"/nix-cache/{hash_of(path)}.narinfo")
    assert (answer.status, answer.error["code"]) == (404, "BLOB_UNKNOWN")
    assert answer.error["message"] == (
        f"no stored image has a store path with the hash {hash_of(path)}; pull an image that has it, to have it built"
    )
    server.client.digest("hello")
    assert narinfo(server, path)["StorePath"] == path


def test_a_server_with_an_empty_store_makes_the_same_images_from_another_server(
    start_server: StartServer, private: PrivateNix, settings: Mapping[str, str], tmp_path: Path
) -> None:
    server = start_server(NIXERY_SERVE_CACHE="1")
    names = ["hello", "diamond/outputs", "symlinks/executables", "selfreference"]
    digests = {name: server.client.digest(name) for name in names}
    configuration = private.directory / "etc" / "nix.conf"
    url = f"http://{HOST}:{server.port}/nix-cache"
    text = configuration.read_text().replace("substituters =\n", f"substituters = {url}\n")
    configuration.write_text(f"{text}trusted-public-keys = {public_key(server)}\n")
    given = {**settings, **private.environment(), "NIXERY_SUBSTITUTE": "direct"}
    with running_server(tmp_path / "other", given, launcher=private.launcher) as other:
        assert {name: other.client.digest(name) for name in names} == digests
    store = {path.name for path in (private.directory / "nix" / "store").iterdir()}
    assert not store & {path.removeprefix("/nix/store/") for path in registered_paths(server.storage)}


def test_a_key_from_a_file(start_server: StartServer, second_store: MakeStore, tmp_path: Path) -> None:
    secret, public = tmp_path / "secret", tmp_path / "public"
    subprocess.run(
        ["nix-store", "--generate-binary-cache-key", "cache.example.org-1", secret, public], check=True
    )
    server = start_server(NIXERY_SERVE_CACHE="1", NIXERY_CACHE_KEY_FILE=str(secret))
    key = public.read_text().strip()
    assert public_key(server) == key
    server.client.digest("hello")
    path = path_of(server, "hello")
    assert narinfo(server, path)["Sig"].startswith("cache.example.org-1:")
    second_store(server, key).fetch(path)
    assert not list((server.storage / "records").glob("cache-keys/*"))


def test_a_file_without_a_key(settings: Mapping[str, str], tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("cache.example.org-1:c2hvcnQ=")
    given = {
        **settings,
        "NIXERY_SERVE_CACHE": "1",
        "NIXERY_CACHE_KEY_FILE": str(file),
        "PORT": str(free_port()),
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(tmp_path / "storage"),
    }
    wrong = f"NIXERY_CACHE_KEY_FILE: {file} should have a secret key"
    nixery = CommandLine(given, tmp_path)
    assert wrong in nixery("serve", status=2).stderr
    (found,) = (
        one for one in json.loads(nixery("check", "--json", status=1).stdout) if one["what"] == "signing"
    )
    assert (found["right"], wrong in found["found"]) == (False, True)


def test_paths_are_for_those_who_may_pull_an_image_that_has_them(
    start_server: StartServer, access: Path, second_store: MakeStore
) -> None:
    builder = start_server(NIXERY_SERVE_CACHE="1", NIXERY_ACCESS=str(access))
    for name in ("hello", "greeting", "singlefile"):
        pulled = builder.client.get(f"/v2/{name}/manifests/latest", basic("alice"))
        assert pulled.status == 200
    # Another server knows the names of images from the storage alone.
    other = start_server(NIXERY_SERVE_CACHE="1", NIXERY_ACCESS=str(access))
    paths = {name: path_of(builder, name) for name in ("hello", "greeting", "singlefile", "iana-etc")}
    allowed = {
        "anonymous": {"greeting", "iana-etc"},
        "alice": set(paths),
        "bob": {"greeting", "hello", "iana-etc"},
    }
    for server in (builder, other):
        for who, may in allowed.items():
            credentials = {} if who == "anonymous" else basic(who)
            for name, path in paths.items():
                answer = server.client.get(f"/nix-cache/{hash_of(path)}.narinfo", credentials)
                missing = 401 if who == "anonymous" else 404
                assert answer.status == (200 if name in may else missing), (who, name)
                known = narinfo(server, path, basic("alice"))
                nar = server.client.get(f"/nix-cache/{known['URL']}", credentials)
                assert nar.status == (200 if name in may else missing), (who, name)
        # Like a path that no image has.
        unknown = server.client.get(f"/nix-cache/{'0' * 32}.narinfo")
        assert (unknown.status, unknown.headers["www-authenticate"][:5]) == (401, "Basic")
        wrong = server.client.get("/nix-cache/nix-cache-info", basic("bob", "wrong"))
        assert wrong.status == 401
    password = PASSWORDS["bob"]
    store = second_store(other, netrc=f"machine {HOST} login bob password {password}\n")
    store.fetch(paths["hello"])
    with pytest.raises(AssertionError):
        store.fetch(paths["singlefile"])


def test_check_names_the_public_key(
    settings: Mapping[str, str], tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server(NIXERY_SERVE_CACHE="1")
    key = public_key(server)
    given = {**settings, "NIXERY_SERVE_CACHE": "1", "STORAGE_PATH": str(server.storage)}
    findings = json.loads(CommandLine(given, tmp_path)("check", "--json").stdout)
    (found,) = (finding for finding in findings if finding["what"] == "signing")
    assert (found["right"], found["found"]) == (True, f"the public key of its binary cache is {key}")
