"""Sealed documents."""

from __future__ import annotations

import base64
import json

import pytest

from nixery.access.sealing import Sealer

SECRET = bytes(range(32))


def test_a_replica_opens_what_another_one_sealed_until_it_expires() -> None:
    now = [1000.0]
    sealed = Sealer(SECRET, "session", lambda: now[0]).seal({"name": "é"}, 60)
    replica = Sealer(SECRET, "session", lambda: now[0])
    assert replica.open(sealed) == ({"name": "é"}, 1060.0)
    now[0] = 1060.0
    assert replica.open(sealed) is None


def test_other_purposes_and_other_secrets_open_nothing() -> None:
    sealed = Sealer(SECRET, "session").seal({}, 60)
    assert Sealer(SECRET, "login").open(sealed) is None
    assert Sealer(SECRET[::-1], "session").open(sealed) is None


def test_a_changed_text_is_not_opened() -> None:
    sealer = Sealer(SECRET, "session")
    sealed = sealer.seal({"name": "alice"}, 60)
    assert "alice" not in sealed
    for index in range(0, len(sealed), 7):
        changed = sealed[:index] + ("A" if sealed[index] != "A" else "B") + sealed[index + 1 :]
        assert sealer.open(changed) is None


def test_other_algorithms_are_not_accepted() -> None:
    sealer = Sealer(SECRET, "session")
    _, *rest = sealer.seal({}, 60).split(".")
    headers: tuple[object, ...] = (
        {"alg": "dir", "enc": "A128GCM"},
        {"alg": "PBES2-HS256+A128KW", "enc": "A256GCM"},
        [],
        "alg",
    )
    for header in headers:
        encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
        assert sealer.open(".".join((encoded, *rest))) is None


@pytest.mark.parametrize("text", ["", "....", "a.b.c.d.e", "é", "x" * 100_000, "a.b.c"])
def test_what_was_never_sealed_is_not_opened(text: str) -> None:
    assert Sealer(SECRET, "session").open(text) is None


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Sealer(b"short", "session")
