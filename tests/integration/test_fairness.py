"""How long twenty clients wait for builds of Nix beside a greedy one, counted in builds that start before theirs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.integration.conftest import StartServer
from tests.support.client import InBackground, RegistryClient
from tests.support.nix import NixSpy, wait_until
from tests.support.server import Server

# Together, they are as many as the list of builds has.
_MODEST, _GREEDY = 20, 28

# Each derivation is built by Nix in this run, and by no other.
_PACKAGE_SET = """\
arguments:
let
  set = import {base} arguments;
  one = name: {{
    inherit name;
    value = derivation {{
      inherit name;
      salt = "{salt}";
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [ "-c" "echo $name > $out" ];
    }} // {{ pname = name; version = "1"; meta = {{ }}; }};
  }};
  many = beginning: map one (builtins.genList (number: "${{beginning}}${{toString number}}") 50);
in
set // builtins.listToAttrs (many "alone" ++ many "modest" ++ many "greedy")
"""


def seen_from(server: Server, address: str) -> RegistryClient:
    return replace(server.client, source=address, timeout=300)


def waiting(server: Server) -> int:
    builds = server.client.get("/api/v1/builds?limit=200").json()["builds"]
    return sum(build["state"] == "waiting" and build["position"] is not None for build in builds)


def starts(server: Server, beginning: str) -> Sequence[int]:
    """Return how many builds started before each one whose name begins so, itself included, in order."""
    lines = (json.loads(line) for line in server.log.splitlines() if '"event": "building"' in line)
    order = [line["image"] for line in lines if not line["image"].startswith("hello")]
    return [number for number, image in enumerate(order, 1) if image.startswith(beginning)]


def test_modest_clients_wait_at_most_twice_as_long_beside_a_greedy_one(
    start_server: StartServer, spy: NixSpy, tmp_path: Path, salt: str
) -> None:
    package_set = tmp_path / "set"
    package_set.mkdir()
    base = Path(__file__).parent.parent / "packageset"
    (package_set / "default.nix").write_text(_PACKAGE_SET.format(base=base, salt=f"{salt}-{tmp_path.name}"))

    def run(name: str, greedy: int) -> Sequence[int]:
        """Have all clients ask while the only slot is taken, and return when the builds of the modest ones start."""
        server = start_server(
            NIXERY_PKGS_PATH=str(package_set),
            NIXERY_MAX_BUILDS="1",
            NIXERY_INDEX="0",
            STORAGE_PATH=str(tmp_path / name),
            **spy.environment(),
        )
        clients = []
        with spy.holding("nix-store", "--realise"):
            first = InBackground(seen_from(server, "127.0.0.2"), "/v2/hello/manifests/latest").start()
            wait_until(lambda: bool(spy.calls_of("nix-store", "--realise")), "the slot is taken")
            # The greedy client comes first.
            for address, beginning, number in (
                *(("127.0.0.3", "greedy", one) for one in range(greedy)),
                *((f"127.0.1.{one + 1}", name, one) for one in range(_MODEST)),
            ):
                path = f"/v2/{beginning}{number}/manifests/latest"
                clients.append(InBackground(seen_from(server, address), path).start())
                wait_until(lambda: waiting(server) == len(clients), f"{len(clients)} builds wait")
        spy.forget()
        assert {one.result(300).status for one in (first, *clients)} == {200}
        found = starts(server, name)
        assert server.stop() == 0
        return found

    alone = run("alone", 0)
    beside = run("modest", _GREEDY)
    assert alone == list(range(1, _MODEST + 1))
    assert all(with_greedy <= 2 * without for without, with_greedy in zip(alone, beside, strict=True)), beside
