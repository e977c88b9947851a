from __future__ import annotations

import asyncio
from itertools import product

import pytest

from nixery.errors import NixUnusable, SettingsError
from nixery.nix.sandbox import (
    BuilderGate,
    Confinement,
    Sandbox,
    User,
    is_loopback,
    require_confinement,
    require_sandbox,
)

SAFE = Confinement("on", "own")
UNSAFE = Confinement("off", "root")
UNKNOWN = Confinement("unknown", "unknown", reason="no room")


def test_only_a_sandbox_without_exceptions_and_without_root_is_safe() -> None:
    sandboxes: tuple[Sandbox, ...] = ("on", "optional", "off", "unknown")
    users: tuple[User, ...] = ("root", "server", "own", "unknown")
    safe = {
        (sandbox, user) for sandbox, user in product(sandboxes, users) if Confinement(sandbox, user).is_safe
    }
    assert safe == {("on", "server"), ("on", "own")}
    assert not Confinement("on", "own", reads_storage=True).is_safe
    assert Confinement("elsewhere", "own").is_safe


def test_a_builder_that_owns_the_store_is_not_confined_completely() -> None:
    assert SAFE.is_complete
    assert not Confinement("on", "server", owns_store=True).is_complete


@pytest.mark.parametrize("sandbox", ["on", "optional", "off", "elsewhere", "unknown"])
@pytest.mark.parametrize("user", ["root", "server", "own", "unknown"])
def test_every_confinement_has_a_sentence(sandbox: Sandbox, user: User) -> None:
    found = Confinement(sandbox, user, owns_store=True, reads_storage=True, reason="no room")
    assert len(found.sentence) > 20
    assert "\n" not in found.sentence
    assert not found.sentence.endswith(".")


def test_the_sentence_about_a_sandbox_as_root_names_its_gaps() -> None:
    sentence = Confinement("on", "root", owns_store=True).sentence
    assert "it can change store paths" in sentence
    assert "every file of this machine that sandbox-paths names" in sentence


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_loopback_addresses_are_recognised(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0"])  # noqa: S104
def test_other_addresses_are_not_loopback(address: str) -> None:
    assert not is_loopback(address)


def test_a_server_with_unconfined_builders_is_refused() -> None:
    require_confinement(SAFE, "0.0.0.0")  # noqa: S104
    # The server serves stored images; the gate blocks builds.
    require_confinement(UNKNOWN, "0.0.0.0")  # noqa: S104
    with pytest.raises(SettingsError) as caught:
        require_confinement(UNSAFE, "registry")
    (problem,) = caught.value.problems
    assert problem.startswith(
        "NIXERY_HOST=registry opens the server to other machines, but builders run without"
    )
    assert "NIXERY_NIX_SANDBOX=off" in problem


def test_a_required_sandbox_that_does_not_work_is_an_error() -> None:
    require_sandbox(Confinement("on", "root"))
    for found in (UNSAFE, UNKNOWN, Confinement("optional", "own")):
        with pytest.raises(SettingsError, match="NIXERY_NIX_SANDBOX is on, but"):
            require_sandbox(found)


async def test_the_gate_is_open_for_confined_builders_and_without_a_probe() -> None:
    def never() -> Confinement:
        raise AssertionError

    for found in (SAFE, None):
        await BuilderGate(found, never).enter()


async def test_the_gate_stays_closed_until_builders_are_known_to_be_confined() -> None:
    answers = [UNKNOWN, UNSAFE, SAFE]
    gate = BuilderGate(UNKNOWN, lambda: answers.pop(0))
    for _ in range(2):
        with pytest.raises(NixUnusable, match="not known to be confined"):
            await gate.enter()
    # Concurrent builds share one probe.
    await asyncio.gather(*(gate.enter() for _ in range(5)))
    assert answers == []
