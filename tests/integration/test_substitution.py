"""Images from binary caches without a store are those that Nix's store gives, to the byte.

The cache is made by Nix, from what a server has built in the store of the machine. The servers that read it directly
have an empty store in their own mount namespace.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import zstandard

from nixery.closure import PathInfo, StorePath
from tests.support.binary_cache import SigningKey, narinfo_text
from tests.support.client import InBackground
from tests.support.nar import directory, entry, file, nar_of, string, strings, symlink, whole
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
        hooks: answer requests for files instead, by their paths.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hooks: dict[str, Callable[[SimpleHTTPRequestHandler], None]] = {}
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

    def path_of(self, name: str) -> StorePath:
        (narinfo,) = self.files_of(name)
        return StorePath.parse(narinfo.read_text().partition("\n")[0].removeprefix("StorePath: "))

    @contextmanager
    def serving_instead(
        self, name: str, nar: bytes, *, size: int | None = None, references: Sequence[StorePath] = ()
    ) -> Iterator[str]:
        """Serve other contents of a path, which the trusted key has signed; yield the path of the NAR's file.

        Args:
            name: of the path.
            nar: that is served.
            size: of the NAR, as it is signed; ``None`` for the true one.
            references: besides those that it has.
        """
        (narinfo,) = self.files_of(name)
        before = narinfo.read_bytes()
        fields = dict(line.split(": ", 1) for line in before.decode().splitlines() if ": " in line)
        old = [StorePath(base_name) for base_name in fields.get("References", "").split()]
        path = StorePath.parse(fields["StorePath"])
        info = PathInfo(
            path,
            hashlib.sha256(nar).hexdigest(),
            len(nar) if size is None else size,
            tuple(sorted({*old, *references} - {path})),
            refers_to_itself=path in (*old, *references),
        )
        key_name, _, secret = self._secret.read_text().strip().partition(":")
        key = SigningKey(key_name, base64.b64decode(secret)[:32])
        served = self.directory / "nar" / f"instead-{name}"
        served.write_bytes(nar)
        described = {"URL": f"nar/{served.name}", "Sig": key.sign(info), "Deriver": fields["Deriver"]}
        narinfo.write_bytes(narinfo_text(info, described))
        try:
            yield f"nar/{served.name}"
        finally:
            narinfo.write_bytes(before)
            served.unlink(missing_ok=True)

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

        def do_GET(self) -> None:
            hook = cache.hooks.get(self.path.removeprefix("/"))
            if hook is None:
                super().do_GET()
            else:
                self.log_message()
                hook(self)

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
    cache.hooks.clear()
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
    unknown = without.client.manifest("arm64/hello")
    assert unknown.status == 422
    assert "the package index of the storage does not tell what it needs of hello" in unknown.error["message"]
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


def without_nix(tmp_path: Path) -> str:
    """A ``PATH`` with the programs of the launcher alone."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("unshare", "sh", "mount"):
        (programs / name).symlink_to(shutil.which(name) or "")
    return str(programs)


def leaves_nothing_behind(server: Server) -> bool:
    return not [file for file in (server.storage / "temporary").rglob("*") if "layer" in file.name]


BOTTOM = b"bottom\n"
HOSTILE_NARS = {
    "a name above": whole(directory(entry(b"..", file(BOTTOM)))),
    "a path as a name": whole(directory(entry(b"a/b", file(BOTTOM)))),
    "duplicates": whole(directory(entry(b"bottom", file(BOTTOM)), entry(b"bottom", file(BOTTOM)))),
    "unsorted": whole(directory(entry(b"c", file(BOTTOM)), entry(b"bottom", file(BOTTOM)))),
    "deletes files of other layers": nar_of({b".wh.bottom": BOTTOM}),
    "a type that no store has": whole(strings(b"(", b"type", b"fifo", b")")),
    "an empty target": whole(symlink(b"")),
    "more after its end": nar_of({b"bottom": BOTTOM}) + string(b"(")[:8],
    "no NAR": b"<html>" * 100,
}


@pytest.mark.parametrize("nar", HOSTILE_NARS.values(), ids=HOSTILE_NARS)
def test_a_malformed_nar_is_refused_although_it_is_signed(
    start_direct: StartDirect, cache: BinaryCache, nar: bytes
) -> None:
    direct = start_direct(NIXERY_FAILURE_TTL="0")
    with cache.serving_instead("bottom-1.0", nar):
        refused = direct.client.manifest("left")
        assert refused.status == 422
        assert "bottom-1.0" in refused.error["message"]
        assert leaves_nothing_behind(direct)
        assert direct.client.get("/v2/_catalog").json()["repositories"] == []
    assert direct.stop() == 0
    assert "Traceback" not in direct.log


def endless(handler: SimpleHTTPRequestHandler) -> None:
    """Send a NAR whose directory never ends, until the client has enough."""
    handler.close_connection = True
    handler.send_response(200)
    handler.end_headers()
    try:
        handler.wfile.write(string(b"nix-archive-1") + strings(b"(", b"type", b"directory"))
        number = 0
        while True:
            entries = (entry(b"%032d" % each, file(b"")) for each in range(number, number + 1000))
            handler.wfile.write(b"".join(entries))
            number += 1000
    except ConnectionError:
        pass


@pytest.mark.parametrize("size", [10_000_000, 1 << 33])
def test_an_endless_nar_is_read_up_to_a_limit(
    start_direct: StartDirect, cache: BinaryCache, size: int
) -> None:
    """The limit is what the trusted key has signed, and the limit for names of a store path."""
    direct = start_direct()
    with cache.serving_instead("bottom-1.0", b"", size=size) as served:
        cache.hooks[served] = endless
        refused = direct.client.manifest("left")
    assert refused.status in {422, 503}
    assert "bottom-1.0" in refused.error["message"]
    assert leaves_nothing_behind(direct)


def test_a_path_that_is_too_large_is_refused_before_it_is_fetched(
    start_direct: StartDirect, cache: BinaryCache
) -> None:
    direct = start_direct()
    with cache.serving_instead("bottom-1.0", nar_of({b"bottom": BOTTOM}), size=1 << 50):
        refused = direct.client.manifest("left")
    assert refused.status == 422
    assert "NIXERY_MAX_CLOSURE" in refused.error["message"] or "GiB" in refused.error["message"]
    assert cache.nars() == []


def test_references_in_a_circle_end(start_direct: StartDirect, cache: BinaryCache) -> None:
    """Nix cannot build such paths, but a trusted key can sign them: the image has both."""
    direct = start_direct()
    left = cache.path_of("left-1.0")
    with cache.serving_instead("bottom-1.0", nar_of({b"bottom": BOTTOM}), references=[left]):
        image = validate(direct.client.pull("left"))
    assert {
        name for name in image.filesystem.names_in("nix/store") if name.endswith(("left-1.0", "bottom-1.0"))
    } == {
        left.base_name,
        cache.path_of("bottom-1.0").base_name,
    }


def test_references_are_counted_before_they_are_asked_for(
    start_direct: StartDirect, cache: BinaryCache
) -> None:
    many = [StorePath(f"{number:032d}-x") for number in range(20_001)]
    direct = start_direct()
    with cache.serving_instead("bottom-1.0", nar_of({b"bottom": BOTTOM}), references=many):
        refused = direct.client.manifest("left")
    assert refused.status == 422
    assert "the list of all store paths that the image needs" in refused.error["message"]
    assert len(cache.requests) < 100


def test_a_nar_that_disappeared_is_a_failure_that_ends(start_direct: StartDirect, cache: BinaryCache) -> None:
    direct = start_direct()
    nar = cache.nar_of("bottom-1.0")
    hidden = nar.rename(nar.with_suffix(".hidden"))
    try:
        refused = direct.client.manifest("left")
    finally:
        hidden.rename(nar)
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) > 0
    for part in (cache.url, "bottom-1.0", "has no such file"):
        assert part in refused.error["message"]
    assert leaves_nothing_behind(direct)
    validate(direct.client.pull("right"))


def test_without_nix_a_cache_that_fails_is_not_a_missing_image(
    start_direct: StartDirect, cache: BinaryCache, tmp_path: Path
) -> None:
    indexing = start_direct(NIXERY_INDEX="1")
    wait_until(lambda: '"indexed the package set"' in indexing.log, "the package set is indexed")
    assert indexing.stop() == 0
    programs = without_nix(tmp_path)
    failing = start_direct(PATH=programs, NIXERY_INDEX="1", NIXERY_FAILURE_TTL="0")
    narinfo = f"{cache.path_of('bottom-1.0').base_name[:32]}.narinfo"
    cache.hooks[narinfo] = lambda handler: handler.send_error(500)
    refused = failing.client.manifest("left")
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) > 0
    for part in (cache.url, "bottom-1.0", "this server has no Nix"):
        assert part in refused.error["message"]
    # A dependency that no cache has is named.
    cache.hooks[narinfo] = lambda handler: handler.send_error(404)
    missing = start_direct(PATH=programs, NIXERY_INDEX="1")
    refused = missing.client.manifest("left")
    assert refused.status == 404
    assert f"needs {cache.path_of('bottom-1.0')}: {cache.url} does not have it" in refused.error["message"]
    cache.hooks.clear()
    serving_now = start_direct(PATH=programs, NIXERY_INDEX="1")
    validate(serving_now.client.pull("left"))
    assert "serving without Nix" in serving_now.log
    assert "cannot build with Nix" not in serving_now.log


def records_of(storage: Path, kind: str) -> list[Path]:
    return sorted(path for path in (storage / "records" / kind).rglob("*") if path.is_file())


def overwrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def forget_images(storage: Path) -> None:
    for kind in ("images", "layers", "image-closures"):
        shutil.rmtree(storage / "records" / kind, ignore_errors=True)


@pytest.mark.parametrize("change", ["hash", "cache"])
def test_remembered_narinfos_are_checked_again(
    server: Server, start_direct: StartDirect, cache: BinaryCache, change: str
) -> None:
    first = start_direct()
    first.client.pull("left")
    assert first.stop() == 0
    for record in records_of(first.storage, "substituted-closures"):
        document = json.loads(zstandard.decompress(record.read_bytes()))
        for narinfo in document["narinfos"]:
            if change == "cache":
                narinfo["cache"] = "https://cache.example"
            else:
                lines = narinfo["text"].splitlines(keepends=True)
                other = f"NarHash: sha256:{'0' * 52}\n"
                narinfo["text"] = "".join(other if line.startswith("NarHash") else line for line in lines)
        overwrite(record, zstandard.compress(json.dumps(document).encode()))
    forget_images(first.storage)
    cache.requests.clear()
    again = start_direct()
    assert validate(again.client.pull("left")).manifest == server.client.pull("left").manifest
    assert any(path.endswith(".narinfo") for path in cache.requests)


def test_wrong_names_in_the_storage_are_replaced_when_their_nar_is_read(
    server: Server, start_direct: StartDirect
) -> None:
    """A planted listing lacks the program of a package: its link would be missing in /bin."""
    first = start_direct()
    first.client.pull("hello")
    first.client.pull("bottom")
    assert first.stop() == 0
    listings = records_of(first.storage, "nar-listings")
    smallest = min(listings, key=lambda record: len(zstandard.decompress(record.read_bytes())))
    contents = {record: record.read_bytes() for record in listings}
    for record in listings:
        if record != smallest:
            overwrite(record, contents[smallest])
    forget_images(first.storage)
    again = start_direct()
    assert validate(again.client.pull("hello")).manifest == server.client.pull("hello").manifest
    assert "replaced wrong names of store paths" in again.log
    forget_images(first.storage)
    assert again.stop() == 0
    last = start_direct()
    last.client.pull("hello")
    assert "replaced wrong names of store paths" not in last.log


def test_a_cancelled_build_ends_its_fetches(start_direct: StartDirect, cache: BinaryCache) -> None:
    direct = start_direct()
    direct.client.pull("hello")
    nar = f"nar/{cache.nar_of('bottom-1.0').name}"
    reached, ended = threading.Event(), threading.Event()

    def drip(handler: SimpleHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        reached.set()
        try:
            while not ended.wait(0.05):
                handler.wfile.write(b"x")
        except ConnectionError:
            ended.set()

    def threads() -> int:
        return len(list(Path(f"/proc/{direct.process.pid}/task").iterdir()))

    before = threads()
    cache.hooks[nar] = drip
    try:
        waiting = InBackground(direct.client, "/v2/left/manifests/latest").start()
        assert reached.wait(60)
        (build,) = direct.client.get("/api/v1/builds?state=running").json()["builds"]
        assert direct.client.request("POST", f"/api/v1/builds/{build['id']}/cancel").status == 202
        assert waiting.result().status == 422
        assert ended.wait(60), "the connection is closed"
        wait_until(lambda: leaves_nothing_behind(direct), "no unfinished layer is left")
        # Some workers of the event loop may have started meanwhile; the threads that fetched have ended.
        wait_until(lambda: threads() <= before + 4, "no thread fetches")
    finally:
        ended.set()
        cache.hooks.clear()
    validate(direct.client.pull("left"))


def test_two_servers_of_one_storage_build_the_same_image_at_once(
    server: Server, start_direct: StartDirect
) -> None:
    servers = [start_direct(), start_direct()]
    waiting = [InBackground(one.client, "/v2/diamond/outputs/manifests/latest").start() for one in servers]
    expected = server.client.manifest("diamond/outputs").body
    # Manifests by tag differ in nothing but what a client accepts.
    assert {answer.result().status for answer in waiting} == {200}
    for one in servers:
        assert validate(one.client.pull("diamond/outputs")).manifest == expected
        assert one.stop() == 0
        assert "Traceback" not in one.log


def test_a_server_stops_while_a_cache_is_silent(start_direct: StartDirect, cache: BinaryCache) -> None:
    direct = start_direct()
    reached, end = threading.Event(), threading.Event()

    def silent(handler: SimpleHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        reached.set()
        end.wait()

    cache.hooks[f"nar/{cache.nar_of('bottom-1.0').name}"] = silent
    try:
        waiting = InBackground(direct.client, "/v2/left/manifests/latest").start()
        assert reached.wait(60)
        assert direct.stop() == 0
    finally:
        end.set()
    assert waiting.result().status in {429, 503}
