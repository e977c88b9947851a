"""What is being packed is protected from Nix's garbage collector, which no test runs: the store is everybody's."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from tests.integration.conftest import StartServer
from tests.support.client import InBackground
from tests.support.nix import NixSpy, wait_until
from tests.support.server import Server

_INDIRECT_ROOTS = Path(os.environ.get("NIX_STATE_DIR", "/nix/var/nix")) / "gcroots" / "auto"


def links(storage: Path) -> list[Path]:
    # Unlike rglob, walking does not mind when a directory goes while it is looked at.
    walk = os.walk(storage / "gc-roots")
    found = [Path(above) / name for above, below, files in walk for name in [*below, *files]]
    return sorted(path for path in found if path.is_symlink())


def test_roots_stand_while_the_closure_is_read(start_server: StartServer, tmp_path: Path) -> None:
    roots = tmp_path / "storage" / "gc-roots"
    spy = NixSpy.install(tmp_path / "watching-spy", watched=[roots, _INDIRECT_ROOTS])
    server = start_server(**spy.environment())
    server.client.pull("hello/outputs")
    seen = spy.seen_at("nix-store", "--requisites") + spy.seen_at("nix-store", "--dump-db")
    assert len(seen) >= 2
    for targets_by_link in seen:
        held = {link: target for link, target in targets_by_link.items() if link.startswith(str(roots))}
        assert sorted(target.split("-", 1)[1] for target in held.values()) == [
            "hello-1.0",
            "iana-etc-1.0",
            "nss-cacert-1.0",
            "outputs-1.0-bin",
            "outputs-1.0-man",
        ]
        # A symlink is a root only where Nix knows of it.
        assert set(held) <= set(targets_by_link.values())
    assert links(server.storage) == []
    assert server.stop() == 0
    assert list(roots.iterdir()) == []


def targets(storage: Path) -> set[str]:
    """Where the roots lead."""
    found = set()
    for link in links(storage):
        with suppress(OSError):  # gone in between
            found.add(str(link.readlink()))
    return found


def is_packing(server: Server) -> bool:
    try:
        return any(
            path.stat().st_size > 1 << 20
            for path in (server.storage / "temporary").rglob("*")
            if path.is_file()
        )
    except FileNotFoundError:
        return False


def test_roots_stand_until_the_layers_are_stored(start_server: StartServer) -> None:
    server = start_server()
    request = InBackground(server.client, "/v2/big/manifests/latest").start()
    seen: list[set[str]] = []
    while request.is_running:
        # Looked at before and after, since a build may go on a good way between two lines.
        before = targets(server.storage)
        if is_packing(server):
            seen.append(before | targets(server.storage))
    assert request.result().status == 200
    assert seen
    assert all(any(target.endswith("-big-1.0") for target in found) for found in seen), seen
    assert links(server.storage) == []


def test_nothing_is_left_after_a_failure(server: Server) -> None:
    for name in ("fails/hello", "nosuchpackage", "broken"):
        assert server.client.manifest(name).status in (404, 422)
    assert links(server.storage) == []


def test_successor_sweeps_after_a_server_that_was_killed(start_server: StartServer) -> None:
    server = start_server()
    # As if it had been killed in the middle of a build.
    (own,) = (server.storage / "gc-roots").iterdir()
    (own / "build-left-over").mkdir()
    (own / "build-left-over" / "result").symlink_to("/nix/store/00000000000000000000000000000000-x")
    living = start_server()
    assert links(server.storage), "the roots of a server that runs belong to it"
    server.process.send_signal(signal.SIGKILL)
    server.wait()
    start_server()
    wait_until(lambda: not links(server.storage), "the roots of the killed server are gone", 5)
    assert living.client.get("/v2/").status == 200
