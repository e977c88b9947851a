"""Store paths are protected from Nix's garbage collector while they are packed.

No test runs the collector: the Nix store belongs to the whole machine.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.integration.conftest import StartServer
from tests.support.client import InBackground
from tests.support.nix import NixSpy, wait_until
from tests.support.packing_gate import PackingGate
from tests.support.server import Server

_OUTPUTS = ["hello-1.0", "iana-etc-1.0", "nss-cacert-1.0", "outputs-1.0-bin", "outputs-1.0-man"]

_INDIRECT_ROOTS = Path(os.environ.get("NIX_STATE_DIR", "/nix/var/nix")) / "gcroots" / "auto"


def links(storage: Path) -> list[Path]:
    # Unlike rglob, os.walk tolerates directories that vanish.
    walk = os.walk(storage / "gc-roots")
    found = [Path(above) / name for above, below, files in walk for name in [*below, *files]]
    return sorted(path for path in found if path.is_symlink())


def test_nix_registers_roots_before_the_closure_is_read(start_server: StartServer, tmp_path: Path) -> None:
    roots = tmp_path / "storage" / "gc-roots"
    spy = NixSpy.install(tmp_path / "watching-spy", watched=[roots, _INDIRECT_ROOTS])
    server = start_server(**spy.environment())
    server.client.pull("hello/outputs")
    seen = spy.seen_at("nix-store", "--requisites") + spy.seen_at("nix-store", "--dump-db")
    assert len(seen) >= 2
    for targets_by_link in seen:
        held = {link: target for link, target in targets_by_link.items() if link.startswith(str(roots))}
        assert sorted(target.split("-", 1)[1] for target in held.values()) == _OUTPUTS
        # A symlink is a root only if Nix registered it.
        assert set(held) <= set(targets_by_link.values())
    assert links(server.storage) == []
    assert server.stop() == 0
    assert list(roots.iterdir()) == []


def test_roots_of_valid_paths_are_registered_without_a_process(
    start_server: StartServer, tmp_path: Path
) -> None:
    start_server().client.pull("hello/outputs")
    spy = NixSpy.install(tmp_path / "spy")
    gate = PackingGate.install(tmp_path / "gate")
    server = start_server(
        **{**spy.environment(database=True), **gate.environment(), "STORAGE_PATH": str(tmp_path / "other")}
    )
    request = InBackground(server.client, "/v2/hello/outputs/manifests/latest").start()
    gate.wait()
    roots = links(tmp_path / "other")
    assert sorted(str(root.readlink()).split("-", 1)[1] for root in roots) == _OUTPUTS
    registered = {str(link.readlink()): link for link in _INDIRECT_ROOTS.iterdir()}
    # Nix itself finds them: it follows each registered symlink to a store path.
    found = subprocess.run(
        ["nix-store", "--query", "--roots", str(roots[0].readlink())],
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(roots[0]) in found.stdout
    gate.open()
    assert request.result().status == 200
    assert spy.calls_of("nix-store", "--realise") + spy.calls_of("nix-store", "--query") == []
    assert links(tmp_path / "other") == []
    assert not any(registered[str(root)].is_symlink() for root in roots)


def test_roots_exist_until_the_layers_are_stored(start_server: StartServer, tmp_path: Path) -> None:
    gate = PackingGate.install(tmp_path / "gate")
    server = start_server(**gate.environment())
    request = InBackground(server.client, "/v2/big/manifests/latest").start()
    gate.wait()
    assert any(str(link.readlink()).endswith("-big-1.0") for link in links(server.storage))
    gate.open()
    assert request.result().status == 200
    assert links(server.storage) == []


def test_no_roots_are_left_after_a_failure(server: Server) -> None:
    for name in ("fails/hello", "nosuchpackage", "broken"):
        assert server.client.manifest(name).status in (404, 422)
    assert links(server.storage) == []


def test_the_next_server_removes_the_roots_of_a_killed_one(start_server: StartServer) -> None:
    server = start_server()
    # As left behind by a server that was killed during a build.
    (own,) = (server.storage / "gc-roots").iterdir()
    (own / "build-left-over").mkdir()
    (own / "build-left-over" / "result").symlink_to("/nix/store/00000000000000000000000000000000-x")
    living = start_server()
    assert links(server.storage), "the roots of a running server are kept"
    server.kill()
    start_server()
    wait_until(lambda: not links(server.storage), "the roots of the killed server are removed")
    assert living.client.get("/v2/").status == 200
