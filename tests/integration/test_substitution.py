"""Images from binary caches without a store are those that Nix's store gives, to the byte.

The cache is made by Nix, from what a server has built in the store of the machine. The servers that read it directly
have an empty store in their own mount namespace.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from tests.support.nix import wait_until
from tests.support.private_nix import PrivateNix
from tests.support.server import HOST, Server, running_server
from tests.support.web_server import serving
from tests.validator.image_validator import validate

NAMES = ["hello", "shell/hello/left", "diamond/outputs", "symlinks/executables", "users", "selfreference"]

StartDirect = Callable[..., Server]


class BinaryCache:
    """A cache with the closures of images, served over HTTP.

    Attributes:
        directory: with its files.
        key: the public key.
        requests: paths of its files that were requested, in order.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.requests: list[str] = []
        self.url = ""
        secret, public = directory.parent / "secret", directory.parent / "public"
        nix("nix-store", "--generate-binary-cache-key", "test-1", str(secret), str(public))
        self.key = public.read_text().strip()
        self._secret = secret

    def add(self, paths: Sequence[str]) -> None:
        """Sign store paths and copy their closures."""
        new = ("nix", "--extra-experimental-features", "nix-command")
        nix(*new, "store", "sign", "--key-file", str(self._secret), "--recursive", *paths)
        nix(*new, "copy", "--to", f"file://{self.directory}?compression=zstd", *paths)

    def nars(self) -> list[str]:
        return [path for path in self.requests if path.startswith("nar/")]

    def files_of(self, name: str) -> list[Path]:
        """The narinfos of the store paths with a name."""
        return [
            file
            for file in self.directory.glob("*.narinfo")
            if file.read_text().partition("\n")[0].endswith(f"-{name}")
        ]

    def nar_of(self, name: str) -> Path:
        (narinfo,) = self.files_of(name)
        fields = dict(line.split(": ", 1) for line in narinfo.read_text().splitlines() if ": " in line)
        return self.directory / fields["URL"]


def nix(*command: str) -> str:
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def store_paths(server: Server, name: str) -> list[str]:
    return [
        f"/nix/store/{base_name}" for base_name in server.client.pull(name).filesystem.names_in("nix/store")
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[BinaryCache]:
    cache = BinaryCache(tmp_path_factory.mktemp("cache") / "files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIX_CONF_DIR", os.environ.get("NIX_CONF_DIR", "/etc/nix"))
        paths = set()
        for name in NAMES:
            server.client.pull(name)
            paths.update(store_paths(server, name))
        cache.add(sorted(paths))

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(cache.directory))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            cache.requests.append(self.path.removeprefix("/"))

    with serving(Handler) as port:
        cache.url = f"http://{HOST}:{port}"
        yield cache


@pytest.fixture
def private_nix(tmp_path: Path) -> Iterator[PrivateNix]:
    private_nix = PrivateNix.create(tmp_path / "private")
    yield private_nix
    private_nix.remove()


@pytest.fixture
def start_direct(
    tmp_path: Path, settings: Mapping[str, str], cache: BinaryCache, private_nix: PrivateNix
) -> Iterator[StartDirect]:
    """Start servers with an empty store that read the cache, all on one storage by default."""
    cache.requests.clear()
    configuration = private_nix.directory / "etc" / "nix.conf"
    text = configuration.read_text().replace("substituters =\n", f"substituters = {cache.url}\n")
    configuration.write_text(f"{text}trusted-public-keys = {cache.key}\n")
    with ExitStack() as stack:

        def start(**other_settings: str) -> Server:
            chosen = {
                **settings,
                **private_nix.environment(),
                "STORAGE_PATH": str(tmp_path / "storage"),
                "NIXERY_SUBSTITUTE": "direct",
                **other_settings,
            }
            return stack.enter_context(running_server(tmp_path, chosen, launcher=private_nix.launcher))

        yield start


def realised(private_nix: PrivateNix) -> list[str]:
    return [
        path.name
        for path in (private_nix.directory / "nix" / "store").iterdir()
        if not path.name.endswith((".drv", ".lock", ".links")) and path.name != ".links"
    ]


def test_images_are_the_same_without_a_store(
    server: Server, start_direct: StartDirect, private_nix: PrivateNix
) -> None:
    direct = start_direct()
    for name in NAMES:
        assert validate(direct.client.pull(name)).manifest == server.client.pull(name).manifest
    assert [name for name in realised(private_nix) if name.endswith("-1.0")] == []


def test_only_new_layers_are_fetched(start_direct: StartDirect, cache: BinaryCache) -> None:
    direct = start_direct()
    direct.client.pull("shell/hello/left")
    fetched = cache.nars()
    assert len(fetched) == len(set(fetched)), "each path is fetched once"
    direct.client.pull("shell/hello")
    direct.client.pull("shell/left")
    assert cache.nars() == fetched


def test_what_caches_said_survives_a_restart(start_direct: StartDirect, cache: BinaryCache) -> None:
    first = start_direct()
    first.client.pull("diamond/outputs")
    assert first.stop() == 0
    cache.requests.clear()
    again = start_direct()
    again.client.pull("diamond")
    assert cache.requests == []


def test_what_no_cache_has_is_built_and_the_rest_still_comes_directly(
    server: Server, start_direct: StartDirect, cache: BinaryCache, private_nix: PrivateNix
) -> None:
    expected = server.client.pull("many/hello").manifest
    direct = start_direct()
    assert validate(direct.client.pull("many/hello")).manifest == expected
    built = [name.partition("-")[2] for name in realised(private_nix)]
    assert "many-1.0" in built
    assert "hello-1.0" not in built
    assert cache.nars()


def test_a_server_without_nix_serves_what_caches_have(
    server: Server, start_direct: StartDirect, tmp_path: Path
) -> None:
    # It learns of the packages from the index that another server has made in the same storage.
    indexing = start_direct(NIXERY_INDEX="1")
    wait_until(lambda: '"indexed the package set"' in indexing.log, "the package set is indexed")
    assert indexing.stop() == 0
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("unshare", "sh", "mount"):
        (programs / name).symlink_to(shutil.which(name) or "")
    without = start_direct(PATH=str(programs), NIXERY_INDEX="1")
    assert without.client.get("/readyz").status == 200
    for name in ("hello", "diamond/outputs"):
        assert validate(without.client.pull(name)).manifest == server.client.pull(name).manifest
    refused = without.client.manifest("many")
    assert refused.status == 404
    assert "many (in no binary cache: /nix/store/" in refused.error["message"]
    assert "does not have it" in refused.error["message"]
    assert "this server has no Nix" in refused.error["message"]
    assert without.stop() == 0
    assert "Traceback" not in without.log


@pytest.mark.parametrize("damage", ["cut", "changed", "endless"])
def test_a_damaged_nar_is_named_and_leaves_nothing_behind(
    start_direct: StartDirect, cache: BinaryCache, damage: str
) -> None:
    file = cache.nar_of("left-1.0")
    good = file.read_bytes()
    bad = {"cut": good[:-20], "changed": b"x" + good[1:], "endless": good + good * 100}[damage]
    direct = start_direct()
    file.write_bytes(bad)
    try:
        refused = direct.client.manifest("shell/left")
        assert refused.status in {422, 503}
        assert "left-1.0" in refused.error["message"]
        assert cache.url in refused.error["message"]
        assert not list((direct.storage / "temporary").rglob("*layer*"))
    finally:
        file.write_bytes(good)
    validate(direct.client.pull("diamond"))


def test_narinfos_of_an_unknown_key_are_not_believed(
    start_direct: StartDirect, private_nix: PrivateNix, cache: BinaryCache
) -> None:
    configuration = private_nix.directory / "etc" / "nix.conf"
    configuration.write_text(
        configuration.read_text().replace(cache.key, "other-1:" + cache.key.partition(":")[2])
    )
    direct = start_direct()
    # Nix builds it instead.
    validate(direct.client.pull("hello"))
    assert cache.nars() == []
    assert "which trusted-public-keys does not have" in direct.log


def test_a_package_set_cannot_claim_paths_of_a_cache(
    server: Server, start_direct: StartDirect, tmp_path: Path, settings: Mapping[str, str]
) -> None:
    claimed = next(path for path in store_paths(server, "hello") if path.endswith("-hello-1.0"))
    package_set = tmp_path / "claiming"
    package_set.mkdir()
    (package_set / "default.nix").write_text(
        f"""arguments: let set = import {settings["NIXERY_PKGS_PATH"]} arguments; in set // {{
          claiming = set.greeting // {{ outPath = {json.dumps(claimed)}; out = {{ outPath = {json.dumps(claimed)}; }}; }};
        }}"""
    )
    direct = start_direct(NIXERY_PKGS_PATH=str(package_set))
    refused = direct.client.manifest("claiming")
    assert refused.status in {404, 422}
    assert "none of its derivations builds" in refused.error["message"]
