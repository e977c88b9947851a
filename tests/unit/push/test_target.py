"""Where an image is pushed to."""

from __future__ import annotations

import pytest

from nixery.push.client import Target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:5000/git", Target("localhost:5000", "git", "latest")),
        ("registry.test/a/b-c:1.0", Target("registry.test", "a/b-c", "1.0")),
        ("[::1]:5000/git:x", Target("[::1]:5000", "git", "x")),
    ],
)
def test_targets(text: str, expected: Target) -> None:
    assert Target.parse(text, "latest") == expected


@pytest.mark.parametrize(
    "text", ["", "git", "localhost:5000/", "h/Git", "h/git:", "h/git@sha256:0", "http://h/git"]
)
def test_no_targets(text: str) -> None:
    with pytest.raises(ValueError, match="is no HOST"):
        Target.parse(text, "latest")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.2:80", True),
        ("[::1]:1", True),
        ("localhost.test", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:  # noqa: FBT001 -- pytest's parameter
    assert Target(host, "git", "latest").is_loopback is loopback
